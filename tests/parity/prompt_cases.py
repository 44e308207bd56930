"""The prompts that parity covers, as data. numpy only.

In: a synthetic scene and the model's input size. Out: named cases, each a set of keyword arguments that the
reference's `SAM2ImagePredictor.predict` and ours take alike. Knows nothing about either of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from masklet.testing import Scene, synthetic_scene

# Both are non-square. Every case runs on the first; the second, taller than wide, catches a swap of height
# and width.
PICTURES: dict[str, tuple[int, tuple[int, int]]] = {
    "landscape": (3, (720, 1280)),
    "portrait": (4, (900, 600)),
}
PORTRAIT_CASES = ("point", "box_negative_point", "batched_boxes")


@dataclass(frozen=True)
class PromptCase:
    """One call of `predict`. Coordinates are (x, y) pixels of the picture, unless it says otherwise."""

    name: str
    arguments: dict[str, Any] = field(repr=False)


def picture(name: str) -> Scene:
    """The scene of one of `PICTURES`."""
    seed, size_hw = PICTURES[name]
    return synthetic_scene(seed, size_hw)


def cases_for(name: str, image_size: int = 1024) -> list[PromptCase]:
    """The cases of one of `PICTURES`."""
    cases = prompt_cases(picture(name), image_size)
    return cases if name == "landscape" else [case for case in cases if case.name in PORTRAIT_CASES]


def prompt_cases(scene: Scene, image_size: int = 1024) -> list[PromptCase]:
    """Points, boxes, masks and their mixtures on `scene`, single and batched, with one and with several
    masks."""
    height, width = scene.masks.shape[1:]
    points, boxes = scene.points_xy, scene.boxes_xyxy
    corners = np.array([[0, 0], [width - 1, height - 1]], np.float32)
    positive = np.array([1], np.int32)
    mixed_points, mixed_labels = np.concatenate([points[:2], points[2:3]]), np.array([1, 1, 0], np.int32)
    mask_input = mask_logits(scene.masks[1], image_size)

    one = {"point_coords": points[:1], "point_labels": positive}
    several = {"point_coords": mixed_points, "point_labels": mixed_labels}
    box_and_point = {"box": boxes[2], "point_coords": points[3:], "point_labels": np.array([0], np.int32)}
    batched_points = {
        "point_coords": np.stack([points[[0, 1]], points[[1, 2]], points[[3, 0]]]),  # (O, N, 2)
        "point_labels": np.array([[1, 0], [1, 1], [1, 0]], np.int32),
    }
    batched_mixture = {  # a box and a negative point for each object
        "box": boxes[:2],
        "point_coords": points[[1, 0]][:, None],
        "point_labels": np.zeros((2, 1), np.int32),
    }
    table = [
        ("point", one, True),
        ("point_single", one, False),
        ("points", several, True),
        ("points_single", several, False),
        ("corner_points", {"point_coords": corners, "point_labels": np.array([1, 0], np.int32)}, False),
        ("relative_point", {"point_coords": points[:1] / (width, height), "point_labels": positive}, True),
        ("box", {"box": boxes[1]}, True),
        ("box_single", {"box": boxes[1]}, False),
        ("box_negative_point", box_and_point, False),
        ("batched_boxes", {"box": boxes[:3]}, False),
        ("batched_boxes_multimask", {"box": boxes[:2]}, True),
        ("batched_points", batched_points, True),
        ("batched_boxes_points", batched_mixture, False),
        ("mask", {"mask_input": mask_input}, False),
        ("mask_multimask", {"mask_input": mask_input}, True),
        ("mask_point", {"mask_input": mask_input, **one}, False),
        ("mask_box_point", {"mask_input": mask_input, **box_and_point}, True),
        ("nothing", {}, True),
    ]
    return [PromptCase(name, _arguments(name, prompt, multimask)) for name, prompt, multimask in table]


def mask_logits(mask: np.ndarray, image_size: int) -> np.ndarray:
    """(1, S/4, S/4) float32 logits as an earlier prediction gives: +-6 by the nearest pixel, on a slope."""
    side = image_size // 4
    rows = np.arange(side) * mask.shape[0] // side
    columns = np.arange(side) * mask.shape[1] // side
    slope = (np.arange(side)[:, None] + np.arange(side)[None, :]).astype(np.float32) * np.float32(2 / side)
    return (np.where(mask[rows][:, columns], np.float32(6), np.float32(-6)) + slope)[None]


def _arguments(name: str, prompt: dict[str, np.ndarray], multimask: bool) -> dict[str, Any]:
    arguments: dict[str, Any] = {**prompt, "multimask_output": multimask}
    if name == "relative_point":
        arguments["point_coords"] = arguments["point_coords"].astype(np.float32)
        arguments["normalize_coords"] = False
    return arguments
