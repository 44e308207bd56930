"""Writes tests/golden/video_*.npz: how the reference's video predictor plays one scenario with tiny seeded
models, so that default tests need no torch.

In: `TINY_CONFIGS` of tests/parity/reference.py and `GOLDEN` of tests/parity/video_cases.py. Out: one .npz for
each configuration. Runs where torch and sam2 are installed:

    python tools/make_golden_video.py            writes the files
    python tools/make_golden_video.py --check    computes them again and compares with what is there

A file holds config, weights, tensors, versions           JSON, as in the files of make_golden.py scenario
the `repr` of the scenario that was played events                                       JSON: (step, frame,
object ids) of everything that was yielded event/E                                      its logits (N, 1, H,
W) kept/E/OBJECT/low_res, pointer, score        what the state holds of that object and frame
kept/E/OBJECT/memory                         its memory, bfloat16 as uint16 Each is reduced by
`masklet.testing.sampled`: reduce yours to the stored size. The frames are lossless.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "parity")]

import reference  # noqa: E402
import reference_video  # noqa: E402
import video_cases  # noqa: E402
from video_compare import values  # noqa: E402

from masklet.testing import sampled, weights_sha256  # noqa: E402

FOLDER = ROOT / "tests" / "golden"
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


def differences(found: dict[str, np.ndarray], stored: dict[str, np.ndarray]) -> list[str]:
    """What differs by more than rounding, one line each."""
    lines = [f"{key}: only on one side" for key in sorted(set(found) ^ set(stored))]
    for key in sorted(set(found) & set(stored) - {"versions"}):
        ours, theirs = found[key], stored[key]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            lines.append(f"{key}: {ours.dtype}{ours.shape}, stored {theirs.dtype}{theirs.shape}")
        elif ours.dtype.kind in "fu":
            a, b = (values(x) if x.dtype == np.uint16 else x for x in (ours, theirs))
            error = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), 1e-6)
            if error > (1e-2 if key.endswith("/memory") else TOLERANCE):  # bfloat16 has steps of 1/256
                lines.append(f"{key}: relative difference {error:.1e}")
        elif not np.array_equal(ours, theirs):
            lines.append(f"{key}: differs")
    return lines


def read(name: str) -> dict[str, np.ndarray]:
    """The stored content of one file."""
    with np.load(FOLDER / f"video_{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def main() -> None:
    """Write the golden files, or check them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    failed = False
    for name in RECIPES:
        content = golden(name)
        if check:
            lines = differences(content, read(name))
            failed |= bool(lines)
            print(f"{name}: {'equal' if not lines else chr(10).join(['differs', *lines])}")
        else:
            path = FOLDER / f"video_{name}.npz"
            np.savez_compressed(path, **content)
            print(f"{name}: {path.stat().st_size} bytes")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
