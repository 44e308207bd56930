"""Opening a model file: what is it, what is in it, and its tensors as arrays that share the file's memory.

In: a path. Out: a `Checkpoint`. The format is told by the first bytes, never by the name. Knows nothing about
models: which tensors belong to which network is decided in `families`.
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
from masklet.io.tensor_table import STORED_DTYPES, Checksum, Contents, TensorInfo, quoted

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

_KNOWN = "masklet reads PyTorch files (.pt, .pth; torch.save of 1.6 or later) and .safetensors"
_VERIFY_STEP = 1 << 24  # bytes; between steps, Ctrl-C is heard
_HEAD_BYTES = 512


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
    """"torch" or "safetensors"."""
    metadata: Mapping[str, str]
    """Text that a safetensors file carries; empty for torch files."""
    extra: tuple[str, ...]
    """Names of what was saved beside the state dict and ignored, such as "epoch" or "optimizer"."""
    tensors: Mapping[str, TensorInfo]
    _strides: Mapping[str, tuple[int, ...]]
    _checksums: tuple[Checksum, ...]
    _nbytes: int
    _mapping: _Mapping

    def array(self, name: str) -> np.ndarray:
        """The tensor, read-only: f16 and bf16 as a float32 copy, all other types as stored.

        A view of the mapped file wherever the stored elements are in row-major order and aligned, which they
        are in the files that torch and safetensors write. 8-bit floats are not converted:
        `UnknownFormatError`.
        """
        bits, dtype = self.raw(name), self.tensors[name].dtype
        if dtype == "f16":
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
        """The stored bits, read-only and row-major: bf16 as uint16, bool and 8-bit floats as uint8."""
        info = self._info(name)
        dtype = STORED_DTYPES[info.dtype]
        strides = self._strides.get(name)
        if not info.nbytes:
            view = np.empty(info.shape, dtype)
        else:
            in_bytes = None if strides is None else tuple(stride * dtype.itemsize for stride in strides)
            # numpy checks offset, shape and strides against the buffer once more.
            view = np.ndarray(info.shape, dtype, self._mapping.bytes, info.offset, in_bytes)
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

        Returns False where there are none to compare with: in safetensors files, whose structure was checked
        on opening, and in torch files saved with `set_crc32_options(False)`.
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
        contents = _read(file)
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
            raise InputError(f"{path} is {kind}; give the path of a model file. {_KNOWN}")
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise UnknownFormatError(f"{path}: the file is empty; download or copy it again. {_KNOWN}")
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


def _read(file: mmap.mmap) -> Contents:
    # The readers and what they need are imported here: a cached model of one format never needs the other.
    head = file[:_HEAD_BYTES]
    if head.startswith(b"PK\x03\x04"):
        from masklet.io.torch_file import read_torch

        return read_torch(file)
    if _looks_like_safetensors(head, len(file)):
        from masklet.io.safetensors import read_safetensors

        return read_safetensors(file)
    if head[:2] != b"PK" and file[-22:-18] == b"PK\x05\x06":
        raise CorruptFileError(
            "its beginning is damaged (it ends like a PyTorch file); download or copy it again"
        )
    raise UnknownFormatError(f"{_describe(head)}. {_KNOWN}")


def _looks_like_safetensors(head: bytes, nbytes: int) -> bool:
    """A header length and `{"`, one of which may be damaged. In text the length would be astronomical."""
    plausible = int.from_bytes(head[:8], "little") + 8 <= nbytes
    return (head[8:9] == b"{" and not _is_text(head)) or (plausible and head[9:10] == b'"')


_MAGICS = (
    (
        b"\x80",
        "a bare Python pickle, such as Detectron2's .pkl; load it where it was made, and torch.save its"
        " state dict",
    ),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "compressed with gzip; unpack it first"),
    (b"BZh", "compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ\x00", "compressed with xz; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"GGUF", "a GGUF file, which this version does not read"),
    (b"2mas", "a ggml file of sam3.cpp, which this version does not read"),
    (b"3mas", "a ggml file of sam3.cpp, which this version does not read"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras writes them"),
    (b"\x89PNG", "a picture (PNG), not a model"),
    (b"\xff\xd8\xff", "a picture (JPEG), not a model"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, not the model itself; run `git lfs pull` where it was cloned, or download it",
    ),
)


def _describe(head: bytes) -> str:
    """What a file that is not a checkpoint seems to be."""
    from masklet.io.torch_file import LEGACY_MAGIC

    if LEGACY_MAGIC in head[:32]:
        return (
            "a torch file in the legacy format, from before PyTorch 1.6; convert it with PyTorch:"
            ' torch.save(torch.load("old.pt", map_location="cpu"), "new.pt")'
        )
    for magic, description in _MAGICS:
        if head.startswith(magic):
            return description
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    # In protocol buffers' encoding: ir_version, a small number, and then a text or message field.
    if head[:1] == b"\x08" and head[1:2] <= b"\x20" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return "an ONNX graph, which has no checkpoint's names; give the checkpoint that it was exported from"
    if not any(head):
        return "it begins with zeros, as a download that was cut off; download it again"
    if _is_text(head):
        text = head.decode("utf-8", "replace").lstrip("\ufeff \t\r\n")
        if text[:200].lower().startswith(("<!doctype html", "<html", "<head", "<?xml", "<!--")):
            return (
                "a web page saved as a model; download again, the file itself and not the page that shows it"
            )
        return f"a text file, which begins {quoted(text[:40])}"
    return f"of unknown format; its first bytes are {head[:8].hex(' ')}"


def _is_text(head: bytes) -> bool:
    """Text in any encoding that keeps ASCII's control characters out."""
    return all(byte >= 32 or byte in b"\t\r\n\f" for byte in head)
