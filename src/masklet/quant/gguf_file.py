"""GGUF files, written through the gguf package.

In: lines of tensors, their stored arrays one after the other, and text. Out: a file, all or nothing. Knows
nothing about models.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from io import BufferedWriter
from typing import NamedTuple, cast

import numpy as np

from masklet.errors import InputError
from masklet.families.short_names import MAX_CHARACTERS, lengthened, shortened
from masklet.io.atomic import open_atomic
from masklet.io.gguf import ARCHITECTURE
from masklet.io.tensor_table import BLOCKS, quoted, stored_bytes

_MAX_DIMENSIONS = 4
_FILE_TYPES = {
    "f16": 1,
    "q4_0": 2,
    "q4_1": 3,
    "q8_0": 7,
    "bf16": 32,
}  # ggml's numbers for most of the tensors
_QUANTIZATION_VERSION = 2  # of the blocks' layouts


class Line(NamedTuple):
    """One tensor of the header, under its canonical key."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def write_gguf(
    path: str | os.PathLike[str],
    lines: Sequence[Line],
    arrays: Iterable[np.ndarray],
    *,
    mostly: str,
    metadata: Mapping[str, str],
) -> None:
    """Write a GGUF file; `arrays` are the stored tensors in the order of `lines`, asked for one by one.

    Raises `InputError` for a tensor that the format cannot hold, `OutputError` where the disk refuses.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.gguf_writer import WriterState

    writer = GGUFWriter(None, ARCHITECTURE)
    writer.add_file_type(_FILE_TYPES[mostly])
    if mostly in BLOCKS:
        writer.add_quantization_version(_QUANTIZATION_VERSION)
    for name, text in sorted(metadata.items()):
        writer.add_string(name, text)
    for line in lines:
        kind = GGMLQuantizationType[line.dtype.upper()]
        writer.add_tensor_info(_name(line), line.shape, np.dtype(np.float32), line.nbytes, raw_dtype=kind)
    with open_atomic(path) as file:
        writer.fout = [cast(BufferedWriter, file)]  # a file of its own would not be atomic
        writer.state = WriterState.EMPTY
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.write_padding(file, file.tell())
        for line, array in zip(lines, arrays, strict=True):
            file.write(stored_bytes(array).data)
            writer.write_padding(file, line.nbytes)


def _name(line: Line) -> str:
    name = shortened(line.key)
    if len(name.encode()) > MAX_CHARACTERS or lengthened(name) != line.key:
        raise InputError(
            f"tensor {quoted(line.key)} cannot be named in a GGUF file, whose names have at most"
            f" {MAX_CHARACTERS} bytes; rename it"
        )
    if len(line.shape) > _MAX_DIMENSIONS:
        raise InputError(
            f"tensor {quoted(line.key)} has {len(line.shape)} dimensions; GGUF files hold at most"
            f" {_MAX_DIMENSIONS}"
        )
    return name
