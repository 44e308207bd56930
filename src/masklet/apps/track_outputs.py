"""Outputs of `masklet track`: what a name after -o means, and the writers that it takes.

In: the text of -o and the options that go with it. Out: writers of `masklet.io`. All that can be found out
before the work is found out here. Knows nothing about models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from masklet.apps import terminal
from masklet.errors import InputError, OutputError

if TYPE_CHECKING:
    from masklet.io.results import ResultWriter, RunSettings, Start
    from masklet.io.video import VideoSource

Kind = Literal["stdout", "video", "folder", "json", "lines"]

STDOUT = "-"
_RESUMABLE: tuple[Kind, ...] = ("folder", "lines")


@dataclass(frozen=True)
class Output:
    """One -o: a kind, and the path that it is written to."""

    kind: Kind
    path: Path

    def __str__(self) -> str:
        return "standard output" if self.kind == "stdout" else repr(str(self.path))


def parse_outputs(texts: Sequence[str], *, per_object: bool, masks: bool, resume: bool) -> list[Output]:
    """What the texts after -o mean. Raises `typer.BadParameter`, and `InputError` for a suffix that nothing
    is written as."""
    if not texts:
        raise typer.BadParameter(
            "where to? Give -o OUT.mp4 (or .mov, .mkv, .webm), -o FOLDER, -o OUT.json, -o OUT.jsonl, or -o - "
            "for lines on standard output."
        )
    outputs = [_parse(text) for text in texts]
    kinds = [output.kind for output in outputs]
    if per_object and "folder" not in kinds:
        raise typer.BadParameter("--per-object is about a folder of pictures, and no -o names a folder.")
    if not masks and not {"lines", "stdout"} & set(kinds):
        raise typer.BadParameter("--no-masks is about JSON lines, and no -o names them (OUT.jsonl or -).")
    if resume:
        for output in outputs:
            if output.kind not in _RESUMABLE:
                raise typer.BadParameter(
                    f"{output} cannot be resumed; a folder of pictures and a .jsonl file can be."
                )
    return outputs


def _parse(text: str) -> Output:
    from masklet.io.result_video import VIDEO_SUFFIXES

    path = Path(text)
    suffix = path.suffix.lower()
    if text == STDOUT:
        return Output("stdout", path)
    if not suffix or text.endswith(("/", os.sep)) or path.is_dir():
        return Output("folder", path)
    if suffix in VIDEO_SUFFIXES:
        return Output("video", path)
    if suffix == ".json":
        return Output("json", path)
    if suffix == ".jsonl":
        return Output("lines", path)
    raise InputError(
        f"Cannot write {text!r}: the suffix {suffix!r} is none of {', '.join(VIDEO_SUFFIXES)}, .json and "
        ".jsonl. A folder has no suffix, or ends with a slash."
    )


def check_writable(outputs: Sequence[Output], video: str) -> None:
    """Find out before the work what would fail after it. Raises `OutputError`."""
    paths = [output.path.resolve() for output in outputs]
    for output in outputs:
        path, folder = output.path, output.path.parent
        if output.kind == "stdout":
            reason = ""
        elif not folder.is_dir():
            reason = f"the folder {str(folder)!r} does not exist; create it first"
        elif not os.access(path if path.is_dir() else folder, os.W_OK):
            reason = "no permission to write there; choose another folder"
        elif path.resolve() == Path(video).resolve():
            reason = "that is the video itself; choose another name"
        else:
            reason = ""
        if paths.count(path.resolve()) > 1:
            reason = "two results would go there; choose another name for one of them"
        if reason:
            raise OutputError(f"cannot write to {output}: {reason}.")


def open_writers(
    outputs: Sequence[Output],
    settings: RunSettings,
    object_ids: Sequence[int],
    source: VideoSource,
    *,
    per_object: bool,
    masks: bool,
    reverse: bool,
    start: Start,
) -> list[ResultWriter]:
    """A writer for each output. Raises `OutputError` where there is something that `start` does not allow to
    touch, `typer.BadParameter` for an id that a label map cannot hold."""
    from masklet.io.label_map import MAX_OBJECT_ID
    from masklet.io.result_folder import MaskFolder
    from masklet.io.result_text import CocoDocument, JsonLines, PrintedLines
    from masklet.io.result_video import OverlayVideo, ReplayedOverlay

    writers: list[ResultWriter] = []
    for output in outputs:
        path = output.path
        if output.kind == "stdout":
            writers.append(PrintedLines(terminal.write, masks=masks))
        elif output.kind == "lines":
            writers.append(JsonLines(path, settings, masks=masks, start=start))
        elif output.kind == "json":
            writers.append(CocoDocument(path, settings, start=start))
        elif output.kind == "video":
            video = OverlayVideo(path, fps=source.fps, start=start)
            writers.append(ReplayedOverlay(video, source.frames) if reverse else video)
        else:
            if not per_object and max(object_ids) > MAX_OBJECT_ID:
                raise typer.BadParameter(
                    f"object {max(object_ids)} does not fit into pictures with a palette, whose indices end "
                    f"at {MAX_OBJECT_ID}; choose another number, or give --per-object."
                )
            writers.append(MaskFolder(path, settings, object_ids, per_object=per_object, start=start))
    return writers
