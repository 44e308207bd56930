"""Masks for many single points on one picture, in two steps: all points are rated, some are drawn.

In: an encoded picture, points in the frame of the model input. Out: predicted IoU of the four candidates of
each point, and logits for those points that are worth it. What the points have in common is computed once.
Numerically `Model.decode` without a mask.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.pipeline.model import Model
from masklet.runtime.session import Session
from masklet.types import ImageFeatures, Prompts

POINTS_AT_ONCE = 2  # for each worker, 90 MB at 1024 pixels; more are not faster
STAGES = ("share_image", "rate_prompts", "draw_masks")


@dataclass(frozen=True, eq=False)
class Rated:
    """B points: `iou` (B, 4) float32, and device values from which their masks are drawn."""

    iou: np.ndarray
    tokens: Any
    seen: Any


class PointDecoder:
    """The stages of a model, made once, for any number of pictures.

    On a CPU each call runs on one thread, and `workers` callers at a time make use of all: they never wait
    for each other within a step, which is up to twice as fast as several threads for each step.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        on_cpu = model.device.name == "cpu"
        self.workers = (model.threads or os.cpu_count() or 1) if on_cpu else 1
        self._sessions = {}
        for name in STAGES:
            stage = model.make_stage(name)
            self._sessions[name] = Session(stage, model.tensor, model.device, 1 if on_cpu else model.threads)

    def on(self, features: ImageFeatures) -> PicturePoints:
        """The same on one picture."""
        return PicturePoints(self._model, self._sessions, features)


class PicturePoints:
    """Points on one picture. Made by `PointDecoder.on`; several threads may use it at a time."""

    def __init__(self, model: Model, sessions: dict[str, Session], features: ImageFeatures) -> None:
        self._model, self._sessions = model, sessions
        self._features = dict(features.values)
        nothing = {"coords": np.zeros((1, 1, 2), np.float32), "labels": np.zeros((1, 1), np.int64)}
        dense = model.session("encode_points").run(nothing, ["dense"])["dense"]
        feeds = {"embedding": self._features["embedding"], "dense": dense}
        self._shared = sessions["share_image"].run(feeds)

    def rate(self, prompts: Prompts) -> Rated:
        """Rate the points of B prompts, which have no mask."""
        feeds = {"coords": prompts.coords, "labels": prompts.labels}
        embedded = self._model.session("encode_points").run(feeds, ["sparse"])
        rated = self._sessions["rate_prompts"].run({**self._shared, "sparse": embedded["sparse"]})
        return Rated(rated["iou"].numpy(), rated["tokens"], rated["seen"])

    def draw(self, rated: Rated, kept: np.ndarray) -> np.ndarray:
        """Logits (K, 4, h, w) of the rated points with these indices."""
        finer = {name: value for name, value in self._features.items() if name != "embedding"}
        feeds = {**finer, "tokens": rated.tokens, "seen": rated.seen, "kept": kept.astype(np.int64)}
        return self._sessions["draw_masks"].run(feeds)["logits"].numpy()
