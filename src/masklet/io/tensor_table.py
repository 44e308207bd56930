"""What a checkpoint reader hands back: a table of tensors and where their bytes lie in the file.

In: numbers that a reader found. Out: frozen records with absolute offsets, and the one table of dtypes, which
writers share. Knows nothing about any file format.
"""

from __future__ import annotations

import mmap
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from masklet.errors import CorruptFileError, InputError

Buffer = bytes | mmap.mmap
"""What readers read from: both slice to bytes, and neither is copied as a whole."""

STORED_DTYPES: Mapping[str, np.dtype] = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),  # numpy has no bfloat16: its bits
    "f8_e4m3": np.dtype("u1"),  # the 8-bit floats: listed, kept as bits, not converted
    "f8_e5m2": np.dtype("u1"),
    "f8_e8m0": np.dtype("u1"),
    "c64": np.dtype("<c8"),
    "c128": np.dtype("<c16"),
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
    "i16": np.dtype("<i2"),
    "i8": np.dtype("i1"),
    "u64": np.dtype("<u8"),
    "u32": np.dtype("<u4"),
    "u16": np.dtype("<u2"),
    "u8": np.dtype("u1"),
    "bool": np.dtype("u1"),  # a damaged byte above 1 would be undefined behaviour in a numpy bool
    "q8_0": np.dtype("u1"),  # ggml's blocks: see `BLOCKS`
    "q4_1": np.dtype("u1"),
    "q4_0": np.dtype("u1"),
}
"""Our dtype names and the numpy type that holds the stored bits; files are little-endian."""


class Block(NamedTuple):
    """What a block type stores together: that many elements of a row, in that many bytes."""

    length: int
    nbytes: int


BLOCKS: Mapping[str, Block] = {"q8_0": Block(32, 34), "q4_1": Block(32, 20), "q4_0": Block(32, 18)}
"""The block types; what lies in the bytes, `ggml_types` tells."""

_NUMPY_NAMES = {
    "float64": "f64", "float32": "f32", "float16": "f16", "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3", "float8_e5m2": "f8_e5m2", "float8_e8m0fnu": "f8_e8m0", "complex64": "c64",
    "complex128": "c128",
    "int64": "i64", "int32": "i32", "int16": "i16", "int8": "i8",
    "uint64": "u64", "uint32": "u32", "uint16": "u16", "uint8": "u8", "bool": "bool",
}  # fmt: skip

_MAX_DIMENSIONS = 32  # numpy 1's limit, and far above any network's
_MAX_BYTES = 1 << 62  # products stay inside a signed 64-bit integer, which numpy uses


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint.

    `offset` is the absolute position of the first element in the file, `nbytes` the size of the tensor's
    elements. For the rare tensor whose stored elements are not in row-major order (a transposed or expanded
    view in a torch file), the bytes at `offset` are not the tensor in its shape: `Checkpoint.array` puts them
    in order. Of a block type (`BLOCKS`), `shape` is that of the tensor, not of its blocks.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Checksum:
    """The CRC-32 that the file states for a range of its bytes."""

    name: str
    offset: int
    nbytes: int
    crc32: int


@dataclass(frozen=True)
class Contents:
    """What a reader learns from one file; `strides` (in elements) only of tensors that are not row-major."""

    format: str
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    extra: tuple[str, ...] = ()
    strides: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    checksums: tuple[Checksum, ...] = ()


def tensor_nbytes(name: str, dtype: str, shape: tuple[int, ...]) -> int:
    """Size of a tensor's elements; `CorruptFileError` where no real tensor could have that shape."""
    if len(shape) > _MAX_DIMENSIONS:
        raise CorruptFileError(
            f"tensor {quoted(name)} claims {len(shape)} dimensions; at most {_MAX_DIMENSIONS} are possible"
        )
    nbytes = STORED_DTYPES[dtype].itemsize
    for size in stored_shape(name, dtype, shape):  # an empty tensor's other dimensions must fit too
        nbytes *= max(size, 1)
        if nbytes > _MAX_BYTES:
            raise CorruptFileError(f"tensor {quoted(name)} claims more elements than any file can hold")
    return 0 if 0 in shape else nbytes


def stored_shape(name: str, dtype: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what is stored: that of the tensor; for block types (..., blocks of a row, bytes).

    `CorruptFileError` where blocks do not fill the rows.
    """
    if dtype not in BLOCKS:
        return shape
    length, nbytes = BLOCKS[dtype]
    if not shape or shape[-1] % length:
        raise CorruptFileError(
            f"tensor {quoted(name)} has the shape {shape}, whose rows cannot be blocks of {length} ({dtype})"
        )
    return *shape[:-1], shape[-1] // length, nbytes


def dtype_name(name: str, array: np.ndarray) -> str:
    """Our name for an array's type; bfloat16 and the 8-bit floats are those of the `ml_dtypes` package."""
    if not isinstance(array, np.ndarray):
        raise InputError(f"tensor {quoted(name)} is a {type(array).__name__}; give a numpy array")
    if array.dtype.name not in _NUMPY_NAMES:
        raise InputError(
            f"tensor {quoted(name)} has the type {array.dtype}; files can store {', '.join(_NUMPY_NAMES)}"
        )
    return _NUMPY_NAMES[array.dtype.name]


def stored_bytes(array: np.ndarray) -> np.ndarray:
    """The bytes of an array as files store them: row-major, little-endian. A copy only where they differ."""
    stored = array.dtype.newbyteorder("<") if array.dtype.byteorder == ">" else array.dtype
    return np.ascontiguousarray(array, dtype=stored).reshape(-1).view(np.uint8)


def quoted(text: str) -> str:
    """A name from an untrusted file, fit for a message: escaped, and shortened where it is very long."""
    return _SHORT.repr(text)


_SHORT = reprlib.Repr()
_SHORT.maxstring = 160
