"""Boolean masks as COCO's run lengths.

In: masks (H, W) bool, run-length encodings. Out: the other of the two. Knows nothing about files or models.

COCO's RLE is `{"size": [H, W], "counts": ...}`: the lengths of alternating stretches of 0 and 1, 0 first,
going down the columns. Here `counts` is the compressed text that pycocotools writes, as `str`, so that it
fits into JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from masklet.errors import InputError

# A few characters of RLE can claim any size. The largest picture that Pillow opens by default has 0.18
# billion pixels.
MAX_PIXELS = 1 << 30
_MAX_TEXT_BYTES_PER_COUNT = 7  # 5 bits each: lengths and differences of masks under 2^32 pixels


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO RLE of a boolean (H, W) mask: {"size": [H, W], "counts": str}, the same text as pycocotools'."""
    mask = as_mask(mask)
    return encode_part(mask, (0, 0), (mask.shape[0], mask.shape[1]))


def encode_part(
    pixels: np.ndarray, corner_xy: tuple[int, int], size_hw: tuple[int, int], *, compressed: bool = True
) -> dict[str, Any]:
    """COCO RLE of a mask (H, W) that is empty but for a window (h, w) whose top left pixel is `corner_xy`.

    Not `compressed`, "counts" is a list of lengths.
    """
    (height, width), (x, y) = size_hw, corner_xy
    rows, columns = pixels.shape
    # Where the value changes on the way down the columns. Comparing whole rows is many times faster on 12
    # million pixels than transposing the mask; few changes are left to sort.
    below, column = np.divmod(np.flatnonzero(pixels[1:] != pixels[:-1]), columns)
    top, bottom = np.flatnonzero(pixels[0]), np.flatnonzero(pixels[-1])
    parts = [(x + column) * height + y + below + 1, (x + top) * height + y, (x + bottom) * height + y + rows]
    # A stretch that goes on at the top of the next column ends and begins at the same place: no change.
    changes, times = np.unique(np.concatenate(parts), return_counts=True)
    changes = changes[(times == 1) & (changes < height * width)]
    counts = np.diff(np.concatenate([[0], changes, [height * width]]))
    return {"size": [height, width], "counts": _pack(counts) if compressed else counts.tolist()}


def decode_rle(rle: Mapping[str, Any]) -> np.ndarray:
    """The boolean (H, W) mask of a COCO RLE, compressed (str or bytes) or not (a list of lengths).

    Raises `InputError` for anything that is not the complete encoding of one mask.
    """
    height, width, counts = _parse(rle)
    values = np.zeros(len(counts), np.bool_)
    values[1::2] = True
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def area(rle: Mapping[str, Any]) -> int:
    """The number of pixels in the mask of a COCO RLE, without decoding it. Raises like `decode_rle`."""
    return int(_parse(rle)[2][1::2].sum())


def _pack(counts: np.ndarray) -> str:
    """pycocotools' text of run lengths: from the fourth on differences to the last but one, 5 bits a time.

    The lowest bits come first; bit 5 says that more follow; the last character's bit 4 is the sign.
    """
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    columns, used = [], []
    more = np.ones(len(rest), np.bool_)
    while more.any():
        used.append(more)
        low = rest & 0x1F
        rest = rest >> 5
        more = more & np.where(low & 0x10, rest != -1, rest != 0)
        columns.append((low + np.where(more, 0x20, 0) + 48).astype(np.uint8))
    return np.stack(columns, axis=1)[np.stack(used, axis=1)].tobytes().decode("ascii")


def _unpack(text: bytes) -> np.ndarray:
    """Run lengths of pycocotools' text; not yet checked against a size."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    if codes.size == 0 or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise InputError("The counts of an RLE are not text that COCO's tools write, or they are cut off.")
    last = np.flatnonzero((codes & 0x20) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    if (last - first).max() >= _MAX_TEXT_BYTES_PER_COUNT:
        raise InputError("The counts of an RLE hold a number that is too large for any mask.")
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    counts = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    negative = (codes[last] & 0x10) != 0
    counts[negative] -= np.int64(1) << (5 * (place[last[negative]] + 1))
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def _parse(rle: Mapping[str, Any]) -> tuple[int, int, np.ndarray]:
    """Height, width and run lengths (int64), which together cover exactly height x width pixels."""
    if not isinstance(rle, Mapping) or not {"size", "counts"} <= rle.keys():
        raise InputError('An RLE must be a mapping with "size": [height, width] and "counts".')
    height, width = _size(rle["size"])
    counts = rle["counts"]
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    counts = _unpack(counts) if isinstance(counts, bytes) else _as_lengths(counts)
    # Bounded one by one first, so that the sum cannot wrap around.
    if counts.min() < 0 or counts.max() > height * width or counts.sum() != height * width:
        raise InputError(
            f"The counts of an RLE do not cover its size: {height} x {width} = {height * width} pixels."
        )
    return height, width, counts


def _size(size: Any) -> tuple[int, int]:
    try:
        height, width = (int(number) for number in size if number == int(number))
    except (TypeError, ValueError, OverflowError):
        height = width = 0
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise InputError(
            f"The size of an RLE must be [height, width], at least 1 each and at most {MAX_PIXELS} pixels "
            f"together, got {str(size)[:80]}."
        )
    return height, width


def _as_lengths(counts: Any) -> np.ndarray:
    try:
        lengths = np.asarray(counts)
    except (TypeError, ValueError):
        lengths = np.empty(0)
    if lengths.ndim != 1 or lengths.size == 0 or lengths.dtype.kind not in "iu":
        raise InputError("The counts of an RLE must be compressed text or a list of whole numbers.")
    return lengths.astype(np.int64)  # what is too large for it turns negative, which `_parse` refuses


def as_mask(mask: Any) -> np.ndarray:
    """`mask` as (H, W) bool. Raises `InputError` for anything else."""
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        hint = "" if mask.dtype == np.bool_ else " For logits or 0 / 1 values: mask > 0."
        raise InputError(f"A mask must be (H, W) bool, at least 1 x 1, got {mask.shape} {mask.dtype}.{hint}")
    return mask
