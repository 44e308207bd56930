"""ggml's tensor types: their numbers in files, and the block types, which store rows of weights as small
blocks of integers, each block with a scale of its own.

In: stored blocks (..., blocks of a row, bytes). Out: float32 (..., elements of a row), bit for bit what ggml
and the `gguf` package make of them. Knows nothing about files.

A block holds 32 elements, little-endian:

    q8_0  f16 scale, 32 signed bytes                     scale * code
    q4_0  f16 scale, 16 bytes with two codes each        scale * (code - 8)
    q4_1  f16 scale, f16 minimum, 16 bytes like q4_0     scale * code + minimum

The low halves of the 16 bytes are elements 0 to 15, the high halves 16 to 31.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from masklet.errors import UnknownFormatError
from masklet.io.tensor_table import BLOCKS, quoted

GGML_TYPES: Mapping[int, str] = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1", 10: "q2_k",
    11: "q3_k", 12: "q4_k", 13: "q5_k", 14: "q6_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs",
    19: "iq1_s", 20: "iq4_nl", 21: "iq3_s", 22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32",
    27: "i64", 28: "f64", 29: "iq1_m", 30: "bf16", 34: "tq1_0", 35: "tq2_0", 39: "mxfp4", 40: "nvfp4",
    41: "q1_0",
}  # fmt: skip
"""ggml's numbers of its tensor types, and our names."""

_LAYOUTS = {
    "q8_0": np.dtype([("scale", "<f2"), ("codes", "i1", 32)]),
    "q4_1": np.dtype([("scale", "<f2"), ("minimum", "<f2"), ("codes", "u1", 16)]),
    "q4_0": np.dtype([("scale", "<f2"), ("codes", "u1", 16)]),
}
_HALF = 16


def ggml_dtype(name: str, number: int, known: tuple[str, ...]) -> str:
    """Our name of a tensor's ggml type. Raises `UnknownFormatError` for one that is not `known`."""
    dtype = GGML_TYPES.get(number, f"number {number}")
    if dtype not in known:
        raise UnknownFormatError(
            f"tensor {quoted(name)} is stored as ggml's type {dtype}; masklet reads {', '.join(known)}"
        )
    return dtype


def dequantised(dtype: str, stored: np.ndarray) -> np.ndarray:
    """The weights of stored blocks, float32. Beside them it needs memory for one code of each element."""
    length, nbytes = BLOCKS[dtype]
    *rows, count, _ = stored.shape
    values = np.empty((*rows, count * length), np.float32)
    blocks = stored.reshape(-1, nbytes).view(_LAYOUTS[dtype])[:, 0]
    weights = values.reshape(-1, length)
    with np.errstate(all="ignore"):  # scales of a damaged file may be infinite
        scales, codes = blocks["scale"].astype(np.float32)[:, None], blocks["codes"]
        if dtype == "q8_0":
            np.multiply(codes, scales, out=weights)
            return values
        for part, half in ((weights[:, :_HALF], codes & 15), (weights[:, _HALF:], codes >> 4)):
            np.multiply(half.view(np.int8) - np.int8(8) if dtype == "q4_0" else half, scales, out=part)
        if dtype == "q4_1":
            weights += blocks["minimum"].astype(np.float32)[:, None]
    return values
