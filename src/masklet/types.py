"""Frozen objects that cross stages of the pipeline. Knows nothing about the rest of the package.

Shape legend: B prompts, N points, M masks, C channels, T tokens, H W sizes in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ImageFeatures:
    """An encoded picture: device values by name ("stride4", "stride8", "embedding") and its size (H, W) in
    pixels.
    """

    size_hw: tuple[int, int]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Prompts:
    """Prompts of B objects in the frame of the square model input.

    `coords` (B, N, 2) float32 as (x, y) in pixels and `labels` (B, N) int64: 1 foreground, 0 background, 2
    and 3 a box's top left and bottom right corner, -1 padding. `mask` (1 or B, 1, H, W) float32 logits at a
    quarter of the input's side, or None.
    """

    coords: np.ndarray
    labels: np.ndarray
    mask: np.ndarray | None


@dataclass(frozen=True)
class Candidates:
    """All that one decoding gives for B prompts; candidate 0 is the single-mask token's.

    `logits` (B, M, H, W) at a quarter of the input's side, `iou` (B, M) predicted quality in [0, 1],
    `object_score` (B, 1) logit, positive where the object is there, `tokens` (B, M, C). All float32.
    """

    logits: np.ndarray
    iou: np.ndarray
    object_score: np.ndarray
    tokens: np.ndarray
