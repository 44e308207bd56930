"""README's Python and command line run as written, with the model in the package; where speed matters, a
stand-in takes its place."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import masklet
from masklet import registry, testing
from masklet.apps import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PICTURE_HW = (480, 640)
FRAMES = 3


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    testing.write_stand_in(tmp_path / "tiny.safetensors", testing.tiny_config())
    Image.fromarray(testing.synthetic_scene(1, PICTURE_HW).image).save(tmp_path / "photo.jpg")
    with av.open(tmp_path / "clip.mp4", "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width = PICTURE_HW
        stream.pix_fmt = "yuv420p"
        for seed in range(FRAMES):
            image = testing.synthetic_scene(seed, PICTURE_HW).image
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_block(folder, capsys):
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)
    assert names["predictor"].model.source == str(registry.BUNDLED.path)
    assert names["masks"].shape == (3, *PICTURE_HW)
    assert str(names["masks"].shape) in capsys.readouterr().out


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_command_lines(index, folder, monkeypatch):
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("masklet ")]
    arguments = [*shlex.split(lines[index], comments=True), "--model", "tiny.safetensors"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    if index == 0:
        assert np.asarray(Image.open("mask.png")).shape == PICTURE_HW
        assert Path("overlay.png").exists()
    elif index == 2:
        assert Path("masks.json").exists()
    else:
        with masklet.open_video("seen.mp4") as seen:
            assert (seen.num_frames, seen.size_hw) == (FRAMES, PICTURE_HW)
