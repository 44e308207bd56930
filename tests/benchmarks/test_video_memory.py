"""The page and the plot of the memory benchmark, from samples made up here; no network runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "video_memory.py"
SVG = "{http://www.w3.org/2000/svg}"
MIB = 2**20


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("video_memory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "video_memory", module)
    spec.loader.exec_module(module)
    return module


def lines(first: int, last: int) -> str:
    """What a case prints when its memory goes from one size to another, in MiB, after frame 50."""
    return "\n".join(
        json.dumps({"frame": frame, "resident": size * MIB, "peak": size * MIB + MIB, "on_disk": frame * MIB})
        for frame, size in ((1, 10), (10, 20), (50, first), (60, first), (100, last))
    )


def test_growth_is_of_the_peak_after_frame_50(benchmark: ModuleType) -> None:
    samples = benchmark.parse(lines(199, 249))
    assert benchmark.at(samples, 55).frame == 50
    assert benchmark.growth(samples) == 0.25


def test_table_and_plot(benchmark: ModuleType) -> None:
    found = {
        benchmark.Case("Tracker", 480, 1): benchmark.parse(lines(100, 103)),
        benchmark.Case("VideoPredictor", 1080, 8): benchmark.parse(lines(300, 290)),
    }
    rows = benchmark.table(found).splitlines()
    assert rows[2] == (
        "| Tracker | 854 x 480 | 1 | 100 MiB | 103 MiB | 101 MiB | 104 MiB | +3.0% | 100 MiB |"
    )
    assert len({row.count("|") for row in rows}) == 1

    drawn = ElementTree.fromstring(benchmark.plot(found))
    tracks = [line.attrib for line in drawn.iter(f"{SVG}polyline")]
    assert ["stroke-dasharray" in line for line in tracks] == [True, False]  # the highest one first
    width, height = benchmark.PLOT_WH
    xy = np.array([[pair.split(",") for pair in line["points"].split()] for line in tracks], float)
    assert ((xy > 0) & (xy < (width, height))).all()
    assert (np.diff(xy[..., 0]) > 0).all()
    assert (xy[0, 2:, 1] < xy[1, 2:, 1]).all()  # 300 MiB lie above 100
    texts = [text.text for text in drawn.iter(f"{SVG}text")]
    assert {"Tracker, 480p, 1 object", "VideoPredictor, 1080p, 8 objects", "0", "frames tracked"} <= set(
        texts
    )


def test_the_clip_pans_and_clicks_are_inside(benchmark: ModuleType) -> None:
    scene = np.random.default_rng(0).integers(0, 255, (64 + benchmark.PAN, 96 + benchmark.PAN, 3), np.uint8)
    made = list(benchmark.pictures(scene, 4))
    assert {picture.shape for picture in made} == {(64, 96, 3)}
    assert not np.array_equal(made[0], made[1])
    for objects in (1, 2, 8):
        points = np.array(benchmark.points_xy((64, 96), objects))
        assert len(np.unique(points, axis=0)) == objects
        assert ((points >= 0) & (points < (96, 64))).all()
