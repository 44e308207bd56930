"""README's Python and command line run as written; a small stand-in takes the published model's place."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import masklet
from masklet import testing
from masklet.apps import cli

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
PICTURE_HW = (480, 640)


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    testing.write_stand_in(tmp_path / "tiny.safetensors", testing.tiny_config())
    Image.fromarray(testing.synthetic_scene(1, PICTURE_HW).image).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_block(folder, monkeypatch, capsys):
    (code,) = blocks("python")
    load = masklet.load

    def stand_in(name):
        assert name == "sam2.1_hiera_tiny"
        return load(folder / "tiny.safetensors", threads=1)

    monkeypatch.setattr(masklet, "load", stand_in, raising=False)
    names: dict = {}
    exec(code, names)
    assert names["masks"].shape == (3, *PICTURE_HW)
    assert str(names["masks"].shape) in capsys.readouterr().out


def test_the_command_line(folder, monkeypatch):
    (command,) = [
        line for block in blocks("sh") for line in block.splitlines() if line.startswith("masklet ")
    ]
    arguments = [*shlex.split(command), "--model", "tiny.safetensors"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0
    assert np.asarray(Image.open("mask.png")).shape == PICTURE_HW
    assert Path("overlay.png").exists()
