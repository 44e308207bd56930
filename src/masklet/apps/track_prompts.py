"""Prompts of `masklet track`: what the command line, mask files and a prompts file say about objects in
frames.

In: text and files. Out: one `FramePrompt` for each object and frame that something is said about. What cannot
be meant is a usage error (exit code 2). Knows nothing about models.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from masklet.apps.options import Box, Point, parse_box, parse_point
from masklet.errors import InputError

if TYPE_CHECKING:
    import numpy as np

POINT_FORM = "FRAME:OBJ:X,Y[,0|1]"
BOX_FORM = "FRAME:OBJ:X0,Y0,X1,Y1"
MASK_FORM = "FRAME:OBJ:FILE"
Shape = TypeVar("Shape", Point, Box)

KEYS = ("frame", "object", "points", "labels", "box", "mask")

# ------------------------------------------------------------------------------------------------- one option


@dataclass(frozen=True)
class Told:
    """One statement: a point, a box or a mask file of an object in a frame. `object_id` None: a label map,
    which names its objects itself."""

    frame: int
    object_id: int | None
    point: Point | None = None
    box: Box | None = None
    mask: Path | None = None


def parse_frame_point(text: str) -> Told:
    """The point of "FRAME:OBJ:X,Y" or "FRAME:OBJ:X,Y,LABEL". Raises `typer.BadParameter`."""
    example = "0:1:520,375, and ,0 behind it for a point off the object"
    frame, object_id, point = _split(text, parse_point, POINT_FORM, example)
    return Told(frame, object_id, point=point)


def parse_frame_box(text: str) -> Told:
    """The box of "FRAME:OBJ:X0,Y0,X1,Y1". Raises `typer.BadParameter`."""
    example = "0:1:80,40,610,470, top left corner first"
    frame, object_id, box = _split(text, parse_box, BOX_FORM, example)
    return Told(frame, object_id, box=box)


def parse_frame_mask(text: str) -> Told:
    """The file of "FRAME:OBJ:FILE", or of "FRAME:FILE" for a label map. Raises `typer.BadParameter`."""
    found = re.fullmatch(r"(\d+):(?:(\d+):(.+)|(?!\d+:)(.+))", text)
    if not found:
        raise typer.BadParameter(
            f"got {text!r}; give {MASK_FORM}, for example 0:1:cup.png, or FRAME:FILE for a PNG with one "
            "colour index for each object."
        )
    object_id = None if found[2] is None else _object_id(int(found[2]), text)
    return Told(int(found[1]), object_id, mask=Path(found[3] or found[4]))


def _split(text: str, parse: Callable[[str], Shape], form: str, example: str) -> tuple[int, int, Shape]:
    """Frame, object, and what `parse` makes of the rest."""
    wrong = typer.BadParameter(f"got {text!r}; give {form}, for example {example}.")
    found = re.fullmatch(r"(\d+):(\d+):([^:]+)", text)
    if not found:
        raise wrong
    try:
        shape = parse(found[3])
    except typer.BadParameter as error:  # which speaks of the rest alone
        raise wrong from error
    return int(found[1]), _object_id(int(found[2]), text), shape


def _object_id(number: int, text: str) -> int:
    if number < 1:
        raise typer.BadParameter(
            f"got object {number} in {text!r}; number objects from 1, 0 is the background."
        )
    return number


# ---------------------------------------------------------------------------------------------- prompts files


def read_prompts_file(path: Path) -> list[Told]:
    """What a prompts file says: a JSON list of {"frame", "object", "points", "labels", "box", "mask"}.

    `frame` is needed, and `object` unless `mask` is a label map; `points` are [x, y] with as many `labels`
    (all 1 without), `box` is [x0, y0, x1, y1], `mask` a file, relative to the folder of the prompts file.
    Raises `InputError` for a file that is not JSON, `typer.BadParameter` for one that says something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise InputError(f"Cannot read the prompts in {str(path)!r}: {reason}.") from error
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{str(path)!r} is not JSON: {error}.") from error
    if not isinstance(entries, list):
        raise typer.BadParameter(
            f"{str(path)!r} holds {_kind(entries)}; a prompts file is a list of prompts, such as "
            '[{"frame": 0, "object": 1, "points": [[520, 375]]}].'
        )
    number, told = 0, []
    try:
        for number, entry in enumerate(entries, 1):  # noqa: B007 - for the message
            told += _told(entry, path.parent)
    except typer.BadParameter as error:
        raise typer.BadParameter(f"prompt {number} of {str(path)!r}: {error.message}") from error
    return told


def _told(entry: Any, folder: Path) -> list[Told]:
    if not isinstance(entry, dict):
        raise typer.BadParameter(
            f'got {_kind(entry)}; give an object such as {{"frame": 0, "object": 1, ...}}.'
        )
    for key in entry.keys() - set(KEYS):
        close = difflib.get_close_matches(key, KEYS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise typer.BadParameter(f"the key {key!r} is unknown; there are {', '.join(KEYS)}.{hint}")
    frame = _whole(entry, "frame", 0)
    mask = entry.get("mask")
    if mask is not None and not (isinstance(mask, str) and mask):
        raise typer.BadParameter(f"its mask is {_kind(mask)}; give the name of a file.")
    object_id = None if mask is not None and "object" not in entry else _whole(entry, "object", 1)
    told = []
    if mask is not None:
        told.append(Told(frame, object_id, mask=folder / mask))
    if entry.get("box") is not None:
        told.append(Told(frame, object_id, box=Box(_row(entry["box"], 4, "box", "[x0, y0, x1, y1]"))))
    told += [Told(frame, object_id, point=point) for point in _points(entry)]
    if not told:
        raise typer.BadParameter('it says nothing about the object; give "points", "box" or "mask".')
    return told


def _points(entry: Mapping[str, Any]) -> list[Point]:
    points, labels = entry.get("points"), entry.get("labels")
    if points is None:
        if labels is not None:
            raise typer.BadParameter("it has labels without points; give both, or neither.")
        return []
    if not isinstance(points, list):
        raise typer.BadParameter(f"its points are {_kind(points)}; give a list of [x, y].")
    labels = [1] * len(points) if labels is None else labels
    if (
        not isinstance(labels, list)
        or len(labels) != len(points)
        or any(not _is_label(label) for label in labels)
    ):
        raise typer.BadParameter(
            f"its labels are {json.dumps(labels)[:60]} for {len(points)} points; give one for each point, 1 "
            "on the object or 0 off it."
        )
    rows = [_row(point, 2, "points", "a list of [x, y]") for point in points]
    return [Point(x, y, label) for (x, y), label in zip(rows, labels, strict=True)]


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value in (0, 1)


def _row(value: Any, length: int, key: str, form: str) -> tuple[Any, ...]:
    numbers = value if isinstance(value, list) else []
    good = [number for number in numbers if isinstance(number, (int, float)) and not isinstance(number, bool)]
    if (
        len(numbers) != length
        or len(good) != length
        or any(abs(number) > 1e9 or number != number for number in good)
    ):
        raise typer.BadParameter(f"its {key} hold {json.dumps(value)[:60]}; give {form}, in pixels.")
    return tuple(float(number) for number in good)


def _whole(entry: Mapping[str, Any], key: str, least: int) -> int:
    value = entry.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        got = f"it has {json.dumps(value)[:40]}" if key in entry else "it has none"
        raise typer.BadParameter(f'give "{key}", a whole number from {least} on; {got}.')
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


# ------------------------------------------------------------------------------------------------ all of them


@dataclass(eq=False)
class FramePrompt:
    """All that is said about one object in one frame: points and a box, or a mask (H, W) bool."""

    frame: int
    object_id: int
    points: list[Point] = field(default_factory=list)
    box: Box | None = None
    mask: np.ndarray | None = None

    def __str__(self) -> str:
        return f"frame {self.frame}, object {self.object_id}"

    def document(self) -> dict[str, Any]:
        """As JSON holds it; the mask by its checksum."""
        import hashlib

        mask = None
        if self.mask is not None:
            mask = hashlib.sha256(str(self.mask.shape).encode() + self.mask.tobytes()).hexdigest()
        return {
            "frame": self.frame,
            "object": self.object_id,
            "points": [[point.x, point.y, point.label] for point in self.points],
            "box": self.box and list(self.box.xyxy),
            "mask": mask,
        }


def gather(told: Sequence[Told]) -> list[FramePrompt]:
    """Statements by object and frame, objects ascending. Reads mask files. Raises `typer.BadParameter` where
    statements contradict each other or there are none, `InputError` for files."""
    if not told:
        raise typer.BadParameter(
            f"which object? Give --point {POINT_FORM} or --box {BOX_FORM} or --mask {MASK_FORM} or --prompts "
            "FILE."
        )
    prompts: dict[tuple[int, int], FramePrompt] = {}
    for item in told:
        for object_id, mask in _objects(item):
            prompt = prompts.setdefault((object_id, item.frame), FramePrompt(item.frame, object_id))
            _add(prompt, item, mask)
    return [prompts[key] for key in sorted(prompts)]


def _objects(item: Told) -> Iterable[tuple[int, np.ndarray | None]]:
    """The objects that a statement is about, with their masks."""
    if item.mask is None:
        return [(item.object_id or 0, None)]
    from masklet.io.label_map import read_label_map
    from masklet.io.masks import read_mask

    if item.object_id is None:
        return read_label_map(item.mask).items()
    mask = read_mask(item.mask) > 0
    if not mask.any():
        raise InputError(f"The mask {str(item.mask)!r} is empty: it has no pixel on object {item.object_id}.")
    return [(item.object_id, mask)]


def _add(prompt: FramePrompt, item: Told, mask: np.ndarray | None) -> None:
    if item.box and prompt.box:
        raise typer.BadParameter(f"{prompt} has two boxes; give one.")
    if mask is not None and prompt.mask is not None:
        raise typer.BadParameter(f"{prompt} has two masks; give one.")
    if item.point:
        prompt.points.append(item.point)
    prompt.box = item.box or prompt.box
    prompt.mask = prompt.mask if mask is None else mask
    if prompt.mask is not None and (prompt.points or prompt.box):
        raise typer.BadParameter(
            f"{prompt} has a mask and also points or a box; a mask stands alone in its frame, so leave one "
            "out."
        )


def check_prompts(prompts: Sequence[FramePrompt], num_frames: int | None, size_hw: tuple[int, int]) -> None:
    """Whether the video has the frames, and the frames the points. Raises `typer.BadParameter`."""
    from masklet.pipeline.prompts import make_prompts

    for prompt in prompts:
        if num_frames is not None and prompt.frame >= num_frames:
            raise typer.BadParameter(
                f"{prompt}: there is no such frame; the video has {num_frames}, counted from 0 to "
                f"{num_frames - 1}."
            )
        if prompt.mask is not None:
            continue
        points, labels = coordinates(prompt)
        try:  # any image_size would do: only the checks matter
            make_prompts(
                points, labels, prompt.box and prompt.box.xyxy, None, size_hw=size_hw, image_size=1024
            )
        except InputError as error:
            raise typer.BadParameter(f"{prompt}: {error}") from error


def coordinates(prompt: FramePrompt) -> tuple[list[tuple[float, float]] | None, list[int] | None]:
    """Points (N, 2) and labels (N), or None and None."""
    if not prompt.points:
        return None, None
    return [(point.x, point.y) for point in prompt.points], [point.label for point in prompt.points]
