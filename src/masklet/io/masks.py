"""Masks as files and as boxes.

In: boolean masks (H, W), mask files. Out: the same in another form, boxes, and the logits that a model takes
as a mask prompt. Knows nothing about models or pictures under the masks.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

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
from masklet.rle import MAX_PIXELS, as_mask

if TYPE_CHECKING:
    from PIL import Image

# A mask prompt made of a black and white picture: logits of sigmoid 0.99995 and 0.00005, SAM 2's own (its
# video path turns masks into memories with scale 20 and bias -10).
MASK_PROMPT_LOGIT = 10.0


# ------------------------------------------------------------------------------------------------------ boxes


def mask_to_box_xyxy(mask: np.ndarray) -> tuple[int, int, int, int]:
    """The box around a (H, W) mask: (x0, y0, x1, y1) at pixel edges: x1 - x0 is its width. Empty: zeros."""
    mask = as_mask(mask)
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if columns.size == 0:
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def mask_to_bbox_xywh(mask: np.ndarray) -> tuple[int, int, int, int]:
    """COCO's `bbox`, equal to pycocotools' `toBbox`: (x, y, width, height) in pixels. Empty: zeros."""
    x0, y0, x1, y1 = mask_to_box_xyxy(mask)
    return x0, y0, x1 - x0, y1 - y0


# ------------------------------------------------------------------------------------------------------ files


def write_mask(path: str | os.PathLike[str], mask: np.ndarray) -> None:
    """Write a (H, W) mask as an 8-bit grey PNG, 255 inside and 0 outside, all or nothing.

    Raises `InputError` for another suffix than .png (JPEG would blur the edge), `OutputError` where writing
    fails.
    """
    mask = as_mask(mask)
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


def read_mask_input(
    path: str | os.PathLike[str], size: int, covered_hw: tuple[int, int] | None = None
) -> np.ndarray:
    """A mask file as a mask prompt, (1, size, size) float32 logits.

    Stored logits are those of an earlier prediction and must be size x size. A mask (`read_mask` says what
    is one) may have any size: it is stretched to `covered_hw`, what the picture covers of the square (None:
    all of it), antialiased, and becomes +10 inside and -10 outside, between them along the edge. Raises
    `InputError`.
    """
    name = repr(os.fsdecode(path))
    mask = read_mask(path)
    if mask.dtype == np.bool_:
        from PIL import Image

        height, width = covered_hw or (size, size)
        plane = Image.fromarray(mask.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        coverage = np.zeros((1, size, size), np.float32)
        coverage[0, :height, :width] = np.asarray(plane)
        return coverage * (2 * MASK_PROMPT_LOGIT) - MASK_PROMPT_LOGIT
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
        if members[0].file_size > 8 * MAX_PIXELS:
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
