"""Writes tests/golden/video_*.npz: how the reference's video predictor plays one scenario with tiny seeded
models, so that default tests need no torch.

In: `TINY_CONFIGS` of tests/parity/reference.py and `GOLDEN` of tests/parity/video_cases.py. Out: one .npz for
each configuration. Runs where torch and sam2 are installed:

    python tools/make_golden_video.py            writes the files
    python tools/make_golden_video.py --check    computes them again and compares with what is there

A file holds
    config, weights, tensors, versions      JSON, as in the files of make_golden.py
    scenario                                the `repr` of the scenario that was played
    events                                  JSON: (step, frame, object ids) of everything that was yielded
    event/E                                 its logits (N, 1, H, W)
    kept/E/OBJECT/low_res, pointer, score   what the state holds of that object and frame
    kept/E/OBJECT/memory                    its memory, bfloat16 as uint16
Each is reduced by `masklet.testing.sampled`: reduce yours to the stored size. The frames are lossless.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools"), str(ROOT / "tests" / "parity")]

import golden_files  # noqa: E402
import reference  # noqa: E402
import reference_video  # noqa: E402
import video_cases  # noqa: E402
from measures import relative  # noqa: E402
from video_compare import values  # noqa: E402

from masklet.testing import sampled, weights_sha256  # noqa: E402

SIZES = {"event": 512, "low_res": 256, "pointer": 16, "score": 1, "memory": 128}  # elements
# Of the largest magnitude: another processor's order of summation, carried through memories that are rounded
# to bfloat16.
TOLERANCE = 2e-3

# For each configuration: seed and object score bias. Chosen like `reference_video.FILLS`.
RECIPES = {"tiny_2.1": (10, -0.46), "tiny_2.0": (3, 0.08)}


def recording(name: str) -> tuple[reference_video.Recording, dict[str, np.ndarray]]:
    """The scenario as the reference plays it, and the weights."""
    seed, bias = RECIPES[name]
    model = reference_video.build_tiny(reference.TINY_CONFIGS[name], seed, object_score_bias=bias)
    weights = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    scenario = video_cases.GOLDEN
    with tempfile.TemporaryDirectory() as folder:
        frames = video_cases.write_frames(scenario.shots, Path(folder), lossless=True)
        return reference_video.record(model, frames, scenario), weights


def golden(name: str) -> dict[str, np.ndarray]:
    """The content of one file."""
    played, weights = recording(name)
    seed, bias = RECIPES[name]
    facts = {
        "weights": {"seed": seed, "object_score_bias": bias, "sha256": weights_sha256(weights)},
        "tensors": {key: array.shape for key, array in weights.items()},
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "sam2", "numpy")},
        "events": [(event.step, event.frame, event.object_ids) for event in played.events],
    }
    content = {key: np.array(json.dumps(fact)) for key, fact in facts.items()}
    content["config"] = np.array(reference.TINY_CONFIGS[name].to_json())
    content["scenario"] = np.array(repr(video_cases.GOLDEN))
    for index, (event, kept) in enumerate(zip(played.events, played.kept, strict=True)):
        content[f"event/{index}"] = sampled(event.logits, SIZES["event"] * len(event.object_ids))
        for obj, state in kept.items():
            for what, array in state.items():
                content[f"kept/{index}/{obj}/{what}"] = sampled(array, SIZES[what])
    return content


def problem(key: str, ours: np.ndarray, theirs: np.ndarray) -> str | None:
    """What differs by more than rounding."""
    if ours.dtype.kind not in "fu":
        return golden_files.unequal(ours, theirs)
    error = relative(*(values(x) if x.dtype == np.uint16 else x for x in (ours, theirs)))
    bar = 1e-2 if key.endswith("/memory") else TOLERANCE  # bfloat16 has steps of 1/256
    return f"relative difference {error:.1e}" if error > bar else None


if __name__ == "__main__":
    golden_files.run(RECIPES, golden, problem, prefix="video_")
