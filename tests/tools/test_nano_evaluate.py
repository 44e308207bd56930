"""The measurements of masklet-nano, on drawn scenes and a network that answers at random."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from masklet import testing

pytest.importorskip("cv2", reason="tools/nano composes with opencv-python-headless")
pytest.importorskip("scipy", reason="tools/nano measures with scipy")

TOOLS = Path(__file__).parents[2] / "tools" / "nano"
SIDE = 64


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of tools/nano and forgets all of them afterwards; gives it with its command."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(TOOLS))

    def load(name: str) -> tuple[ModuleType, Any]:
        module = importlib.import_module(name)

        def command(*arguments: object) -> None:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
            module.main()

        return module, command

    yield load
    for name in set(sys.modules) - before:
        if str(TOOLS) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config(image_size=64), object_score_bias=5.0)
    return path


def cells(text: str) -> list[list[str]]:
    """The rows of Markdown tables."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_report_has_all_that_is_asked_for(
    tool: Any,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    evaluate, command = tool("evaluate")
    monkeypatch.setattr(evaluate, "CLIPS", {"1 object, 3 frames": (1, 3), "2 objects, 4 frames": (2, 4)})
    sizes = ("--stills", 2, "--clips", 1, "--side", SIDE)
    files = ("-o", tmp_path / "report.json", "--pictures", tmp_path / "shown")
    command(tmp_path, "--model", checkpoint, "--precision", "f32", *sizes, *files)

    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["image_size"], report["precision"], report["stills"]["pictures"]) == (64, "f32", 2)
    assert set(report["stills"]["mean IoU"]) == {*(f"{n} clicks" for n in range(1, 6)), "box"}
    assert sum(count for _, _, count in report["stills"]["calibration"]) == 5 * report["stills"]["objects"]
    nothing = report["nothing"]
    assert set(nothing) == {"no prompt", "click on background", "click on an object"}
    assert nothing["click on background"]["called absent"] == 0  # of a network that sees everything
    assert {row["frames"] for row in report["clips"].values()} == {3, 4}
    assert all(0 <= row["J&F"] <= 1 for row in report["clips"].values())
    assert list((tmp_path / "shown").glob("*.png"))

    first = [row[0] for row in cells(capsys.readouterr().out)]
    assert {"1 clicks", "5 clicks", "box", "no prompt", "click on background", "1 object, 3 frames"} <= set(
        first
    )


def test_precisions_are_compared_with_f32_and_with_the_truth(
    tool: Any, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, command = tool("precisions")
    sizes = ("--stills", 2, "--clips", 1, "--frames", 3, "--side", SIDE)
    storage = ("--storage", "as given", "f16", "q4_0")
    command(tmp_path, checkpoint, *sizes, *storage, "--compute", "f32", "int8", "-o", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["storage"], row["compute"]) for row in rows] == [
        ("as given", "f32"), ("as given", "int8"), ("f16", "f32"), ("f16", "int8"), ("q4_0", "f32"),
        ("q4_0", "int8"),
    ]  # fmt: skip
    kinds = {"1 click", "candidates", "box", "clips"}
    assert rows[0]["with f32"] == dict.fromkeys(kinds, 1.0)
    mean = {
        row["storage"]: np.mean(list(row["with f32"].values())) for row in rows if row["compute"] == "f32"
    }
    assert 1 >= mean["f16"] > mean["q4_0"] > 0
    assert rows[0]["bytes"] > rows[2]["bytes"] > rows[4]["bytes"]
    header, *lines = cells(capsys.readouterr().out)
    assert {len(line) for line in lines} == {len(header)} == {10}
    assert lines[0][3:7] == ["1.0000"] * 4
