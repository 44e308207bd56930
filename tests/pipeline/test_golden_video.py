"""Small networks tracked through a clip, against what Meta's code made of it (tests/golden, written by
tools/make_golden_video.py).

Every network sees the results of its own earlier steps, so the tolerance is that of rounding carried along,
bfloat16 memories included; the choices of the recorded session lie far from ties. What is done in the session
is data, in tests/parity/video_cases.py.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.families.family import CONFIG_KEY
from masklet.families.sam2 import Sam2Config
from masklet.io.safetensors import write_safetensors
from masklet.model.config import HieraConfig

TESTS = Path(__file__).parents[1]
GOLDEN = sorted((TESTS / "golden").glob("video_*.npz"))
RELATIVE = 2e-3  # of the largest magnitude
MEMORY_RELATIVE = 1e-2  # bfloat16 has steps of 1/256


@pytest.fixture(scope="module")
def video_cases():
    spec = importlib.util.spec_from_file_location("video_cases", TESTS / "parity" / "video_cases.py")
    module = sys.modules["video_cases"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)  # its dataclasses look for their module by name
    yield module
    del sys.modules["video_cases"]


class Golden:
    """One file: a loaded model of the same weights, and what was yielded and kept."""

    def __init__(self, path: Path, folder: Path) -> None:
        with np.load(path) as stored:
            self.arrays = {name: stored[name] for name in stored.files}
        weights = self.json("weights")
        shapes = {name: tuple(shape) for name, shape in self.json("tensors").items()}
        tensors = testing.lively_weights(
            shapes, weights["seed"], object_score_bias=weights["object_score_bias"]
        )
        assert testing.weights_sha256(tensors) == weights["sha256"]
        file = folder / f"{path.stem}.safetensors"
        write_safetensors(file, tensors, {CONFIG_KEY: _config(self.json("config")).to_json()})
        self.model = masklet.load(file, threads=1)

    def json(self, name: str):
        return json.loads(str(self.arrays[name]))


def _config(values: dict) -> Sam2Config:
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    trunk = HieraConfig(**{name: lists[name] for name in HieraConfig.__dataclass_fields__})
    return Sam2Config(
        trunk=trunk,
        mlp_dim=2048,  # as the reference has it
        memory_layers=4,
        **{name: lists[name] for name in ("version", "d_model", "memory_dim", "image_size")},
    )


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def played(golden, video_cases):
    """Everything that was yielded, with what the state held of its frame."""
    scenario = video_cases.GOLDEN
    assert str(golden.arrays["scenario"]) == repr(scenario), "run tools/make_golden_video.py"
    predictor = masklet.VideoPredictor(golden.model, fill_hole_area=0, **scenario.settings)
    events = []
    with predictor.init_state(list(scenario.clip.frames)) as state:
        for event in video_cases.play(scenario, predictor, state):
            made = {
                obj: track.pending(True).get(event.frame) or track.recall(event.frame)
                for obj, track in state.tracks.items()
            }
            events.append((event, {obj: memory for obj, memory in made.items() if memory is not None}))
    return events


def check(got: np.ndarray, wanted: np.ndarray, tolerance: float, name: str) -> None:
    limit = tolerance * np.abs(wanted).max(initial=0)
    np.testing.assert_allclose(
        testing.sampled(got, wanted.size).ravel(), wanted.ravel(), rtol=0, atol=limit, err_msg=name
    )


def test_there_are_both_versions():
    assert [path.stem for path in GOLDEN] == ["video_tiny_2.0", "video_tiny_2.1"]


def test_every_yield(golden, played):
    wanted = [(step, frame, tuple(ids)) for step, frame, ids in golden.json("events")]
    assert [(event.step, event.frame, event.object_ids) for event, _ in played] == wanted
    for index, (event, _) in enumerate(played):
        check(event.logits, golden.arrays[f"event/{index}"], RELATIVE, f"event {index}")


def test_every_memory(golden, played):
    kept = {name for name in golden.arrays if name.startswith("kept/")}
    for index, (_, made) in enumerate(played):
        for obj, memory in made.items():
            prefix = f"kept/{index}/{obj}"
            found = {"low_res": memory.logits[0], "pointer": memory.pointer}
            for what, array in found.items():
                check(array, golden.arrays[f"{prefix}/{what}"], RELATIVE, f"{prefix}/{what}")
            score = float(golden.arrays[f"{prefix}/score"])
            assert memory.object_score == pytest.approx(score, abs=RELATIVE), prefix
            kept -= {f"{prefix}/{what}" for what in (*found, "score")}
            if memory.memory is not None:
                # Raster order here, channels first there.
                bits = testing.sampled(memory.memory.T, golden.arrays[f"{prefix}/memory"].size)
                check(
                    *(floats(array.ravel()) for array in (bits, golden.arrays[f"{prefix}/memory"])),
                    MEMORY_RELATIVE,
                    f"{prefix}/memory",
                )
                kept.discard(f"{prefix}/memory")
    assert not kept


def floats(bits: np.ndarray) -> np.ndarray:
    """bfloat16 as uint16 to float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
