"""Procedural surfaces: a family's name and a size in, an RGB picture out.

A family gives a field of numbers from 0 to 1; a random palette turns it into colour. Some families belong to
the held-out split alone. Knows nothing about outlines, scenes or files.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

Rng = np.random.Generator


def draw_texture(rng: Rng, family: str, size_hw: tuple[int, int]) -> np.ndarray:
    """A picture (h, w, 3) uint8 of the family."""
    field = _FAMILIES[family](rng, *size_hw)
    index = cv2.convertScaleAbs(field, alpha=255)
    return cv2.LUT(cv2.merge([index, index, index]), _palette(rng))


def texture_families(split: str) -> tuple[str, ...]:
    """The families of "train" or of "held": disjoint."""
    return _TRAIN if split == "train" else _HELD


def random_colours(rng: Rng, count: int) -> np.ndarray:
    """Colours (count, 3) float32, 0 to 255; greyish as often as vivid."""
    hue, saturation, value = rng.random((3, count, 1), np.float32)
    channels = np.abs((hue * 6 + np.array([0, 4, 2], np.float32)) % 6 - 3) - 1
    return 255 * (0.1 + 0.9 * value) * (1 - saturation**1.5 * (1 - np.minimum(np.maximum(channels, 0), 1)))


def gradient(rng: Rng, size_hw: tuple[int, int]) -> np.ndarray:
    """A smooth picture (h, w, 3) uint8 between four random corner colours, often related ones."""
    base = random_colours(rng, 1)
    corners = base + rng.normal(size=(2, 2, 3)) * rng.choice([15, 40, 90])
    small = np.clip(corners, 0, 255).astype(np.float32)
    # A resize keeps the outer quarters of a 2x2 picture flat: a warp by hand does not.
    height, width = size_hw
    to_small = np.array([[1 / max(width - 1, 1), 0, 0], [0, 1 / max(height - 1, 1), 0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        small, to_small, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE
    ).astype(np.uint8)


def noise_field(rng: Rng, height: int, width: int, cells: float, octaves: int, fall: float) -> np.ndarray:
    """Fractal noise (h, w) float32 scaled to 0..1: `cells` bumps across, each octave `fall` times weaker."""
    field = np.zeros((2, 2), np.float32)
    weight = 1.0
    for _ in range(octaves):
        # Coarse octaves are summed on a coarse grid: the full one is touched once.
        detail = min(4 * cells / max(height, width), 1.0)
        size = (max(round(width * detail), 2), max(round(height * detail), 2))
        rows, columns = (
            min(max(round(cells * side / max(height, width)), 2), side) for side in (height, width)
        )
        small = rng.random((rows, columns), np.float32)
        field = cv2.resize(field, size, interpolation=cv2.INTER_LINEAR)
        field += np.float32(weight) * cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)
        cells, weight = cells * 2, weight * fall
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    low, high, _, _ = cv2.minMaxLoc(field)
    return (field - np.float32(low)) / np.float32(max(high - low, 1e-6))


def _palette(rng: Rng) -> np.ndarray:
    """A lookup table (1, 256, 3) uint8 through two to five colours, sometimes in hard steps."""
    count = int(rng.integers(2, 6))
    colours = random_colours(rng, count)
    if rng.random() < 0.6:  # shades of one material
        colours = (
            colours[0] + rng.normal(size=(count, 3)) * 12 + rng.normal(size=(count, 1)) * rng.uniform(15, 70)
        )
    steps = rng.random() < 0.3
    colours = np.clip(colours, 0, 255).astype(np.float32)[None]
    return cv2.resize(
        colours, (256, 1), interpolation=cv2.INTER_NEAREST if steps else cv2.INTER_LINEAR
    ).astype(np.uint8)


def _plane(rng: Rng, height: int, width: int, bend: float) -> tuple[np.ndarray, np.ndarray]:
    """Turned coordinates u, v (h, w), 0..1 along the longer side, bent by smooth noise."""
    turn = rng.uniform(0, np.pi) if rng.random() < 0.7 else rng.choice([0.0, np.pi / 2])
    side = max(height, width)
    y, x = (
        np.arange(height, dtype=np.float32)[:, None] / side,
        np.arange(width, dtype=np.float32)[None] / side,
    )
    u = x * np.float32(np.cos(turn)) + y * np.float32(np.sin(turn))
    v = y * np.float32(np.cos(turn)) - x * np.float32(np.sin(turn))
    if bend > 0:
        u = u + np.float32(bend) * noise_field(rng, height, width, rng.uniform(2, 6), 2, 0.5)
    return u, v


def _pitch(rng: Rng) -> np.float32:
    """Repeats along the longer side."""
    return np.float32(np.exp(rng.uniform(np.log(3), np.log(40))))


def _wave(phase: np.ndarray) -> np.ndarray:
    """A triangle wave 0..1 of period 1: cheaper than a sine and as good here."""
    return np.abs(phase - np.floor(phase) - np.float32(0.5)) * 2


def _clouds(rng: Rng, height: int, width: int) -> np.ndarray:
    return noise_field(rng, height, width, rng.uniform(2, 10), 5, rng.uniform(0.4, 0.7))


def _grain(rng: Rng, height: int, width: int) -> np.ndarray:
    return noise_field(rng, height, width, rng.uniform(30, 100), 2, rng.uniform(0.5, 1))


def _stripes(rng: Rng, height: int, width: int) -> np.ndarray:
    u, _ = _plane(rng, height, width, rng.choice([0.0, 0.05, 0.15]))
    sharp = np.float32(rng.choice([1, 4, 20]))
    return np.clip(
        (_wave(u * _pitch(rng)) - np.float32(rng.uniform(0.3, 0.7))) * sharp + np.float32(0.5), 0, 1
    )


def _marble(rng: Rng, height: int, width: int) -> np.ndarray:
    u, _ = _plane(rng, height, width, rng.uniform(0.4, 1.2))
    return _wave(u * np.float32(rng.uniform(2, 9)))


def _wood(rng: Rng, height: int, width: int) -> np.ndarray:
    """Noise drawn out along one side."""
    long = rng.uniform(6, 25)
    tall = rng.random() < 0.5
    small = rng.random((4, round(long * 3)) if tall else (round(long * 3), 4), np.float32)
    fine = rng.random((24, 120) if tall else (120, 24), np.float32)
    field = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(
        0.7 * field + 0.3 * cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR), 0, 1
    )


def _checks(rng: Rng, height: int, width: int) -> np.ndarray:
    u, v = _plane(rng, height, width, rng.choice([0.0, 0.0, 0.05]))
    pitch = _pitch(rng)
    return ((np.floor(u * pitch) + np.floor(v * pitch)) % 2).astype(np.float32)


def _dots(rng: Rng, height: int, width: int) -> np.ndarray:
    u, v = _plane(rng, height, width, rng.choice([0.0, 0.05]))
    pitch = _pitch(rng)
    near = _wave(u * pitch + 0.5) ** 2 + _wave(v * pitch + 0.5) ** 2
    return np.clip((np.float32(rng.uniform(0.15, 0.6)) - near) * 6 + 0.5, 0, 1)


def _bricks(rng: Rng, height: int, width: int) -> np.ndarray:
    u, v = _plane(rng, height, width, 0.0)
    pitch = np.float32(rng.uniform(4, 20))
    row = np.floor(v * pitch)
    joint = np.minimum(1 - _wave(v * pitch), (1 - _wave(u * pitch / 2 + row % 2 / 2)) * 2)
    shade = 0.25 * noise_field(rng, height, width, 16, 2, 0.7)
    return np.clip(joint * 8, 0, 0.75) + shade


def _scratches(rng: Rng, height: int, width: int) -> np.ndarray:
    """Many thin lines, as of grass, hair or straw."""
    page = np.zeros((height, width), np.uint8)
    side = max(height, width)
    main, spread = rng.uniform(0, np.pi), rng.uniform(0.05, 0.8)
    count = int(rng.integers(40, 160))
    starts = rng.uniform(-0.1, 1.1, (count, 2)) * side
    turn = main + rng.normal(size=count) * spread
    ends = starts + side * rng.uniform(0.05, 0.3) * np.stack([np.cos(turn), np.sin(turn)], -1)
    for start, end, shade in zip(
        starts.astype(int), ends.astype(int), rng.integers(60, 256, count), strict=True
    ):
        cv2.line(page, start.tolist(), end.tolist(), int(shade), 1, cv2.LINE_AA)
    return page.astype(np.float32) / 255


def _cells(rng: Rng, height: int, width: int) -> np.ndarray:
    """The nearest of random points: paving, scales, cracked earth."""
    seeds = np.full((height, width), 255, np.uint8)
    count = int(rng.integers(12, 120))
    seeds[rng.integers(0, height, count), rng.integers(0, width, count)] = 0
    _, label = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    return rng.random(count + 1, np.float32)[np.asarray(label, np.int32)]


def _rings(rng: Rng, height: int, width: int) -> np.ndarray:
    side = max(height, width)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / side
    middle = rng.uniform(-0.3, 1.3, 2).astype(np.float32)
    return _wave(np.hypot(x - middle[0], y - middle[1]) * _pitch(rng))


def _weave(rng: Rng, height: int, width: int) -> np.ndarray:
    u, v = _plane(rng, height, width, 0.0)
    pitch = _pitch(rng)
    over = (np.floor(u * pitch) + np.floor(v * pitch)) % 2 < 1
    return np.where(over, _wave(u * pitch), _wave(v * pitch) * np.float32(0.7))


_FAMILIES: dict[str, Callable[[Rng, int, int], np.ndarray]] = {
    "clouds": _clouds, "grain": _grain, "stripes": _stripes, "marble": _marble, "wood": _wood,
    "checks": _checks, "dots": _dots, "bricks": _bricks, "scratches": _scratches,
    "cells": _cells, "rings": _rings, "weave": _weave,
}  # fmt: skip
_HELD = ("cells", "rings", "weave")
_TRAIN = tuple(name for name in _FAMILIES if name not in _HELD)
