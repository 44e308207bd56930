"""Prompts drawn from true masks, with numpy alone.

In: masks (H, W) bool and a random generator. Out: clicks (x, y) and boxes xyxy in pixels of that mask, and
coverages: masks at a quarter of the size. Knows nothing about networks.
"""

from __future__ import annotations

import numpy as np

STRIDE = 4  # pixels per cell of a coverage, and of the network's mask logits
CELL = STRIDE * STRIDE  # pixels in a cell: a coverage counts up to this
_CENTRAL = 0.6  # of the clicks are near the middle of the object
_BOX_JITTER = 0.08  # of the box's side, standard deviation


def coverage(masks: np.ndarray) -> np.ndarray:
    """(..., H, W) bool -> (..., H / 4, W / 4) uint8: how many of a cell's 16 pixels are in the mask."""
    height, width = masks.shape[-2:]
    cells = masks.reshape(*masks.shape[:-2], height // STRIDE, STRIDE, width // STRIDE, STRIDE)
    return cells.sum(axis=(-3, -1), dtype=np.uint8)


def depth(mask: np.ndarray) -> np.ndarray:
    """(H, W) float: for each pixel of the mask the share of the mask in the square around it, else 0.

    A cheap stand-in for the distance to the outline; the square's side follows the mask's area.
    """
    radius = max(1, int(np.sqrt(mask.sum()) / 4))
    padded = np.pad(mask.astype(np.float32), ((radius + 1, radius), (radius + 1, radius)))
    sums = padded.cumsum(0, dtype=np.float64).cumsum(1)
    side = 2 * radius + 1
    box = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    return mask * (box / side**2)


def draw_click(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A pixel (x, y) float32 of a mask that isn't empty: more often near its middle than anywhere in it."""
    ys, xs = np.nonzero(mask)
    weights = depth(mask)[ys, xs] ** 4 if rng.random() < _CENTRAL else np.ones(len(xs))
    place = np.searchsorted(np.cumsum(weights), rng.random() * weights.sum())
    place = min(int(place), len(xs) - 1)
    return np.array([xs[place], ys[place]], np.float32)


def bounds(mask: np.ndarray) -> np.ndarray:
    """The box xyxy float32 around a mask that isn't empty; right and lower side behind the last pixel."""
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32)


def draw_box(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The mask's box xyxy as a person draws it: each side a little off, inside the picture."""
    box = bounds(mask)
    sides = np.tile(box[2:] - box[:2], 2)
    off = np.clip(rng.normal(0, _BOX_JITTER, 4), -2 * _BOX_JITTER, 2 * _BOX_JITTER) * sides
    return np.clip(box + off, 0, np.tile(mask.shape[::-1], 2)).astype(np.float32)


def pick(masks: np.ndarray, count: int, least: float, rng: np.random.Generator) -> np.ndarray:
    """Indices of `count` masks (N, H, W) to prompt: those of at least `least` of the picture, each once if
    there are so many; without any, the largest."""
    pixels = masks.sum(axis=(1, 2))
    usable = np.flatnonzero(pixels >= least * masks[0].size)
    if not len(usable):
        usable = np.array([np.argmax(pixels)])
    order = rng.permutation(usable)
    more = rng.choice(usable, max(0, count - len(order)))
    return np.concatenate([order, more])[:count]
