"""Masks for many points on one encoded picture: rate all, draw the good, measure at the picture's size.

In: points in pixels of the picture, and what makes a mask good. Out: `FoundMask`s. Rejecting a point before
its masks are drawn is exact: no mask can come from it whose predicted IoU would do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from masklet.pipeline.conventions import conventions_of
from masklet.pipeline.found import FoundMask, Limits, Measured, measure
from masklet.pipeline.model import Model, as_candidates
from masklet.pipeline.point_decoder import POINTS_AT_ONCE, PicturePoints
from masklet.pipeline.postprocess import Resizing
from masklet.types import ImageFeatures, Prompts


@dataclass(frozen=True)
class Rules:
    """A mask's predicted IoU must be over `min_iou` (0: any will do), its shape within `limits`. A point
    gives three masks if `several`, else one; if `refine`, each is decoded again as its own prompt."""

    min_iou: float
    limits: Limits
    several: bool
    refine: bool


class PointSearch:
    """Masks for points on one picture; several threads may use it at a time."""

    def __init__(self, model: Model, features: ImageFeatures, points: PicturePoints, rules: Rules) -> None:
        self._model, self._features, self._points, self._rules = model, features, points, rules
        self._conventions = conventions_of(model.config)

    def masks_at(self, points_xy: np.ndarray) -> list[FoundMask]:
        """All masks of some points (N, 2) that are good and stable, in the order of the points."""
        xy = points_xy.astype(np.float32)
        rated = self._points.rate(self._prompts(xy))
        if self._rules.refine:
            logits, _ = self._choose(rated.iou, self._points.draw(rated, np.arange(len(xy))))
            xy = np.repeat(xy, logits.shape[1], axis=0)
            logits, iou = self._refined(xy, logits.reshape(-1, 1, *logits.shape[2:]))
        else:
            # A single mask is one of the four candidates; which one may depend on how they look.
            candidates = rated.iou[:, 1:] if self._rules.several else rated.iou
            kept = np.flatnonzero(self._good(candidates).any(axis=1))
            if kept.size == 0:
                return []
            logits, iou = self._choose(rated.iou[kept], self._points.draw(rated, kept))
            xy = xy[kept]
        prompt, mask = np.nonzero(self._good(iou))
        return self._measured(logits[prompt, mask], iou[prompt, mask], xy[prompt])

    def _refined(self, xy: np.ndarray, low_res: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """One mask (B, 1, h, w) with its IoU (B, 1) for each point, whose earlier mask is its prompt."""
        limit = self._conventions.logit_limit
        parts = []
        for start in range(0, len(xy), POINTS_AT_ONCE):
            some = slice(start, start + POINTS_AT_ONCE)
            prompts = replace(self._prompts(xy[some]), mask=np.clip(low_res[some], -limit, limit))
            candidates = self._model.decode(self._features, prompts)
            parts.append(self._conventions.choose(candidates, False))
        return np.concatenate([logits for logits, _ in parts]), np.concatenate([iou for _, iou in parts])

    def _measured(self, logits: np.ndarray, iou: np.ndarray, xy: np.ndarray) -> list[FoundMask]:
        """Those of the logits (B, h, w) that are stable at the picture's size."""
        size_hw = self._features.size_hw

        def measured(plane: np.ndarray) -> Measured | None:
            plane = self._conventions.uncover(plane, size_hw, self._model.image_size)
            resizing = Resizing((plane.shape[0], plane.shape[1]), size_hw)
            return measure(plane, resizing, self._rules.limits)

        return [
            FoundMask.of(
                one.pixels,
                one.corner_xy,
                predicted_iou=float(score),
                stability=one.stability,
                point_xy=(float(point[0]), float(point[1])),
                crop_xyxy=(0, 0, size_hw[1], size_hw[0]),
            )
            for one, score, point in zip(map(measured, logits), iou, xy, strict=True)
            if one is not None
        ]

    def _prompts(self, xy: np.ndarray) -> Prompts:
        size_hw, image_size = self._features.size_hw, self._model.image_size
        labels = np.ones((len(xy), 1))
        return self._conventions.prompts(
            xy[:, None], labels, None, None, size_hw=size_hw, image_size=image_size
        )

    def _choose(self, iou: np.ndarray, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        candidates = as_candidates({"logits": logits, "iou": iou, "tokens": np.empty(0)})
        return self._conventions.choose(candidates, self._rules.several)

    def _good(self, iou: np.ndarray) -> np.ndarray:
        limit = self._rules.min_iou
        return iou > np.float32(limit) if limit > 0 else np.ones_like(iou, np.bool_)
