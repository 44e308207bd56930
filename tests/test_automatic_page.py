"""The Python of docs/automatic.md runs as written; a small stand-in takes the published model's place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

import masklet
from masklet import testing

PAGE = Path(__file__).parents[1] / "docs" / "automatic.md"


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", blocks())
def test_the_page_runs(block, tmp_path, monkeypatch, capsys, finding_checkpoint):
    load = masklet.load
    monkeypatch.setattr(masklet, "load", lambda name: load(finding_checkpoint, threads=1), raising=False)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(testing.synthetic_scene(3, (120, 160)).image).save("photo.jpg")
    exec(compile(block, str(PAGE), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 10


def test_there_are_examples():
    assert len(blocks()) == 2
