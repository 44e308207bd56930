"""Results as folders of PNGs, one for each frame: label maps, or a folder of masks for each object.

In: results, frame by frame. Out: DIR/00000.png, or DIR/OBJECT/00000.png, and DIR/masklet.json with the
settings, which tells a later run whether it may continue. Each PNG appears whole. Knows nothing about models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from masklet.errors import OutputError
from masklet.io.atomic import open_atomic, reason_of
from masklet.io.label_map import label_map, write_label_map
from masklet.io.masks import write_mask
from masklet.io.results import ResultWriter, RunSettings, Start, is_header
from masklet.types import FrameResult

SETTINGS = "masklet.json"
_FRAME = re.compile(r"\d{5,}\.png")
_OBJECT = re.compile(r"\d+")


class MaskFolder(ResultWriter):
    """One PNG for each frame; with `per_object`, one for each frame and object, in the object's folder."""

    def __init__(
        self,
        path: Path,
        settings: RunSettings,
        object_ids: Sequence[int],
        *,
        per_object: bool = False,
        start: Start = "new",
    ) -> None:
        """Raises `OutputError` where the folder holds anything that `start` does not allow to touch."""
        self._path = path
        self._settings = settings
        self._layout = "folder per object" if per_object else "label maps"
        self._object_ids = tuple(object_ids)
        self._per_object = per_object
        self._start: Start = start
        self._is_ready = False
        self._check()

    def has(self, index: int) -> bool:
        """Whether all files of the frame are there. They are whole: each took its name in one step."""
        return self._start == "resume" and all(path.is_file() for path in self._files(index))

    def write(self, result: FrameResult, pixels: np.ndarray | None = None) -> None:
        """Write a frame's file, or files."""
        if not self._is_ready:
            self._prepare()
        if self._per_object:
            for tracked in result.objects:
                folder = self._path / str(tracked.object_id)
                _make(folder)
                write_mask(folder / _name(result.index), tracked.mask)
        elif result.objects:
            masks = [(tracked.object_id, tracked.predicted_iou, tracked.mask) for tracked in result.objects]
            write_label_map(self._path / _name(result.index), label_map(masks, masks[0][2].shape))

    def _files(self, index: int) -> list[Path]:
        if not self._per_object:
            return [self._path / _name(index)]
        return [self._path / str(object_id) / _name(index) for object_id in self._object_ids]

    def _check(self) -> None:
        """Look at what is there, and change nothing."""
        name = repr(str(self._path))
        try:
            found = list(self._path.iterdir())
        except FileNotFoundError:
            return
        except NotADirectoryError:
            raise OutputError(
                f"cannot write to {name}: it is a file; give a folder, or a name with a suffix."
            ) from None
        except OSError as error:
            raise OutputError(
                f"cannot write to {name}: {reason_of(error, self._path, is_folder=True)}."
            ) from error
        if not found:
            return
        stored = _stored_settings(self._path / SETTINGS)
        if not is_header(stored):
            raise OutputError(
                f"cannot write to {name}: it is not empty, and holds no earlier results of masklet track. "
                "Nothing was touched; give another folder."
            )
        if self._start == "new":
            raise OutputError(
                f"cannot write to {name}: it holds earlier results. Give --resume to add the frames that are "
                "missing, --overwrite to replace them, or another folder."
            )
        if self._start == "resume":
            self._settings.check_resumes(stored, self._layout, name)

    def _prepare(self) -> None:
        """Make the folder, remove earlier results, and store the settings."""
        _make(self._path)
        settings = self._path / SETTINGS
        if self._start == "overwrite":
            _remove_results(self._path)
        if self._start != "resume" or not settings.exists():
            text = json.dumps(self._settings.header(self._layout), indent=2) + "\n"
            with open_atomic(settings) as file:
                file.write(text.encode())
        self._is_ready = True


def _name(index: int) -> str:
    return f"{index:05d}.png"


def _stored_settings(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _remove_results(folder: Path) -> None:
    """Delete what runs of masklet have written, and nothing else."""
    try:
        for path in list(folder.iterdir()):
            if path.is_dir() and _OBJECT.fullmatch(path.name):
                _remove_results(path)
                with suppress(OSError):  # something else is in it
                    path.rmdir()
            elif _FRAME.fullmatch(path.name):
                path.unlink()
    except OSError as error:
        raise OutputError(
            f"cannot replace {str(folder)!r}: {reason_of(error, folder, is_folder=True)}."
        ) from error


def _make(folder: Path) -> None:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        reason = reason_of(error, folder, is_folder=True)
        raise OutputError(f"cannot make the folder {str(folder)!r}: {reason}.") from error
