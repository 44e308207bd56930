"""Label maps: PNGs with a palette, in which the index of a pixel is the id of the object there.

In: masks with ids, or a file. Out: such a file as DAVIS and others store annotations, or one mask for each
id. Knows nothing about videos or models.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable

import numpy as np

from masklet.errors import InputError
from masklet.io.atomic import open_atomic
from masklet.io.image import open_picture

MAX_OBJECT_ID = 255  # an index has 8 bits, and 0 is the background
_WHITE = 255


def davis_palette() -> bytes:
    """256 RGB colours: PASCAL VOC's, which DAVIS 2017 took over.

    The bits of an index go to red, green and blue in turn, the lowest to the colours' highest bits, so that
    neighbours differ most.
    """
    colours = np.zeros((256, 3), np.uint8)
    index = np.arange(256)
    for bit in range(8):
        colours[:, bit % 3] |= ((index >> bit & 1) << (7 - bit // 3)).astype(np.uint8)
    return colours.tobytes()


def label_map(masks: Iterable[tuple[int, float, np.ndarray]], size_hw: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 ids of `masks`: (id, score, (H, W) bool). Where masks overlap, the higher score wins, and
    of equal ones the lower id. Raises `InputError` for an id that no index can hold."""
    labels = np.zeros(size_hw, np.uint8)
    for object_id, _, mask in sorted(
        masks, key=lambda item: (item[1], -item[0])
    ):  # the winner is painted last
        if not 1 <= object_id <= MAX_OBJECT_ID:
            raise InputError(
                f"Object {object_id} does not fit into a label map, whose ids are 1 to {MAX_OBJECT_ID}; "
                "choose another id, or write a folder for each object."
            )
        labels[mask] = object_id
    return labels


def write_label_map(path: str | os.PathLike[str], labels: np.ndarray) -> None:
    """Write (H, W) ids as a PNG, all or nothing: uint8 with DAVIS' palette, uint16 as 16-bit grey. Raises
    `OutputError`."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(labels))
    if labels.dtype == np.uint8:
        image.putpalette(davis_palette())
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    with open_atomic(path) as file:
        file.write(encoded.getbuffer())


def read_label_map(path: str | os.PathLike[str]) -> dict[int, np.ndarray]:
    """The objects of a label map: id -> (H, W) bool, ids ascending.

    The file has a palette, whose indices are the ids, or is 8-bit grey, whose values are. Raises `InputError`
    for another kind of picture, one without objects, and a black and white one, which does not name its
    object.
    """
    name = repr(os.fsdecode(path))
    image = open_picture(path)
    if image.mode not in ("P", "L"):
        raise InputError(
            f"{name} has no palette (its mode is {image.mode}), so it does not say which object is where. "
            "Save it with one colour index for each object, or name the object that it is the mask of."
        )
    labels = np.asarray(image)
    ids = [int(value) for value in np.unique(labels) if value]
    if not ids:
        raise InputError(f"{name} holds no object: all of its pixels have the index 0.")
    if image.mode == "L" and ids == [_WHITE]:
        raise InputError(
            f"{name} is black and white, so it does not say which object it is the mask of. Name the object."
        )
    return {object_id: labels == object_id for object_id in ids}
