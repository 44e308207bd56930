from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from masklet.apps.bench import CLICKS_PER_ENCODING, Timing, peak_memory

Command = Callable[..., Any]


def test_json(masklet: Command, tiny_checkpoint: Path) -> None:
    result = masklet("bench", tiny_checkpoint, "--repeats", "2", "--threads", "1", "--json")
    assert (result.exit_code, result.stderr) == (0, "Timing 2 encodings\n")
    report = json.loads(result.stdout)
    assert report["threads"] == 1
    assert report["image_size"] == 128
    assert set(report["versions"]) == {"masklet", "onnxruntime", "numpy", "python"}
    assert report["peak_memory_bytes"] is None or report["peak_memory_bytes"] > 20e6
    runs = {name: timing["runs"] for name, timing in report["seconds"].items()}
    assert runs == {"load": 1, "first": 1, "encode": 2, "click": 2 * CLICKS_PER_ENCODING}
    for timing in report["seconds"].values():
        assert 0 < timing["min"] <= timing["median"] <= timing["max"]


def test_text(masklet: Command, tiny_checkpoint: Path) -> None:
    result = masklet("bench", tiny_checkpoint, "--repeats", "2")
    assert result.exit_code == 0
    names = [line[:11].strip() for line in result.stdout.splitlines()]
    assert names == [
        "model", "device", "load", "first mask", "encode", "click", "peak memory", "versions", "machine",
    ]  # fmt: skip
    assert "in 2 runs), 1280 x 720 picture" in result.stdout


def test_no_repeats_is_a_usage_error(masklet: Command, tiny_checkpoint: Path) -> None:
    assert masklet("bench", tiny_checkpoint, "--repeats", "0").exit_code == 2


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ([2.0], "2 s"),
        ([1.0, 3.0, 1.5], "1.5 s  (1 to 3 in 3 runs)"),
        ([0.0123, 0.5], "256 ms  (12.3 to 500 in 2 runs)"),
    ],
)
def test_timings_are_medians_with_their_spread(seconds: list[float], text: str) -> None:
    assert str(Timing.of(seconds)) == text


def test_peak_memory_grows() -> None:
    before = peak_memory()
    if before is None:
        pytest.skip("this system does not say")
    held = bytearray(before)  # as much again
    after = peak_memory()
    assert after is not None
    assert after > 1.5 * before
    del held
