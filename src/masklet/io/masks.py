"""Masks as files and as text.

In: boolean masks (H, W), COCO run-length encodings, mask files. Out: the same in another form, boxes and
areas, and the logits that a model takes as a mask prompt. Knows nothing about models or pictures under the
masks.

COCO's RLE is `{"size": [H, W], "counts": ...}`: the lengths of alternating stretches of 0 and 1, 0 first,
going down the columns. Here `counts` is the compressed text that pycocotools writes, as `str`, so that it
fits into JSON.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from masklet.errors import InputError, MaskletError
from masklet.io.image import (
    check_image_suffix,
    converted,
    has_transparency,
    is_deep,
    open_picture,
    write_image,
)

if TYPE_CHECKING:
    from PIL import Image

# A mask prompt made of a black and white picture: logits of sigmoid 0.99995 and 0.00005, SAM 2's own (its
# video path turns masks into memories with scale 20 and bias -10).
MASK_PROMPT_LOGIT = 10.0

# A few characters of RLE can claim any size. The largest picture that Pillow opens by default has 0.18
# billion pixels.
_MAX_PIXELS = 1 << 30
_MAX_TEXT_BYTES_PER_COUNT = 7  # 5 bits each: lengths and differences of masks under 2^32 pixels


# -------------------------------------------------------------------------------------------------------- RLE


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO RLE of a boolean (H, W) mask: {"size": [H, W], "counts": str}, the same text as pycocotools'."""
    mask = _as_mask(mask)
    height, width = mask.shape
    # Where the value changes on the way down the columns. Comparing whole rows is many times faster on 12
    # million pixels than transposing the mask; few changes are left to sort.
    below, column = np.divmod(np.flatnonzero(mask[1:] != mask[:-1]), width)
    within = column * height + below + 1
    between = (np.flatnonzero(mask[-1, :-1] != mask[0, 1:]) + 1) * height
    changes = np.sort(np.concatenate([within, between]))
    start = [0, 0] if mask[0, 0] else [0]
    counts = np.diff(np.concatenate([start, changes, [mask.size]]))
    return {"size": [height, width], "counts": _pack(counts)}


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
    if not (height > 0 and width > 0 and height * width <= _MAX_PIXELS):
        raise InputError(
            f"The size of an RLE must be [height, width], at least 1 each and at most {_MAX_PIXELS} pixels "
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


# ------------------------------------------------------------------------------------------------------ boxes


def mask_to_box_xyxy(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around a (H, W) mask: (x0, y0, x1, y1) at pixel edges: x1 - x0 is its width. Empty: zeros."""
    mask = _as_mask(mask)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_to_bbox_xywh(mask: np.ndarray) -> tuple[int, int, int, int]:
    """COCO's `bbox`, equal to pycocotools' `toBbox`: (x, y, width, height) in pixels. Empty: zeros."""
    x0, y0, x1, y1 = mask_to_box_xyxy(mask)
    return x0, y0, x1 - x0, y1 - y0


def _as_mask(mask: Any) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != np.bool_ or mask.ndim != 2 or mask.size == 0:
        hint = "" if mask.dtype == np.bool_ else " For logits or 0 / 1 values: mask > 0."
        raise InputError(f"A mask must be (H, W) bool, at least 1 x 1, got {mask.shape} {mask.dtype}.{hint}")
    return mask


# ------------------------------------------------------------------------------------------------------ files


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write a (H, W) mask as an 8-bit grey PNG, 255 inside and 0 outside, all or nothing.

    Raises `InputError` for another suffix than .png (JPEG would blur the edge), `OutputError` where writing
    fails.
    """
    mask = _as_mask(mask)
    check_image_suffix(path, allowed=(".png",))
    write_image(path, mask.astype(np.uint8) * 255)


def read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """A mask file: (H, W) bool of a picture or of a stored 0 / 1 array, (H, W) float32 of stored logits.

    Files are told apart by content. Arrays are .npy, or .npz with one array in it; leading dimensions of 1
    are dropped; floats that are all 0 or 1, with a 1 among them, are a mask and not logits.

    In a picture with transparent parts, the mask is what is opaque. In one with a coloured palette (the
    annotations of DAVIS and others), every colour but black. In others, what is at least half as bright as
    the brightest pixel, so that files of 0 / 1 and of 0 / 255 both mean what they were meant to. Raises
    `InputError`.
    """
    name = repr(os.fsdecode(path))
    array = _stored_array(path)
    if array is None:
        return _mask_of_picture(open_picture(path), name)
    if array.ndim > 2 and max(array.shape[:-2]) > 1:
        raise InputError(
            f"{name} holds {array.shape}, several masks; store one of them, for example masks[0]."
        )
    if array.ndim < 2 or array.size == 0:
        raise InputError(f"{name} holds an array {array.shape}; a mask has height and width.")
    if array.dtype.kind not in "biuf":
        raise InputError(
            f"{name} holds an array of {array.dtype}; a mask is bool, whole numbers or float logits."
        )
    array = array.reshape(array.shape[-2:])
    if array.dtype.kind == "f" and not (((array == 0) | (array == 1)).all() and array.any()):
        return array.astype(np.float32)
    return array > 0


def read_mask_input(path: str | os.PathLike[str], size: int) -> np.ndarray:
    """A mask file as a mask prompt, (1, size, size) float32 logits.

    Stored logits are those of an earlier prediction and must be size x size. A mask (`read_mask` says what
    is one) may have any size: it is stretched to the square, as pictures are, antialiased, and becomes +10
    inside and -10 outside, between them along the edge. Raises `InputError`.
    """
    name = repr(os.fsdecode(path))
    mask = read_mask(path)
    if mask.dtype == np.bool_:
        from PIL import Image

        coverage = Image.fromarray(mask.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
        return (np.array(coverage) * (2 * MASK_PROMPT_LOGIT) - MASK_PROMPT_LOGIT)[None]
    if mask.shape != (size, size):
        raise InputError(
            f"{name} holds logits of {mask.shape[0]} x {mask.shape[1]}; this model takes {size} x {size}, "
            "the low-resolution logits that a prediction returns. Store other masks as bool or as a picture."
        )
    if not np.isfinite(mask).all():
        raise InputError(f"{name} holds logits that are not finite numbers (NaN or infinity).")
    return mask[None]


def _stored_array(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The array of a .npy or .npz file; None for other files and for those that do not open."""
    name = os.fsdecode(path)
    try:
        with open(name, "rb") as file:
            magic = file.read(6)
            file.seek(0)
            if magic.startswith(b"PK\x03\x04"):
                return _only_member(file, name)
            if magic == b"\x93NUMPY" or Path(name).suffix.lower() in (".npy", ".npz"):
                return np.lib.format.read_array(file, allow_pickle=False)
    except MaskletError:
        raise
    except OSError:
        return None
    except Exception as error:  # damaged headers, pickles, sizes beyond memory
        raise InputError(f"{name!r} is not an array file that masklet reads: {error}") from error
    return None


def _only_member(file: BinaryIO, name: str) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) != 1:
            raise InputError(f"{name!r} holds {len(members)} arrays; a mask file has one.")
        if members[0].file_size > 8 * _MAX_PIXELS:
            raise InputError(f"{name!r} holds an array of {members[0].file_size} bytes; no mask is as large.")
        with archive.open(members[0]) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def _mask_of_picture(image: Image.Image, name: str) -> np.ndarray:
    if not is_deep(image) and has_transparency(image):
        opacity = np.asarray(converted(image, "RGBA", name).getchannel("A"))
        if opacity.min() < 255:
            return opacity >= 128
    if is_deep(image) or image.mode == "L":
        brightest = np.asarray(image)
    else:
        colours = np.asarray(converted(image, "RGB", name))
        brightest = colours.max(axis=2)
        if image.mode == "P" and not np.array_equal(brightest, colours.min(axis=2)):
            return brightest > 0
    return (brightest > 0) & (brightest >= brightest.max() / 2)
