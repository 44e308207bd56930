"""sam3.cpp's model files (.ggml), with SAM 2, SAM 2.1 or EdgeTAM: read only.

In: the bytes of a file. Out: `Contents`, with sam3.cpp's names of tensors. Knows nothing about models: the
settings in the header are passed over, since the program that writes them starts from those of the largest
model; the shapes of the tensors tell more.

A file is the magic, version 1, a type and the number of tensors, each of 32 bits; 57 settings, of which the
second names the trunk (1 Hiera, 2 RepViT), and 19 more for RepViT; and the tensors: how many dimensions, the
name's length, ggml's type, the dimensions in ggml's order (the fastest first), the name, zeros up to a
multiple of 32 from the start of the file, and the data. After that project's converters and its quantiser
(github.com/PABannier/sam3.cpp).
"""

from __future__ import annotations

from masklet.errors import CorruptFileError, UnknownFormatError
from masklet.io.cursor import MAX_NAME_BYTES, MAX_TENSORS, Cursor
from masklet.io.ggml_types import ggml_dtype
from masklet.io.tensor_table import Buffer, Contents, TensorInfo, quoted, tensor_nbytes

_VERSION = 1
_SETTINGS = {1: 57, 2: 57 + 19}  # by the kind of trunk
_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
_DTYPES = ("f32", "f16", "q8_0", "q4_1", "q4_0")


def read_ggml(data: Buffer) -> Contents:
    """Read the tables of a sam3.cpp file. Raises the `CheckpointError` that says why it cannot be used."""
    cursor = Cursor(data, position=4)
    version, _, count, _, trunk = cursor.numbers("5i")
    if version != _VERSION:
        raise UnknownFormatError(f"a ggml file of sam3.cpp of version {version}; masklet reads version 1")
    if trunk not in _SETTINGS:
        raise UnknownFormatError(
            f"a ggml file of sam3.cpp whose trunk is of the kind {trunk}; masklet reads 1 (Hiera) and 2"
            " (RepViT)"
        )
    if not 0 <= count <= MAX_TENSORS:
        raise CorruptFileError(f"its header claims {count:,} tensors; at most {MAX_TENSORS:,} are allowed")
    cursor.skip(4 * (_SETTINGS[trunk] - 2))
    tensors: dict[str, TensorInfo] = {}
    for _ in range(count):
        info = _read_tensor(cursor)
        if info.name in tensors:
            raise CorruptFileError(f"it states the tensor {quoted(info.name)} twice")
        tensors[info.name] = info
    if cursor.left:
        raise CorruptFileError(
            f"{cursor.left:,} bytes follow its last tensor; it is damaged: download or copy it again"
        )
    return Contents("ggml", tensors)


def _read_tensor(cursor: Cursor) -> TensorInfo:
    dimensions, length, kind = cursor.numbers("3i")
    if not 0 <= dimensions <= _MAX_DIMENSIONS:
        raise CorruptFileError(
            f"a tensor in front of byte {cursor.position:,} claims {dimensions} dimensions; at most"
            f" {_MAX_DIMENSIONS} are possible"
        )
    shape = cursor.numbers(f"{dimensions}i")[::-1]
    name = cursor.text(length, MAX_NAME_BYTES)
    if min(shape, default=1) < 1:
        raise CorruptFileError(f"tensor {quoted(name)} has the shape {shape}; all sides must be 1 or more")
    dtype = ggml_dtype(name, kind, _DTYPES)
    nbytes = tensor_nbytes(name, dtype, shape)
    cursor.align(_ALIGNMENT)
    return TensorInfo(name, dtype, shape, cursor.skip(nbytes), nbytes)
