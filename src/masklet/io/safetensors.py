"""The safetensors format, read and written without the safetensors package.

In: the bytes of a file; or arrays by name. Out: `Contents`, the table of tensors and where they lie; or a
file. Knows nothing about models.

A file is an 8-byte little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets; strings
under `__metadata__`), and the data, which the tensors must cover from end to end without overlap. There is no
checksum: a flipped bit in a weight, or in a name, cannot be found.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from typing import Any, NoReturn

import numpy as np

from masklet.errors import CorruptFileError, InputError, UnknownFormatError
from masklet.io.atomic import open_atomic
from masklet.io.tensor_table import (
    STORED_DTYPES,
    Buffer,
    Contents,
    TensorInfo,
    dtype_name,
    quoted,
    stored_bytes,
    tensor_nbytes,
)

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_MAX_HEADER_ITEMS = 4_000_000  # some 500,000 tensors; bounds what the parsed header takes in memory
_METADATA = "__metadata__"
_ALIGNMENT = 64

_DTYPES = {
    "F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "F8_E4M3": "f8_e4m3", "F8_E5M2": "f8_e5m2",
    "F8_E8M0": "f8_e8m0", "C64": "c64", "I64": "i64", "I32": "i32", "I16": "i16", "I8": "i8",
    "U64": "u64", "U32": "u32", "U16": "u16", "U8": "u8", "BOOL": "bool",
}  # fmt: skip
_WRITTEN_DTYPES = {ours: theirs for theirs, ours in _DTYPES.items()}


def read_safetensors(data: Buffer) -> Contents:
    """Read the header of a safetensors file. Raises the `CheckpointError` that says why it cannot be used."""
    (length,) = struct.unpack("<Q", data[:8]) if len(data) >= 8 else (0,)
    start = 8 + length
    if length > MAX_HEADER_BYTES or start > len(data) or length < 2:
        raise CorruptFileError(
            f"its safetensors header claims {length:,} bytes, in a file of {len(data):,}; at most"
            f" {MAX_HEADER_BYTES:,} are allowed. The file is damaged or cut off; download or copy it again"
        )
    header = _parse(data[8:start])
    metadata = header.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CorruptFileError("its __metadata__ is not a map from text to text")
    tensors = [_tensor(name, entry, start) for name, entry in header.items()]
    tensors.sort(key=lambda info: (info.offset, info.nbytes))
    end = start
    for info in tensors:
        if info.offset != end:
            relation = "overlaps the tensor before it" if info.offset < end else "leaves a gap before it"
            raise CorruptFileError(f"tensor {quoted(info.name)} {relation}")
        end += info.nbytes
    if end != len(data):
        raise CorruptFileError(
            f"its tensors end at byte {end:,}, but the file has {len(data):,}; it is damaged or cut off:"
            " download or copy it again"
        )
    return Contents("safetensors", {info.name: info for info in tensors}, metadata)


def _parse(header: bytes) -> dict[str, Any]:
    if sum(header.count(mark) for mark in (b",", b"[", b"{")) > _MAX_HEADER_ITEMS:
        raise CorruptFileError(
            f"its safetensors header has more than {_MAX_HEADER_ITEMS:,} items; no model needs that many"
        )
    try:
        parsed = json.loads(
            header.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested without end
        raise CorruptFileError(
            f"its safetensors header is not valid JSON ({type(error).__name__})"
        ) from error
    if not isinstance(parsed, dict) or header[:1] != b"{":
        raise CorruptFileError("its safetensors header is not a JSON object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise CorruptFileError(f"its safetensors header states {quoted(name)} twice")
        found[name] = value
    return found


def _integer(text: str) -> int:
    if len(text) > 20:  # 2**64 has 20 digits
        raise CorruptFileError("its safetensors header has a number that no size or offset can reach")
    return int(text)


def _refuse_number(text: str) -> NoReturn:
    raise CorruptFileError(
        f"its safetensors header has the number {quoted(text)}; all sizes and offsets are whole"
    )


def _tensor(name: str, entry: Any, start: int) -> TensorInfo:
    """One checked line of the header; offsets become absolute."""
    match entry:
        case {"dtype": str(stated), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise CorruptFileError(f"tensor {quoted(name)} lacks a dtype, a shape or two data_offsets")
    # JSON's true is an int to `isinstance`, hence `type`.
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise CorruptFileError(
            f"tensor {quoted(name)} has a shape or offsets that are not whole numbers of at least 0"
        )
    dtype = _DTYPES.get(stated)
    if dtype is None:
        raise UnknownFormatError(
            f"tensor {quoted(name)} has the dtype {quoted(stated)}; masklet reads {', '.join(_DTYPES)}. If"
            " that is no dtype at all, the file is damaged"
        )
    nbytes = tensor_nbytes(name, dtype, tuple(shape))
    if end - begin != nbytes:
        raise CorruptFileError(
            f"tensor {quoted(name)} of type {stated} and shape {shape} needs {nbytes} bytes, but its offsets"
            f" span {end - begin}"
        )
    return TensorInfo(name, dtype, tuple(shape), start + begin, nbytes)


def write_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays as a safetensors file, all or nothing; the same input gives the same bytes, in any order.

    Types: float64, 32 and 16, all integers, bool, complex64, and bfloat16 and the 8-bit floats as arrays of
    the `ml_dtypes` package (`bits.view(ml_dtypes.bfloat16)` for the uint16 bits that `Checkpoint.raw`
    returns). The data begin at a multiple of 64 bytes and go from wide types to narrow ones, so that every
    tensor is aligned to its own type and can be mapped without a copy.

    Raises `InputError` for a name or type that cannot be stored, and `OutputError` where the disk refuses.
    """
    header: dict[str, Any] = {}
    if metadata:
        if not all(isinstance(text, str) for item in metadata.items() for text in item):
            raise InputError("metadata of a safetensors file must be text by text")
        header[_METADATA] = dict(sorted(metadata.items()))
    dtypes = {name: _written_dtype(name, array) for name, array in tensors.items()}
    names = sorted(tensors, key=lambda name: (-STORED_DTYPES[_DTYPES[dtypes[name]]].itemsize, name))
    end = 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": dtypes[name],
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise InputError(
            f"a safetensors header may have {MAX_HEADER_BYTES:,} bytes; names and metadata take {len(text):,}"
        )
    with open_atomic(path) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            file.write(stored_bytes(tensors[name]).data)


def _written_dtype(name: str, array: np.ndarray) -> str:
    if not isinstance(name, str) or name == _METADATA:
        raise InputError(f"{name!r} cannot be the name of a tensor in a safetensors file")
    dtype = _WRITTEN_DTYPES.get(dtype_name(name, array))
    if dtype is None:
        raise InputError(
            f"tensor {quoted(name)} has the type {array.dtype}, which safetensors files cannot store"
        )
    return dtype
