"""Frozen objects that cross stages of the pipeline. Knows nothing about the rest of the package.

Shape legend: B prompts, N points, M masks, C channels, T tokens, H W sizes in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np


@dataclass(frozen=True)
class ImageFeatures:
    """An encoded picture: device values by name ("stride4", "stride8", "embedding") and its size (H, W) in
    pixels. `shared` is what all prompts without a mask have in common on it, where that was asked for.
    """

    size_hw: tuple[int, int]
    values: Mapping[str, Any]
    shared: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FrameFeatures:
    """An encoded frame of a video. `image` are its features as of a picture; the others are device values:
    `stride16` (1, T, C) without the embedding that says "no memory", `tokens` and `queries` (1, T, C) for
    looking at memories, `pixels` (1, T, C) for making one."""

    image: ImageFeatures
    stride16: Any
    tokens: Any
    queries: Any
    pixels: Any


@dataclass(frozen=True, eq=False)
class Remembered:
    """What B objects remember, equally many frames each: `memories` (B, F, T, M) float32, raster order, with
    `slots` (B, F) int64, their rows in the table of ages; `pointers` (B, P, C) float32 with `distances` (B,
    P) float32 in time, 1 for the farthest."""

    memories: np.ndarray
    slots: np.ndarray
    pointers: np.ndarray
    distances: np.ndarray


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
    `object_score` (B, 1) logit, positive where the object is there (infinite where the network has no score),
    `tokens` (B, M, C). All float32.
    """

    logits: np.ndarray
    iou: np.ndarray
    object_score: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True, eq=False)
class Frame:
    """A picture of a video: its rank in order of presentation, `time` in seconds from the first frame (None
    where the source has no clock), and `pixels` (H, W, 3) uint8 RGB."""

    index: int
    time: float | None
    pixels: np.ndarray


ObjectState = Literal["tracked", "occluded", "lost", "found"]


@dataclass(frozen=True, eq=False)
class TrackedObject:
    """One object in one frame.

    `mask` (H, W) bool in the frame's own size; `box_xyxy` around it at pixel edges, None for an empty mask;
    `area` in pixels; `predicted_iou` in [0, 1]; `object_score` a logit, positive where the object is there;
    `stability` the IoU of the mask cut a little above and a little below its threshold. `state`: "tracked";
    "occluded", the score is not positive; "lost", so for many frames in a row; "found", the first frame after
    that.
    """

    object_id: int
    mask: np.ndarray
    box_xyxy: tuple[int, int, int, int] | None
    area: int
    predicted_iou: float
    object_score: float
    stability: float
    state: ObjectState

    def rle(self) -> dict[str, Any]:
        """The mask as COCO run lengths: {"size": [H, W], "counts": text}."""
        from masklet.rle import encode_rle

        return encode_rle(self.mask)


@dataclass(frozen=True, eq=False)
class FrameResult:
    """All objects in one frame; `index` and `time` are the frame's."""

    index: int
    time: float | None
    objects: tuple[TrackedObject, ...]

    def __getitem__(self, object_id: int) -> TrackedObject:
        for tracked in self.objects:
            if tracked.object_id == object_id:
                return tracked
        raise KeyError(f"no object {object_id}; there are {[tracked.object_id for tracked in self.objects]}")
