"""What all outputs of tracking share: the interface of a writer, and the settings that a resumed run must
repeat.

In: results, frame by frame. Out: files, which other modules of this folder write. Knows nothing about models.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from masklet.errors import OutputError
from masklet.types import FrameResult

# "new" refuses to touch what is there, "overwrite" replaces it, "resume" adds the frames that are missing.
Start = Literal["new", "overwrite", "resume"]

FORMAT = "masklet-track-1"


class ResultWriter(ABC):
    """Where results go. Nothing is written before the first `write`; `finish` makes the files complete and
    valid for the frames that they have, also after an error and with none at all."""

    needs_pixels = False  # whether `write` must be given the frame's picture

    def has(self, index: int) -> bool:
        """Whether a frame is there from the run that is resumed."""
        return False

    @abstractmethod
    def write(self, result: FrameResult, pixels: np.ndarray | None = None) -> None:
        """Add a frame. Raises `OutputError` where it cannot be written; the frames before it stay."""

    def finish(self) -> None:
        """Complete the files. Raises `OutputError`."""
        return


@dataclass(frozen=True)
class RunSettings:
    """All that decides the results of a run, under the names of the command's options, as JSON holds it."""

    values: Mapping[str, Any]

    def header(self, layout: str) -> dict[str, Any]:
        """What is stored with results, so that a later run can tell whether it continues them."""
        return {"format": FORMAT, "layout": layout, **json.loads(json.dumps(self.values))}

    def check_resumes(self, stored: Any, layout: str, name: str) -> None:
        """Raises `OutputError` unless `stored` is the header of a run with the same settings."""
        if not is_header(stored):
            raise OutputError(f"cannot resume {name}: masklet track did not write it. Choose another output.")
        wanted = self.header(layout)
        changed = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
        if changed:
            told = "; ".join(
                f"{key} was {_short(stored.get(key))}, now {_short(wanted.get(key))}" for key in changed
            )
            raise OutputError(
                f"cannot resume {name}, it was written with other settings: {told}. Repeat the settings, or "
                "start anew with --overwrite or another output."
            )


def check_file(path: Path, start: Start, *, resumable: bool) -> None:
    """Raises `OutputError` where `start` does not allow to touch what is at `path`."""
    name = repr(str(path))
    if not path.exists():
        return
    if not path.is_file():
        raise OutputError(f"cannot write to {name}: it is not a plain file; choose another name.")
    if start == "new":
        resume = "--resume to add the frames that are missing, " if resumable else ""
        raise OutputError(
            f"cannot write to {name}: there is such a file. Give {resume}--overwrite to replace it, or "
            "another name."
        )


def is_header(stored: Any) -> bool:
    """Whether a JSON value is what `RunSettings.header` makes."""
    return isinstance(stored, dict) and stored.get("format") == FORMAT


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
