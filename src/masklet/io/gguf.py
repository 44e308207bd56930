"""The GGUF format, versions 2 and 3, read without the gguf package, through which `quant` writes it.

In: the bytes of a file. Out: `Contents`. Knows nothing about models, only that files of the architecture
`ARCHITECTURE` are masklet's.

A file is the magic, a version, how many tensors and fields there are; the fields (name, type, value); a line
for each tensor (name, dimensions, ggml's type, offset); and the data in the order of the lines, each tensor
at the next multiple of `general.alignment` behind the one before it. Numbers are little-endian; dimensions
come in ggml's order, the fastest first. There is no checksum. Described in ggml's docs/gguf.md.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from masklet.errors import CorruptFileError, UnknownFormatError
from masklet.io.cursor import MAX_NAME_BYTES, MAX_TENSORS, Cursor
from masklet.io.ggml_types import ggml_dtype
from masklet.io.tensor_table import Buffer, Contents, TensorInfo, quoted, tensor_nbytes

ARCHITECTURE = "masklet"

_VERSIONS = (2, 3)
_DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_1", "q4_0")
_MAX_DIMENSIONS = 4  # ggml's own limit
_MAX_ALIGNMENT = 1 << 16
_MAX_FIELDS = 10_000
_MAX_TEXT_BYTES = 1 << 24
_MAX_TEXTS = 1_000_000  # in all arrays together, which are passed over text by text
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
_UINT32, _TEXT, _ARRAY = 4, 8, 9  # types of values, beside the scalars above


@dataclass
class _Fields:
    """What is kept of the fields: those that are text, and the alignment of tensors."""

    texts: dict[str, str] = field(default_factory=dict)
    alignment: int = 32
    skipped: int = 0  # texts in arrays


def read_gguf(data: Buffer) -> Contents:
    """Read the header of a GGUF file. Raises the `CheckpointError` that says why it cannot be used."""
    cursor = Cursor(data, position=4)
    (version,) = cursor.numbers("I")
    if version not in _VERSIONS:
        order = " or of big-endian numbers" if version and not version & 0xFFFF else ""
        raise UnknownFormatError(
            f"a GGUF file of version {version}{order}; masklet reads versions 2 and 3, little-endian"
        )
    tensor_count, field_count = cursor.numbers("QQ")
    for count, what, limit in ((tensor_count, "tensors", MAX_TENSORS), (field_count, "fields", _MAX_FIELDS)):
        if count > limit:
            raise CorruptFileError(f"its header claims {count:,} {what}; at most {limit:,} are allowed")
    fields = _read_fields(cursor, field_count)
    lines = [_read_line(cursor) for _ in range(tensor_count)]
    cursor.align(fields.alignment)
    return Contents("gguf", _placed(lines, cursor, fields.alignment), fields.texts)


def _read_fields(cursor: Cursor, count: int) -> _Fields:
    fields, names = _Fields(), set()
    for _ in range(count):
        (length,) = cursor.numbers("Q")
        name = cursor.text(length, MAX_NAME_BYTES)
        if name in names:
            raise CorruptFileError(f"its header states {quoted(name)} twice")
        names.add(name)
        (kind,) = cursor.numbers("I")
        if kind == _TEXT:
            (length,) = cursor.numbers("Q")
            fields.texts[name] = cursor.text(length, _MAX_TEXT_BYTES)
        elif name == "general.alignment":
            fields.alignment = _alignment(cursor, kind)
        elif kind == _ARRAY:
            fields.skipped += _skip_array(cursor, name, _MAX_TEXTS - fields.skipped)
        else:
            cursor.skip(_size(kind, name))
        if name == "general.architecture":  # known early: other models' files may have long arrays behind it
            _check_architecture(fields.texts.get(name))
    if "general.architecture" not in names:
        _check_architecture(None)
    return fields


def _check_architecture(architecture: str | None) -> None:
    if architecture != ARCHITECTURE:
        told = "without one" if architecture is None else quoted(architecture)
        raise UnknownFormatError(
            f"a GGUF file of another architecture ({told}); masklet reads {ARCHITECTURE!r}, which `masklet"
            " quantize` writes"
        )


def _alignment(cursor: Cursor, kind: int) -> int:
    value = cursor.numbers("I")[0] if kind == _UINT32 else 0
    if not 0 < value <= _MAX_ALIGNMENT or value & (value - 1):
        raise CorruptFileError(
            f"its general.alignment is no power of two up to {_MAX_ALIGNMENT:,} as a uint32"
        )
    return value


def _size(kind: int, name: str) -> int:
    if kind not in _SCALARS:
        raise CorruptFileError(
            f"its field {quoted(name)} has a value of the type {kind}, which does not exist"
        )
    return struct.calcsize(f"<{_SCALARS[kind]}")


def _skip_array(cursor: Cursor, name: str, limit: int) -> int:
    """Pass over an array; gives how many texts were in it, at most `limit`."""
    kind, count = cursor.numbers("IQ")
    if kind != _TEXT:
        cursor.skip(_size(kind, name) * count)
        return 0
    if count > limit:
        raise CorruptFileError(
            f"its field {quoted(name)} claims {count:,} texts; at most {_MAX_TEXTS:,} are allowed in a header"
        )
    for _ in range(count):
        cursor.skip(*cursor.numbers("Q"))
    return count


def _read_line(cursor: Cursor) -> TensorInfo:
    """One tensor, checked in itself; its offset still counts from the beginning of the data."""
    (length,) = cursor.numbers("Q")
    name = cursor.text(length, MAX_NAME_BYTES)
    (dimensions,) = cursor.numbers("I")
    if dimensions > _MAX_DIMENSIONS:
        raise CorruptFileError(
            f"tensor {quoted(name)} claims {dimensions} dimensions; at most {_MAX_DIMENSIONS} are possible"
        )
    shape = cursor.numbers(f"{dimensions}Q")[::-1]
    kind, offset = cursor.numbers("IQ")
    dtype = ggml_dtype(name, kind, _DTYPES)
    return TensorInfo(name, dtype, shape, offset, tensor_nbytes(name, dtype, shape))


def _placed(lines: list[TensorInfo], cursor: Cursor, alignment: int) -> dict[str, TensorInfo]:
    """The tensors with their places in the file, which they must cover from end to end, but for padding."""
    start, placed = cursor.position, {}
    for info in lines:
        if info.name in placed:
            raise CorruptFileError(f"its header states the tensor {quoted(info.name)} twice")
        if start + info.offset != cursor.position:
            raise CorruptFileError(
                f"tensor {quoted(info.name)} is said to begin at byte {start + info.offset:,}, but the one"
                f" before it ends at {cursor.position:,}"
            )
        offset = cursor.skip(info.nbytes)
        placed[info.name] = TensorInfo(info.name, info.dtype, info.shape, offset, info.nbytes)
        cursor.skip(min(-cursor.position % alignment, cursor.left))  # the last one's padding may be missing
    if cursor.left:
        raise CorruptFileError(
            f"{cursor.left:,} bytes follow its last tensor; it is damaged: download or copy it again"
        )
    return placed
