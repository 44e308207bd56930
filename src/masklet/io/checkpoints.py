"""Opening a model file: what is it, what is in it, and its tensors as arrays that share the file's memory.

In: a path. Out: a `Checkpoint`. Which format it has, `formats` tells. Knows nothing about models:
which tensors belong to which network is decided in `families`.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import mmap
import os
import stat
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType

import numpy as np

from masklet.errors import (
    CheckpointError,
    CorruptFileError,
    InputError,
    MaskletError,
    ModelNotFoundError,
    TensorMismatchError,
    UnknownFormatError,
)
from masklet.io.formats import KNOWN, read_contents
from masklet.io.ggml_types import dequantised
from masklet.io.tensor_table import BLOCKS, STORED_DTYPES, Checksum, TensorInfo, quoted, stored_shape

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

_VERIFY_STEP = 1 << 24  # bytes; between steps, Ctrl-C is heard


class _Mapping:
    """A read-only memory map that can be let go while arrays still point into it.

    Arrays are made over `bytes`, never over the map: an array over a map or a memoryview does not lock it,
    and it could be unmapped under the array. `np.frombuffer` does lock it.
    """

    def __init__(self, file: mmap.mmap) -> None:
        self._file = file
        self._bytes: np.ndarray | None = np.frombuffer(file, np.uint8)

    @property
    def bytes(self) -> np.ndarray:
        if self._bytes is None:
            raise InputError("this checkpoint is closed; keep it open while its tensors are read")
        return self._bytes

    def release_pages(self) -> None:
        if hasattr(mmap, "MADV_DONTNEED") and self._bytes is not None:  # not on Windows
            self._file.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        self._bytes = None
        with suppress(BufferError):  # arrays still share it: it goes with the last of them
            self._file.close()


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """An open model file. Immutable; safe to read from several threads; a context manager.

    Tensors are read from the file when they are touched. Closing is always safe: arrays that were handed out
    stay valid, and the mapping goes with the last of them. While it is mapped the file must not be cut short
    by another program: the operating system then kills the process that reads beyond the new end (SIGBUS),
    which no library can prevent.

    A flipped bit in the weights themselves is not noticed on opening, since that would read the whole file:
    see `verify`.
    """

    path: Path
    format: str
    """"torch", "safetensors", "gguf", or "ggml" for sam3.cpp's files."""
    metadata: Mapping[str, str]
    """Text that a safetensors or GGUF file carries; empty for others."""
    extra: tuple[str, ...]
    """Names of what was saved beside the state dict and ignored, such as "epoch" or "optimizer"."""
    tensors: Mapping[str, TensorInfo]
    _strides: Mapping[str, tuple[int, ...]]
    _checksums: tuple[Checksum, ...]
    _nbytes: int
    _mapping: _Mapping

    def array(self, name: str) -> np.ndarray:
        """The tensor, read-only: f16, bf16 and block types as a float32 copy, all other types as stored.

        A view of the mapped file wherever the stored elements are in row-major order and aligned, which they
        are in the files that torch and safetensors write. 8-bit floats are not converted:
        `UnknownFormatError`.
        """
        bits, dtype = self.raw(name), self.tensors[name].dtype
        if dtype in BLOCKS:
            bits = dequantised(dtype, bits)
        elif dtype == "f16":
            with np.errstate(invalid="ignore"):  # a signalling NaN is no reason for a warning here
                bits = bits.astype(np.float32)
        elif dtype == "bf16":
            wide = bits.astype(np.uint32)
            wide <<= 16
            bits = wide.view(np.float32)
        elif dtype == "bool":
            bits = np.asarray(bits != 0)
        elif dtype.startswith("f8_"):
            raise UnknownFormatError(
                f"{self.path}: tensor {quoted(name)} is stored as {dtype}; masklet computes with f32, f16"
                " and bf16 weights"
            )
        bits.flags.writeable = False
        return bits

    def raw(self, name: str) -> np.ndarray:
        """The stored bits, read-only and row-major: bf16 as uint16, bool and 8-bit floats as uint8; a block
        type as uint8 (..., blocks of a row, bytes of a block), whose layout `ggml_types` tells."""
        info = self._info(name)
        dtype, shape = STORED_DTYPES[info.dtype], stored_shape(name, info.dtype, info.shape)
        strides = self._strides.get(name)
        if not info.nbytes:
            view = np.empty(shape, dtype)
        else:
            in_bytes = None if strides is None else tuple(stride * dtype.itemsize for stride in strides)
            # numpy checks offset, shape and strides against the buffer once more.
            view = np.ndarray(shape, dtype, self._mapping.bytes, info.offset, in_bytes)
        if not (view.flags.c_contiguous and view.flags.aligned):
            view = view.copy(order="C")
        view.flags.writeable = False
        return view

    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal, over the file's size and its tensor table: names, dtypes, shapes, offsets.

        Cheap, and the same for a file wherever it lies. The weights themselves are not read: two trainings of
        one model, saved alike, have the same fingerprint. It tells layouts apart, not weights.
        """
        table = [
            (info.name, info.dtype, info.shape, info.offset, self._strides.get(info.name))
            for info in sorted(self.tensors.values(), key=lambda info: info.name)
        ]
        return hashlib.sha256(json.dumps([self._nbytes, table]).encode()).hexdigest()

    def verify(self) -> bool:
        """Read the whole file and compare it with its checksums; `CorruptFileError` names what differs.

        Returns False where there are none to compare with: in torch files saved with
        `set_crc32_options(False)`, and in the other formats, whose structure was checked on opening.
        """
        damaged = [checksum.name for checksum in self._checksums if self._crc32(checksum) != checksum.crc32]
        if damaged:
            names = ", ".join(quoted(name) for name in damaged[:8]) + (
                " and more" if len(damaged) > 8 else ""
            )
            raise CorruptFileError(
                f"{self.path}: {names} do not match their checksums; download or copy the file again"
            )
        return bool(self._checksums)

    def release_pages(self) -> None:
        """Tell the system that what was read need not stay in memory; reading again brings it back."""
        self._mapping.release_pages()

    def close(self) -> None:
        """Let go of the file; arrays that were handed out stay valid."""
        self._mapping.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {self.format}, {len(self.tensors)} tensors)"

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            close = difflib.get_close_matches(name, self.tensors, n=3)
            hint = f"; close: {', '.join(map(quoted, close))}" if close else ""
            raise TensorMismatchError(
                f"{self.path}: no tensor {quoted(name)} among {len(self.tensors)}{hint}"
            )
        return self.tensors[name]

    def _crc32(self, checksum: Checksum) -> int:
        content, crc32 = self._mapping.bytes, 0
        end = checksum.offset + checksum.nbytes
        for start in range(checksum.offset, end, _VERIFY_STEP):
            stop = min(start + _VERIFY_STEP, end)
            crc32 = zlib.crc32(content[start:stop].data, crc32)
        return crc32


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a model file and read its table of tensors; the weights stay on disk until they are touched.

    Raises `ModelNotFoundError` where there is no such file; `InputError` for a folder or a file that may not
    be read; and the `CheckpointError` that tells what is wrong with it: `UnknownFormatError`,
    `CorruptFileError` or `UnsafeFileError`.
    """
    path = Path(path)
    file = _map(path)
    try:
        contents = read_contents(file)
    except BaseException as error:
        file.close()
        if isinstance(error, CheckpointError):
            raise type(error)(f"{path}: {error}") from error
        raise
    return Checkpoint(
        path=path,
        format=contents.format,
        metadata=MappingProxyType(dict(contents.metadata)),
        extra=contents.extra,
        tensors=MappingProxyType(dict(contents.tensors)),
        _strides=contents.strides,
        _checksums=contents.checksums,
        _nbytes=len(file),
        _mapping=_Mapping(file),
    )


def _map(path: Path) -> mmap.mmap:
    try:
        mode = path.stat().st_mode  # first: opening a pipe would wait for its other end
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not an ordinary file"
            raise InputError(f"{path} is {kind}; give the path of a model file. {KNOWN}")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UnknownFormatError(f"{path}: the file is empty; download or copy it again. {KNOWN}")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except MaskletError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ModelNotFoundError(f"there is no file {str(path)!r}; check the path") from error
    except PermissionError as error:
        raise InputError(f"no permission to read {str(path)!r}; change the file's permissions") from error
    except (OSError, ValueError, OverflowError) as error:
        # An impossible name, a file system without memory maps, or no address space left for one.
        reason = (
            "its name is not possible here"
            if _is_bad_name(error)
            else f"it cannot be mapped into memory ({error})"
        )
        raise InputError(f"cannot open {str(path)!r}: {reason}") from error


def _is_bad_name(error: Exception) -> bool:
    codes = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
    return error.errno in codes if isinstance(error, OSError) else isinstance(error, ValueError)
