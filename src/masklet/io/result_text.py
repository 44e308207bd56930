"""Results as text: JSON lines, one for each frame, and one COCO document for all.

In: results, frame by frame. Out: a .jsonl file that grows by a line a frame, or a .json file that appears
when it is finished. Masks are COCO run lengths. Knows nothing about models.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np

from masklet.errors import OutputError
from masklet.io.atomic import open_atomic, reason_of
from masklet.io.masks import mask_to_bbox_xywh
from masklet.io.results import ResultWriter, RunSettings, Start, check_file
from masklet.types import FrameResult, TrackedObject

_DIGITS = 6  # behind the point, of scores and seconds: what float32 scores hold
_BLOCK = 1 << 16  # bytes; what a file system may need to give back before it takes anything again


def frame_line(result: FrameResult, *, masks: bool = True) -> str:
    """One frame as a line of JSON, without the line's end: index, time in seconds, and the objects."""
    objects = []
    for tracked in result.objects:
        entry = {
            "id": tracked.object_id,
            "state": tracked.state,
            "box": tracked.box_xyxy and [int(edge) for edge in tracked.box_xyxy],
            "area": int(tracked.area),
            "predicted_iou": _rounded(tracked.predicted_iou),
            "object_score": _rounded(tracked.object_score),
            "stability": _rounded(tracked.stability),
        }
        if masks:
            entry["rle"] = tracked.rle()
        objects.append(entry)
    return json.dumps(
        {"index": result.index, "time": _rounded(result.time), "objects": objects}, allow_nan=False
    )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), _DIGITS)


# ------------------------------------------------------------------------------------------------- JSON lines


class JsonLines(ResultWriter):
    """A file whose first line is the run's settings, and each further line a frame."""

    def __init__(
        self, path: Path, settings: RunSettings, *, masks: bool = True, start: Start = "new"
    ) -> None:
        """Raises `OutputError` where there is a file that `start` does not allow to touch."""
        self._path = path
        self._settings = settings
        self._masks = masks
        self._layout = "lines" if masks else "lines without masks"
        self._start: Start = start
        self._there: frozenset[int] = frozenset()
        self._keep = 0  # bytes of the file that is resumed
        self._has_rest = False  # behind them, a line that was cut off
        self._file: _Appender | None = None
        check_file(path, start, resumable=True)
        if start == "resume" and path.exists():
            self._read_what_is_there(repr(str(path)))

    def has(self, index: int) -> bool:
        """Whether a complete line of the file is about that frame."""
        return index in self._there

    def write(self, result: FrameResult, pixels: np.ndarray | None = None) -> None:
        """Append a line. A reader sees it at once, and whole."""
        if self._file is None:
            self._file = _Appender(_open(self._path, self._start, self._keep), self._path)
            if not self._keep:
                self._file.append(self._header_line())
        self._file.append(frame_line(result, masks=self._masks) + "\n")

    def finish(self) -> None:
        """Put all on the disk and close the file."""
        file, self._file = self._file, None
        if file is None and self._has_rest:
            file = _Appender(_open(self._path, self._start, self._keep), self._path)
        self._has_rest = False
        if file is not None:
            file.close()

    def _header_line(self) -> str:
        return json.dumps(self._settings.header(self._layout)) + "\n"

    def _read_what_is_there(self, name: str) -> None:
        """Which frames the file has, and where its last complete line ends."""
        there: set[int] = set()
        try:
            with open(self._path, "rb") as file:
                header = file.readline()
                if not header.endswith(b"\n") and self._header_line().encode().startswith(header):
                    return  # cut off at once, or empty
                self._settings.check_resumes(_parsed(header), self._layout, name)
                end = len(header)
                for number, line in enumerate(file, 2):
                    content = _parsed(line)
                    if not isinstance(content, dict) or not isinstance(content.get("index"), int):
                        if next(file, None) is not None:
                            raise OutputError(
                                f"cannot resume {name}: line {number} is not one that masklet track wrote. "
                                "Start anew with --overwrite or another name."
                            )
                        self._has_rest = True
                        break
                    there.add(content["index"])
                    end += len(line)
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"cannot resume {name}: {error.strerror or error}.") from error
        self._keep, self._there = end, frozenset(there)


class PrintedLines(ResultWriter):
    """The same lines, without the settings, given to a function one by one."""

    def __init__(self, write: Callable[[str], None], *, masks: bool = True) -> None:
        self._write = write
        self._masks = masks

    def write(self, result: FrameResult, pixels: np.ndarray | None = None) -> None:
        """Hand over a line."""
        self._write(frame_line(result, masks=self._masks) + "\n")


def _parsed(line: bytes) -> Any:
    """The JSON of a complete line; None for any other."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _open(path: Path, start: Start, keep: int) -> io.FileIO:
    """The file, to be written from byte `keep` on."""
    try:
        if start == "resume" and path.exists():
            file = io.FileIO(path, "r+")
            file.truncate(keep)
            file.seek(keep)
            return file
        return io.FileIO(path, "x" if start == "new" else "w")
    except OSError as error:
        raise OutputError(f"cannot write {str(path)!r}: {reason_of(error, path)}.") from error


# ---------------------------------------------------------------------------------------------- COCO document


class CocoDocument(ResultWriter):
    """One JSON document in the form of COCO's: images are frames, annotations are objects in frames.

    Annotations go to the disk as they come, the (short) list of images when the document is finished.
    """

    def __init__(self, path: Path, settings: RunSettings, *, start: Start = "new") -> None:
        """Raises `OutputError` where there is a file that `start` does not allow to touch."""
        check_file(path, start, resumable=False)
        self._path = path
        self._settings = settings
        self._stack = ExitStack()
        self._file: _Appender | None = None
        self._images: list[str] = []
        self._ends: list[int] = []  # of each frame's annotations, in bytes of the file
        self._count = 0  # annotations

    def write(self, result: FrameResult, pixels: np.ndarray | None = None) -> None:
        """Add a frame and its objects."""
        if not result.objects:
            return
        if self._file is None:
            file = self._stack.enter_context(open_atomic(self._path))
            self._file = _Appender(io.FileIO(file.fileno(), "w", closefd=False), self._path)
            self._file.append(self._head())
        entries = [
            _annotation(self._count + number, result.index, tracked)
            for number, tracked in enumerate(result.objects, 1)
        ]
        separator = ",\n" if self._count else ""
        self._file.append(separator + ",\n".join(map(json.dumps, entries)))
        height, width = result.objects[0].mask.shape
        image = {
            "id": result.index,
            "file_name": f"{result.index:05d}.jpg",
            "height": height,
            "width": width,
            "time": _rounded(result.time),
        }
        self._images.append(json.dumps(image))
        self._ends.append(self._file.end)
        self._count += len(entries)

    def finish(self) -> None:
        """Close the document. Where the disk is full, last frames make room for its end, and an error says
        so."""
        file, self._file = self._file, None
        if file is None:
            return
        with self._stack:
            try:
                file.append(self._tail())
                return
            except OutputError as error:
                failure = error
            written, tail = len(self._images), len(self._tail())
            room = file.end - tail - _BLOCK
            while self._ends and self._ends[-1] > room:
                self._ends.pop()
                self._images.pop()
            if not self._ends:
                raise failure
            file.cut(self._ends[-1])
            file.append(self._tail())
        kept = len(self._images)
        raise OutputError(f"{failure} It has the first {kept} of {written} frames.") from failure

    def _head(self) -> str:
        info = json.dumps({"description": "masklet track", **self._settings.header("coco")})
        categories = json.dumps([{"id": 1, "name": "object"}])
        return f'{{"info": {info},\n"categories": {categories},\n"annotations": [\n'

    def _tail(self) -> str:
        images = ",\n".join(self._images)
        return f'\n],\n"images": [\n{images}\n]}}\n'


def _annotation(number: int, index: int, tracked: TrackedObject) -> dict[str, Any]:
    return {
        "id": number,
        "image_id": index,
        "category_id": 1,
        "track_id": tracked.object_id,
        "iscrowd": 0,
        "bbox": list(mask_to_bbox_xywh(tracked.mask)),
        "area": int(tracked.area),
        "segmentation": tracked.rle(),
        "score": _rounded(tracked.predicted_iou),
        "state": tracked.state,
        "object_score": _rounded(tracked.object_score),
        "stability": _rounded(tracked.stability),
    }


# ------------------------------------------------------------------------------------------------ the file


class _Appender:
    """Appends pieces of text to a file, each whole or not at all; nothing waits in a buffer."""

    def __init__(self, file: io.FileIO, path: Path) -> None:
        self._file = file
        self._path = path
        self.end = file.tell()  # in bytes

    def append(self, text: str) -> None:
        """Raises `OutputError`; the file then ends where it ended before."""
        data = memoryview(text.encode())
        written = 0
        try:
            while written < len(data):
                written += self._file.write(data[written:]) or 0
        except OSError as error:
            with suppress(OSError):
                self.cut(self.end)
            reason = reason_of(error, self._path)
            raise OutputError(f"cannot write more to {str(self._path)!r}: {reason}.") from error
        self.end += len(data)

    def cut(self, end: int) -> None:
        """Drop what lies behind `end`."""
        self._file.truncate(end)
        self._file.seek(end)
        self.end = end

    def close(self) -> None:
        """Sync and close. Raises `OutputError`."""
        try:
            with self._file as file:
                os.fsync(file.fileno())
        except OSError as error:
            reason = reason_of(error, self._path)
            raise OutputError(f"cannot finish {str(self._path)!r}: {reason}.") from error
