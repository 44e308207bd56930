"""How far two arrays are apart, and whether an answer to a prompt meets its bars.

In: our arrays and the reference's. Out: numbers; or an assertion that fails. numpy only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bars:
    """What an answer must reach; of several masks each one."""

    logits_cosine: float
    mask_iou: float
    score_difference: float = 1e-3


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """1 for arrays of one direction; two arrays of zeros have one."""
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norms = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norms) if norms else float(np.array_equal(a, b))


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Of two boolean masks; 1 for two empty ones."""
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else 1.0


def relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference, in units of their largest value."""
    assert ours.shape == theirs.shape
    return float(np.abs(ours - theirs).max(initial=0) / max(np.abs(theirs).max(initial=0), 1e-6))


def check_answer(
    answer: tuple[np.ndarray, np.ndarray, np.ndarray], wanted: Mapping[str, np.ndarray], bars: Bars
) -> None:
    """What our `predict` returned beside `masks`, `ious` and `low_res_masks` of the reference."""
    masks, scores, low_res = answer
    for ours, name in ((masks, "masks"), (scores, "ious"), (low_res, "low_res_masks")):
        assert ours.shape == wanted[name].shape, name
    assert np.abs(scores - wanted["ious"]).max() <= bars.score_difference
    for ours, theirs in zip(planes(low_res), planes(wanted["low_res_masks"]), strict=True):
        assert cosine(ours, theirs) >= bars.logits_cosine
    for ours, theirs in zip(planes(masks), planes(wanted["masks"]), strict=True):
        assert iou(ours, theirs) >= bars.mask_iou


def planes(masks: np.ndarray) -> np.ndarray:
    """(N, H, W) of any number of leading axes."""
    return masks.reshape(-1, *masks.shape[-2:])
