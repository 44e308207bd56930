"""Writes tests/golden/*.npz: what the reference computes for tiny seeded models, so that default tests need
no torch.

In: `TINY_CONFIGS` and `TINY` of the references in tests/parity, and the prompts of prompt_cases.py there.
Out: one .npz for each configuration. Runs where torch, sam2 and segment-anything are installed:

    python tools/make_golden.py            writes the files
    python tools/make_golden.py --check    computes them again and compares with what is there

A file holds
    config           JSON: the fields of `reference.TinyConfig`, of SAM those of `Sam1Config`
    weights          JSON: seed and object_score_bias, for `masklet.testing.lively_weights`; sha256 of the
                     tensors
    tensors          JSON: name -> shape of every tensor of the checkpoint, those of the video parts too
    scene            JSON: seed and size_hw, for `masklet.testing.synthetic_scene`
    versions         JSON: what computed it
    encoder/PATH                 outputs of the encoder by module path (`reference.dump_encoder`)
    prompt/CASE/arguments/KEY    arguments of `predict`
    prompt/CASE/PATH             outputs of the call (`reference.dump_prompt`)
An output with more elements than its kind may have is reduced by `masklet.testing.sampled`: reduce yours
to the stored size.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools"), str(ROOT / "tests" / "parity")]

import golden_files  # noqa: E402
import prompt_cases  # noqa: E402
import reference  # noqa: E402
import reference_sam1  # noqa: E402
from measures import relative  # noqa: E402

from masklet.testing import Scene, sampled, synthetic_scene, tiny_sam1_config, weights_sha256  # noqa: E402

# 32 KB for a final output of the encoder, 2 KB for a step on the way.
WHOLE_ELEMENTS, TRACE_ELEMENTS = 8192, 512
FINAL = frozenset(("image_embed", "sam_mask_decoder.conv_s0", "sam_mask_decoder.conv_s1"))
RETURNED = frozenset(("masks", "ious"))  # kept whole; bits compress well
# They follow closely from others.
DROPPED = (".layers.", ".output_hypernetworks_mlps.", ".sam_tokens", ".mask_tokens")
TOLERANCE = 2e-5  # of the largest magnitude: another processor's order of summation

# For each configuration: seed, object score bias, scene. Chosen like the seeds of `reference.VARIANTS`.
RECIPES = {
    "tiny_2.1": (10, -0.57, (5, (144, 256))),
    "tiny_2.0": (15, 0.57, (6, (200, 120))),
}
SAM1, SAM1_SCENE = "tiny_sam1", (5, (72, 128))


def golden(name: str) -> dict[str, np.ndarray]:
    """The content of one file."""
    if name == SAM1:
        return golden_sam1()
    config = reference.TINY_CONFIGS[name]
    seed, bias, (scene_seed, size_hw) = RECIPES[name]
    model = reference.build_tiny(config, seed, object_score_bias=bias)
    scene = synthetic_scene(scene_seed, size_hw)
    return {
        "config": np.array(config.to_json()),
        **facts(model, "sam2", {"seed": seed, "object_score_bias": bias}, RECIPES[name][2]),
        **answers(reference, model, scene, config.image_size),
    }


def golden_sam1() -> dict[str, np.ndarray]:
    """The content of SAM's file."""
    config, scene = tiny_sam1_config(reference_sam1.TINY_SIZE), synthetic_scene(*SAM1_SCENE)
    model = reference_sam1.build_tiny()
    filled = {"seed": reference_sam1.TINY.seed, "object_score_bias": None}
    return {
        "config": np.array(config.to_json()),
        **facts(model, "segment-anything", filled, SAM1_SCENE),
        **answers(reference_sam1, model, scene, config.image_size),
    }


def facts(model: Any, package: str, filled: dict[str, Any], scene: tuple) -> dict[str, np.ndarray]:
    """What the numbers come from, as JSON."""
    state = {key: tensor.numpy() for key, tensor in model.state_dict().items()}

    found = {
        "weights": {**filled, "sha256": weights_sha256(state)},
        "tensors": reference.state_shapes(model),
        "scene": {"seed": scene[0], "size_hw": scene[1]},
        "versions": {name: importlib.metadata.version(name) for name in ("torch", package, "numpy")},
    }
    return {key: np.array(json.dumps(x)) for key, x in found.items()}


def answers(source: ModuleType, model: Any, scene: Scene, image_size: int) -> dict[str, np.ndarray]:
    """What the reference, as `source` runs it, makes of a picture and all prompts."""
    content = {}
    encoded = source.predictor(model)
    for path, array in source.dump_encoder(model, scene.image, encoded).items():
        content[f"encoder/{path}"] = sampled(array, WHOLE_ELEMENTS if path in FINAL else TRACE_ELEMENTS)
    for case in prompt_cases.prompt_cases(scene, image_size):
        prefix = f"prompt/{case.name}"
        content.update({f"{prefix}/arguments/{key}": np.asarray(x) for key, x in case.arguments.items()})
        for path, array in source.dump_prompt(encoded, **case.arguments).items():
            if not any(part in path for part in DROPPED):
                content[f"{prefix}/{path}"] = array if path in RETURNED else sampled(array, TRACE_ELEMENTS)
    return content


def problem(key: str, ours: np.ndarray, theirs: np.ndarray) -> str | None:
    """What differs by more than rounding."""
    if key.endswith("/masks"):
        flipped = np.count_nonzero(ours != theirs)
        return f"{flipped} of {ours.size} pixels flipped" if flipped > 1e-3 * ours.size else None
    if ours.dtype.kind != "f":
        return golden_files.unequal(ours, theirs)
    error = relative(ours, theirs)
    # A stability score is a ratio of pixel counts: one flipped pixel is no error.
    bar = 1e-3 if key.endswith(".stability") else TOLERANCE
    return f"relative difference {error:.1e}" if error > bar else None


if __name__ == "__main__":
    golden_files.run((*reference.TINY_CONFIGS, SAM1), golden, problem)
