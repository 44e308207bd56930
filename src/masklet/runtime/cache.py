"""Compiled graphs on disk, by content.

In: what a stage depends on (configuration, stage, size, dialect, versions). Out: a `Stage`, from the cache or
freshly written. An entry is one zip archive (its CRCs show damage), written to a temporary name and renamed,
so that any number of processes may start at once. On the cached path neither onnx nor onnxscript is imported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from masklet.families.family import Config
from masklet.runtime.devices import small_cache
from masklet.runtime.graph import Stage, write_stage

SUFFIX = ".stage"
ENVIRONMENT = "MASKLET_CACHE"

# What a damaged entry makes zipfile and the manifest's reader raise.
_DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, TypeError, RuntimeError)


@dataclass(frozen=True)
class CacheEntry:
    """One compiled graph on disk. `size` in bytes."""

    path: Path
    stage: str
    size: int


def folder() -> Path:
    """Where compiled graphs live: $MASKLET_CACHE, or `masklet` in the user's cache folder."""
    if os.environ.get(ENVIRONMENT):
        return Path(os.environ[ENVIRONMENT])
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "masklet"


def load_stage(config: Config, name: str, image_size: int, dialect: str, precision: str = "f32") -> Stage:
    """The stage from the cache, or written now and kept. A damaged entry is replaced; a full disk is no
    error.
    """
    path = folder() / f"{name}-{_key(config, name, image_size, dialect, precision)}{SUFFIX}"
    stage = _read(path)
    if stage is None:
        stage = write_stage(config, name, image_size, dialect, precision)
        with contextlib.suppress(OSError):
            _write(path, stage)
    return stage


def entries() -> list[CacheEntry]:
    """What the cache holds, by name."""
    return [
        CacheEntry(path, path.name.rsplit("-", 1)[0], path.stat().st_size)
        for path in sorted(folder().glob(f"*{SUFFIX}"))
    ]


def clear() -> int:
    """Delete all entries (also unfinished ones) and return how many bytes that freed."""
    freed = 0
    for path in [*folder().glob(f"*{SUFFIX}"), *folder().glob("*.partial")]:
        with contextlib.suppress(OSError):
            size = path.stat().st_size
            path.unlink()
            freed += size
    return freed


def _key(config: Config, name: str, image_size: int, dialect: str, precision: str) -> str:
    # The sources that write a graph are part of its identity, so an edited module can't meet an old graph.
    parts = [config.to_json(), name, str(image_size), dialect, precision]
    parts += [_sources_hash(), version("onnxruntime"), str(small_cache())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _sources_hash() -> str:
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for part in ("model", "families", "runtime/graph.py"):
        path = package / part
        for source in [path] if path.is_file() else sorted(path.glob("*.py")):
            digest.update(source.read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Stage | None:
    try:
        with zipfile.ZipFile(path) as archive:
            return Stage.from_manifest(archive.read("manifest.json").decode(), archive.read("graph.onnx"))
    except FileNotFoundError:
        return None
    except _DAMAGE:
        return None  # the caller writes it anew over the old one


def _write(path: Path, stage: Stage) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
    try:
        with (
            os.fdopen(handle, "wb") as file,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out,
        ):
            out.writestr("manifest.json", stage.manifest())
            out.writestr("graph.onnx", stage.onnx)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
