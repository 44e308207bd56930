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
MOST_STEP = 3  # from one frame of a training clip to the next, in frames of the scene
CUT_SHARE, LEAST_CUT = 0.3, 4  # clips with another scene in between, and the fewest frames of one
OTHER_SCENE = 1024  # from a clip's number to that of the scene in between


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
        rng = np.random.default_rng([source.seed, 1, index])
        pictures, masks = _shown(scenes, index, frames) if exact else _eventful(scenes, index, frames, rng)
        images.append(pictures)
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


def _shown(scenes: Scenes, index: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
    """A clip (F, S, S, 3) and its masks (F, N, S, S), from a frame on that shows an object."""
    clip = scenes.clip(index, frames)
    start = _start(clip.masks)
    return np.roll(clip.images, -start, axis=0), np.roll(clip.masks, -start, axis=0)


def _eventful(
    scenes: Scenes, index: int, frames: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`_shown` for training: every first, second or third frame, and sometimes another scene in between.

    As scenes come, objects are out of sight in one frame of a hundred: too few to learn to say so.
    """
    step = int(rng.integers(1, MOST_STEP + 1))
    images, masks = _shown(scenes, index, step * frames)
    images, masks = images[::step].copy(), masks[::step].copy()
    if frames >= LEAST_CUT and rng.random() < CUT_SHARE:
        start = int(rng.integers(2, frames - 1))
        cut = slice(start, min(start + int(rng.integers(1, 4)), frames))
        images[cut] = _shown(scenes, index + OTHER_SCENE, cut.stop - cut.start)[0]
        masks[cut] = False
    return images, masks


def _start(masks: np.ndarray) -> int:
    """The frame to prompt: the first, unless no object (F, N, H, W) is to be seen there."""
    pixels = masks.sum(axis=(2, 3)).max(axis=1)
    return 0 if pixels[0] else int(np.argmax(pixels))


def _scenes(source: Source) -> Scenes:
    return _cached_scenes(source.data, source.split, source.size, source.seed)


@lru_cache(maxsize=2)
def _cached_scenes(data: Path, split: str, size: int, seed: int) -> Scenes:
    return Scenes(data, split, size, seed)
