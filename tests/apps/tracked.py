"""What the tests of `masklet track` share: prompts, and how the files are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROMPTS = ("--point", "0:1:20,20", "--box", "2:5:30,10,60,40")


def lines(text: str) -> list[dict[str, Any]]:
    """The documents of JSON lines."""
    return [json.loads(line) for line in text.splitlines()]


def times_of(path: Path | str) -> list[float]:
    """When the frames of a video are shown, in seconds."""
    import av

    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def content(folder: Path | str) -> dict[str, bytes]:
    """All files below a folder."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
