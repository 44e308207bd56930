"""Outputs of `masklet auto`: what a name after -o means, and what is written there.

In: the text of -o, a picture, the masks found in it. Out: files. All that can be found out before the work is
found out here. Masks are unpacked one at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from masklet.errors import InputError, OutputError

if TYPE_CHECKING:
    import numpy as np

    from masklet.pipeline.found import FoundMask

Kind = Literal["folder", "json", "overlay"]
COCO, LABELS, OVERLAY = "masks.json", "labels.png", "overlay.png"  # in a folder
_DIGITS = 6  # behind the point, of scores: what float32 holds
_LARGEST_LABEL = 65535  # of 16 bits


@dataclass(frozen=True)
class Output:
    """One -o: a kind, and the path that it is written to."""

    kind: Kind
    path: Path


def parse_output(text: str) -> Output:
    """What the text after -o means. Raises `InputError` for a suffix that nothing is written as."""
    from masklet.io.image import check_image_suffix

    path = Path(text)
    if not path.suffix or text.endswith(("/", os.sep)) or path.is_dir():
        return Output("folder", path)
    if path.suffix.lower() == ".json":
        return Output("json", path)
    try:
        check_image_suffix(path)
    except InputError as error:
        raise InputError(
            f"{error} A document ends in .json; a folder has no suffix, or ends with /."
        ) from error
    return Output("overlay", path)


def check_writable(outputs: Sequence[Output], image: Path) -> None:
    """Find out before the work what would fail after it. Raises `OutputError`."""
    paths = [output.path.resolve() for output in outputs]
    for output in outputs:
        path, folder = output.path, output.path.parent
        if not folder.is_dir():
            reason = f"the folder {str(folder)!r} does not exist; create it first"
        elif not os.access(path if path.is_dir() else folder, os.W_OK):
            reason = "no permission to write there; choose another folder"
        elif path.resolve() == image.resolve():
            reason = "that is the picture itself; choose another name"
        elif output.kind == "folder" and path.exists() and not path.is_dir():
            reason = "that is a file; a folder needs another name"
        elif paths.count(path.resolve()) > 1:
            reason = "two results would go there; choose another name for one of them"
        else:
            continue
        raise OutputError(f"cannot write {str(path)!r}: {reason}.")


def write_outputs(
    outputs: Sequence[Output], image: Path, pixels: np.ndarray, found: Sequence[FoundMask], model: str
) -> None:
    """Write everything, each file whole or not at all; a folder's files appear together."""
    from masklet.io.atomic import fill_folder

    for output in outputs:
        if output.kind == "json":
            _write_coco(output.path, image, pixels, found, model)
        elif output.kind == "overlay":
            _write_overlay(output.path, pixels, found)
        else:
            with fill_folder(output.path, last=COCO) as folder:
                _write_labels(folder / LABELS, pixels, found)
                _write_overlay(folder / OVERLAY, pixels, found)
                _write_coco(folder / COCO, image, pixels, found, model)


def described(found: FoundMask, size_hw: tuple[int, int]) -> dict[str, Any]:
    """One mask in JSON; `bbox` is COCO's, `point` the one that it was found from."""
    from masklet.rle import encode_part

    x0, y0, x1, y1 = found.box_xyxy
    return {
        "score": round(found.predicted_iou, _DIGITS),
        "stability": round(found.stability, _DIGITS),
        "area": found.area,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "point": [round(value, 2) for value in found.point_xy],
        "segmentation": encode_part(found.pixels(), (x0, y0), size_hw),
    }


def _write_coco(path: Path, image: Path, pixels: np.ndarray, found: Sequence[FoundMask], model: str) -> None:
    from masklet import __version__
    from masklet.io.atomic import open_atomic

    height, width = pixels.shape[:2]
    annotations = [
        {"id": number, "image_id": 1, "category_id": 1, "iscrowd": 0, **described(one, (height, width))}
        for number, one in enumerate(found, 1)
    ]
    document = {
        "info": {"description": "masklet auto", "masklet": __version__, "model": model},
        "images": [{"id": 1, "file_name": image.name, "width": width, "height": height}],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": annotations,
    }
    with open_atomic(path) as file:
        file.write(json.dumps(document, allow_nan=False).encode())


def _write_labels(path: Path, pixels: np.ndarray, found: Sequence[FoundMask]) -> None:
    """The number of the mask at each pixel, of several the smallest's; 0 where there is none."""
    import numpy as np

    from masklet.io.label_map import MAX_OBJECT_ID, write_label_map

    if len(found) > _LARGEST_LABEL:
        raise OutputError(
            f"cannot write labels of {len(found)} masks: a PNG has {_LARGEST_LABEL}; give --max-masks."
        )
    labels = np.zeros(pixels.shape[:2], np.uint8 if len(found) <= MAX_OBJECT_ID else np.uint16)
    for index in _largest_first(found):
        x0, y0, x1, y1 = found[index].box_xyxy
        labels[y0:y1, x0:x1][found[index].pixels()] = index + 1
    write_label_map(path, labels)


def _write_overlay(path: Path, pixels: np.ndarray, found: Sequence[FoundMask]) -> None:
    from masklet.io.image import write_image
    from masklet.io.overlay import draw_parts

    parts = ((found[index].box_xyxy[:2], found[index].pixels()) for index in _largest_first(found))
    write_image(path, draw_parts(pixels, parts))


def _largest_first(found: Sequence[FoundMask]) -> list[int]:
    return sorted(range(len(found)), key=lambda index: -found[index].area)
