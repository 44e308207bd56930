"""A checkpoint small enough for every test, a picture to go with it, and the command as tests call it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from masklet import testing
from masklet.apps.cli import app

SCENE_HW = (120, 160)  # pixels


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config())
    return path


@pytest.fixture
def scene() -> testing.Scene:
    return testing.synthetic_scene(seed=3, size_hw=SCENE_HW)


@pytest.fixture
def workplace(tmp_path: Path, scene: testing.Scene, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture `scene.png` in it."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(scene.image).save("scene.png")
    return tmp_path


@pytest.fixture
def masklet() -> Callable[..., Any]:
    """Calls the command; gives exit code, stdout and stderr, and raises what the command did not expect."""

    def call(*arguments: object) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="masklet")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call


@pytest.fixture
def plain() -> Callable[[str], str]:
    """Text without colours, frames and line breaks, as help and usage errors put them around it."""

    def strip(text: str) -> str:
        return " ".join(re.sub(r"\x1b\[[0-9;]*m|[│╭╮╰╯─]", " ", text).split())

    return strip
