"""Batches of scenes with prompts, made by any process.

In: where the data are and which scenes. Out: `StillBatch` and `ClipBatch`, numpy arrays alone, so that they
travel between processes. Knows nothing about networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from metrics import deepest
from plain import plain_still
from prompts import bounds, coverage, draw_box, draw_click, pick
from scenes import Scenes

OBJECTS = 4  # prompted in a picture
CLIP_OBJECTS = 3  # in a clip, at most


@dataclass(frozen=True)
class Source:
    """Which scenes a batch is of, and of what size."""

    data: Path
    split: str
    size: int
    seed: int
    least: float  # share of the picture that an object must take to be prompted
    plain: float = 0.0  # share of the pictures that are plain ones


@dataclass(frozen=True)
class StillBatch:
    """B pictures, O objects in all, O / B of each picture one after the other."""

    images: np.ndarray  # (B, S, S, 3) uint8
    coverages: np.ndarray  # (O, S / 4, S / 4) uint8, 0 to 16
    clicks: np.ndarray  # (O, 2) float32, x y, pixels
    boxes: np.ndarray  # (O, 4) float32, xyxy, pixels


@dataclass(frozen=True)
class ClipBatch:
    """B clips of F frames, O objects in all; prompts belong to the first frame, where each object is seen."""

    images: np.ndarray  # (B, F, S, S, 3) uint8
    owners: np.ndarray  # (O,) int64: each object's clip
    coverages: np.ndarray  # (F, O, S / 4, S / 4) uint8
    first_masks: np.ndarray  # (O, S, S) bool
    clicks: np.ndarray  # (O, 2)
    boxes: np.ndarray  # (O, 4)


def still_batch(source: Source, first: int, count: int) -> StillBatch:
    """Pictures number `first` to `first + count`. Held-out ones have exact prompts: middle and box."""
    scenes, exact = _scenes(source), source.split != "train"
    images, masks, clicks, boxes = [], [], [], []
    for index in range(first, first + count):
        rng = np.random.default_rng([source.seed, index])
        still = plain_still(rng, source.size) if rng.random() < source.plain else scenes.still(index)
        images.append(still.image)
        for chosen in pick(still.masks, OBJECTS, source.least, rng):
            mask = still.masks[chosen]
            masks.append(coverage(mask))
            clicks.append(np.array(deepest(mask), np.float32) if exact else draw_click(mask, rng))
            boxes.append(bounds(mask) if exact else draw_box(mask, rng))
    return StillBatch(np.stack(images), np.stack(masks), np.stack(clicks), np.stack(boxes))


def clip_batch(source: Source, first: int, count: int, frames: int) -> ClipBatch:
    """Clips number `first` to `first + count`."""
    scenes, exact = _scenes(source), source.split != "train"
    images, owners, covers, firsts, clicks, boxes = [], [], [], [], [], []
    for number, index in enumerate(range(first, first + count)):
        clip = scenes.clip(index, frames)
        start = _start(clip.masks)
        pictures, masks = np.roll(clip.images, -start, axis=0), np.roll(clip.masks, -start, axis=0)
        images.append(pictures)
        rng = np.random.default_rng([source.seed, 1, index])
        for chosen in dict.fromkeys(pick(masks[0], CLIP_OBJECTS, source.least, rng).tolist()):
            mask = masks[0, chosen]
            owners.append(number)
            covers.append(coverage(masks[:, chosen]))
            firsts.append(mask)
            clicks.append(np.array(deepest(mask), np.float32) if exact else draw_click(mask, rng))
            boxes.append(bounds(mask) if exact else draw_box(mask, rng))
    return ClipBatch(
        np.stack(images),
        np.array(owners),
        np.stack(covers, axis=1),
        np.stack(firsts),
        np.stack(clicks),
        np.stack(boxes),
    )


def _start(masks: np.ndarray) -> int:
    """The frame to prompt: the first, unless no object (F, N, H, W) is to be seen there."""
    pixels = masks.sum(axis=(2, 3)).max(axis=1)
    return 0 if pixels[0] else int(np.argmax(pixels))


def _scenes(source: Source) -> Scenes:
    return _cached_scenes(source.data, source.split, source.size, source.seed)


@lru_cache(maxsize=2)
def _cached_scenes(data: Path, split: str, size: int, seed: int) -> Scenes:
    return Scenes(data, split, size, seed)
