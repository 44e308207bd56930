"""Checkpoints small enough for every test, a picture and a clip to go with them, and the command as tests
call it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from masklet import testing
from masklet.apps.cli import app

sys.path.insert(0, str(Path(__file__).parent))  # for the helpers in this folder

SCENE_HW = (120, 160)  # pixels
CLIP_HW = (48, 64)


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


@pytest.fixture
def refuse_models(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, loading a model is a failure."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    return lambda: monkeypatch.setattr("masklet.apps.options.load_model", refuse)


@pytest.fixture
def no_model(refuse_models: Callable[[], None]) -> None:
    """Loading a model is a failure: what is wrong must be found before."""
    refuse_models()


# ------------------------------------------------------------------------------------------------------ video


@pytest.fixture(scope="session")
def seeing_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees every object that it is asked for."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config(), object_score_bias=5.0)
    return path


@pytest.fixture(scope="session")
def write_clip() -> Callable[[Path, int], None]:
    """Writes that many frames of a scene that moves to the left, 10 a second."""

    def write(path: Path, num_frames: int) -> None:
        av = pytest.importorskip("av")
        scene = testing.synthetic_scene(seed=3, size_hw=CLIP_HW).image
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "10"})
            stream.height, stream.width = CLIP_HW
            stream.pix_fmt = "yuv420p"
            for index in range(num_frames):
                picture = np.ascontiguousarray(np.roll(scene, -index, axis=1))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())

    return write


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[[Path, int], None]) -> Path:
    """A clip of 8 frames."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, 8)
    return path


@pytest.fixture
def track(
    masklet: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clip: Path,
    seeing_checkpoint: Path,
) -> Callable[..., Any]:
    """Calls `masklet track` on the clip, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, video: object = clip) -> Any:
        return masklet("track", video, *arguments, "--model", seeing_checkpoint, "--threads", 1)

    return call
