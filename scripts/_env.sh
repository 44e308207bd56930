# shellcheck shell=bash
# Common ground of the scripts: sourced, never run. Needs bash, a Python >= 3.10 and its pip; PYTHON names another one.
#
#   prepare DIR FILL [INPUT]...   DIR becomes a virtual environment that the function FILL has filled, and $bin the folder
#                                 of its programs. A second call does nothing while FILL, the inputs (files, folders or
#                                 words) and the place of the repository are unchanged.
#   install ...                   pip install into that environment
#   say ...                       one line on stderr

set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$root"

# Nothing from the caller's shell may stand in for what the scripts install.
unset PYTHONPATH PYTHONHOME
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
  say "$*"
  exit 1
}

# The interpreter that makes the environments.
find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      printf '%s' "$candidate"
      return
    fi
  done
  die "no Python >= 3.10 found (tried: ${PYTHON:-python3, python3.13 ... python3.10, python}); set PYTHON to one"
}

version_of() { "$1" -c 'import platform; print(platform.python_implementation(), platform.python_version())'; }

# An empty environment with pip, also where the distribution splits ensurepip off (Debian without python3-venv).
make_env() {
  local dir=$1
  "$base_python" -m venv --clear "$dir" >/dev/null 2>&1 && return
  "$base_python" -m venv --clear --without-pip "$dir" ||
    die "$base_python cannot make virtual environments; install its venv module"
  local packages
  packages="$("$dir/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  "$base_python" -m pip install --quiet --progress-bar off --target "$packages" pip >&2 ||
    die "$base_python has no pip to fill $dir with; install pip for it"
}

# Usable: pip runs in it, and it is of the version that PYTHON asks for, where it asks.
usable() {
  "$1/bin/python" -m pip --version >/dev/null 2>&1 || return 1
  [[ -z "${PYTHON:-}" || "$(version_of "$1/bin/python")" == "$(version_of "$base_python")" ]]
}

# A hash of everything that decides what an environment holds.
fingerprint() {
  local fill=$1 input file
  shift
  {
    printf '%s\n' "$root"
    declare -f "$fill"
    for input in "$@"; do
      if [[ -d "$input" ]]; then
        find "$input" -type f -not -path '*/__pycache__/*' | LC_ALL=C sort | while IFS= read -r file; do
          printf '%s\n' "$file" && cat "$file"
        done
      elif [[ -f "$input" ]]; then
        cat "$input"
      else
        printf '%s\n' "$input"
      fi
    done
  } | "$base_python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())'
}

install() { "$bin/python" -m pip install --quiet --progress-bar off "$@" >&2; }

prepare() {
  local dir=$1 fill=$2 wanted
  shift 2
  bin="$root/$dir/bin"
  base_python="$(find_python)"
  wanted="$(fingerprint "$fill" "$@")"
  if ! usable "$dir"; then
    say "making $dir with $(version_of "$base_python")"
    make_env "$dir"
  elif [[ "$(cat "$dir/.masklet-stamp" 2>/dev/null)" == "$wanted" ]]; then
    return
  fi
  say "installing into $dir"
  rm -f "$dir/.masklet-stamp"
  "$fill"
  printf '%s\n' "$wanted" >"$dir/.masklet-stamp" # last: an interrupted installation is done again
}

# The environments that more than one script uses.

install_dev() { install --editable '.[dev]'; }

# The references of parity and benchmarks. TORCH may name another torch: a requirement or a wheel's path.
# torchvision comes without its dependencies, because it pins a torch; hydra-core, iopath and tqdm are sam2's.
TORCH="${TORCH:-torch==2.13.0}"

install_reference() {
  install "$TORCH" setuptools wheel numpy pillow hydra-core iopath tqdm
  install --no-deps torchvision==0.29.2
  SAM2_BUILD_CUDA=0 install --no-build-isolation --no-deps sam2==1.1.0
  install --no-deps segment-anything==1.0
  install 'opencv-python-headless>=4.10' # segment-anything's mask generator removes small regions with it
  # EdgeTAM's package is called sam2 too: beside the others, for processes that are told of it.
  install --no-deps --upgrade --target "$bin/../edgetam" edgetam-dimos==1.0.1 timm==1.0.31
  install 'transformers>=5.20,<6' openvino==2026.4.1 'pytest>=8.2' scipy
  install --editable .
}

prepare_dev() { prepare .venv install_dev pyproject.toml; }
prepare_reference() { prepare .venv-ref install_reference "$TORCH" pyproject.toml; }
