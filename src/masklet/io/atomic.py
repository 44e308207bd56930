"""Writing a file, or the files of a folder, all or nothing.

In: a path and what a `with` block writes. Out: whole files under that path, or no trace. Knows nothing
about what is written.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from masklet.errors import MaskletError, OutputError


@contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that appears under `path` only when the block ends without an exception.

    The bytes go to a temporary file in the same folder, are synced to disk, and take the final name in one
    step. After any exception, Ctrl-C included, the temporary file is gone and what was at `path` before is
    untouched. A symbolic link is written through; a device or a pipe (/dev/null, /dev/stdout) is written to,
    not replaced. Raises `OutputError` where the file system refuses.
    """
    if "\0" in os.fspath(path):
        raise OutputError(f"cannot write {os.fspath(path)!r}: a file name cannot contain a null character")
    target = Path(os.path.realpath(path))
    special = target.exists() and not target.is_file() and not target.is_dir()
    temporary = target.parent / f".masklet-{secrets.token_hex(8)}.tmp"
    try:
        if special:
            with open(target, "wb") as file:
                yield file
            return
        # Not `tempfile`: its files are private to the user, and the result should follow the umask like any
        # other output.
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, MaskletError):
            raise OutputError(_explain(error, target)) from error
        raise


@contextmanager
def fill_folder(path: str | os.PathLike[str], *, last: str) -> Iterator[Path]:
    """A folder to write files into, which move to `path` only when the block ends without an exception.

    `path` is made if it is not there; its parent must be. The files wait inside it under a temporary name (it
    may be a file system of its own), each moves in one step, and the one called `last` comes last: where it
    is, all are. After any exception in the block, Ctrl-C included, `path` is as it was. Raises `OutputError`
    where the file system refuses.
    """
    target = Path(os.path.realpath(path))
    temporary = target / f".masklet-{secrets.token_hex(8)}.tmp"
    made = not target.exists()
    try:
        if made:
            target.mkdir()
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == last):
            os.replace(file, target / file.name)
        temporary.rmdir()
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if made:
            with suppress(OSError):
                target.rmdir()
        if isinstance(error, OSError) and not isinstance(error, MaskletError):
            raise OutputError(_explain(error, target, is_folder=True)) from error
        raise


def _explain(error: OSError, target: Path, *, is_folder: bool = False) -> str:
    reason = reason_of(error, target, is_folder=is_folder)
    return f"cannot write {str(target)!r}: {reason}. Nothing was left behind."


def reason_of(error: OSError, target: Path, *, is_folder: bool = False) -> str:
    """Why the file system refused to write `target`, and what to do about it."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        reason = "the disk (or your quota on it) is full; free some space or choose another folder"
    elif error.errno == errno.EFBIG:
        reason = "the file system, or a limit of this account, does not allow a file of that size"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR):
        reason = f"the folder {str(target.parent)!r} does not exist; create it first"
    elif target.is_dir() and not is_folder:
        reason = "it is a folder; give the name of a file"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        reason = "no permission to write there, or another program holds the file open; choose another folder"
    return reason
