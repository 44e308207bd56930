"""The Python of docs/video.md runs as written; a small stand-in takes the published model's place."""

from __future__ import annotations

import re
from pathlib import Path

import av
import pytest

import masklet
from masklet import testing

PAGE = Path(__file__).parents[1] / "docs" / "video.md"
FRAMES = 6


def blocks() -> list[str]:
    found = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [block for block in found if not block.startswith("# needs:")]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    testing.write_stand_in(tmp_path / "tiny.safetensors", testing.tiny_config(), object_score_bias=5.0)
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for seed in range(FRAMES):
            image = testing.synthetic_scene(seed, (240, 320)).image
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    load = masklet.load
    monkeypatch.setattr(
        masklet, "load", lambda name: load(tmp_path / "tiny.safetensors", threads=1), raising=False
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("block", "lines"), list(zip(blocks(), (2 * FRAMES, FRAMES), strict=True)))
def test_the_page_runs(block, lines, folder, capsys):
    exec(compile(block, str(PAGE), "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == lines
    assert all("tracked" in line for line in printed)
