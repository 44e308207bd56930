"""Procedural outlines: a family's name and a side in pixels in, an anti-aliased alpha picture out.

Each family draws one connected thing, not necessarily without holes. Some belong to the held-out split
alone, so that an evaluation meets outlines that no training picture had. Knows nothing about colour or files.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Rng = np.random.Generator
Outline = np.ndarray  # (K, 2) float, x and y in any unit: `_fill` fits it to the picture
_SUBPIXEL = 4  # bits of fraction in the coordinates that OpenCV gets


def draw_shape(rng: Rng, family: str, side: int) -> np.ndarray:
    """An alpha picture (h, w) uint8 of the family, cropped to what is opaque, about `side` long."""
    return _crop(_FAMILIES[family](rng, max(side, 8)))


def shape_families(split: str) -> tuple[str, ...]:
    """The families of "train" or of "held": disjoint."""
    return _TRAIN if split == "train" else _HELD


# ------------------------------------------------------------------ drawing


def _fill(outlines: list[Outline], side: int) -> np.ndarray:
    """Outlines filled by the even-odd rule: a later one inside the first is a hole."""
    low, high = outlines[0].min(0), outlines[0].max(0)
    scale = (side - 3) / max(float((high - low).max()), 1e-6)
    fixed = [np.round(((o - low) * scale + 1) * 2**_SUBPIXEL).astype(np.int32) for o in outlines]
    alpha = np.zeros((side, side), np.uint8)
    cv2.fillPoly(alpha, fixed, 255, cv2.LINE_AA, _SUBPIXEL)
    return alpha


def _stroke(path: Outline, side: int, thickness: float) -> np.ndarray:
    """A line of that thickness (a share of the side) along the path, which spans about -1 to 1."""
    pixels = max(round(thickness * side), 2)
    low, high = path.min(0), path.max(0)
    scale = max(side - pixels - 3, 4) / max(float((high - low).max()), 1e-6)
    fixed = np.round(((path - low) * scale + pixels / 2 + 1) * 2**_SUBPIXEL).astype(np.int32)
    alpha = np.zeros((side, side), np.uint8)
    cv2.polylines(alpha, [fixed], False, 255, pixels, cv2.LINE_AA, _SUBPIXEL)
    return alpha


def _crop(alpha: np.ndarray) -> np.ndarray:
    x, y, width, height = cv2.boundingRect(alpha)
    return alpha[y : y + height, x : x + width]


def _polar(radius: np.ndarray, angle: np.ndarray) -> Outline:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)


def _angles(count: int) -> np.ndarray:
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


def _stretch(rng: Rng, outline: Outline, least: float = 0.4) -> Outline:
    """Narrower along one random direction."""
    turn = rng.uniform(0, np.pi)
    axis = np.array([np.cos(turn), np.sin(turn)])
    return outline - (1 - rng.uniform(least, 1)) * (outline @ axis)[:, None] * axis


# ------------------------------------------------------------------ families to train with


def _blob(rng: Rng, side: int) -> np.ndarray:
    angle = _angles(160)
    orders = np.arange(1, 24)
    fall = rng.uniform(1.0, 2.4)  # low: ragged as a coast, high: smooth as a pebble
    size = rng.normal(size=len(orders)) * rng.uniform(0.15, 0.55) / orders**fall
    phase = rng.uniform(0, 2 * np.pi, len(orders))
    radius = np.exp((size[:, None] * np.cos(orders[:, None] * angle + phase[:, None])).sum(0))
    return _fill([_stretch(rng, _polar(radius, angle))], side)


def _island(rng: Rng, side: int) -> np.ndarray:
    """The part of a random landscape that is above the water, with its lakes."""
    grid = 96
    land = np.zeros((grid, grid), np.float32)
    for cells, weight in ((4, 1.0), (8, 0.5), (16, rng.uniform(0.1, 0.35)), (32, rng.uniform(0, 0.2))):
        land += weight * cv2.resize(
            rng.normal(size=(cells, cells)).astype(np.float32), (grid, grid), None, 0, 0, 2
        )
    y, x = np.mgrid[-1 : 1 : grid * 1j, -1 : 1 : grid * 1j]
    land -= 2.2 * (x**2 + y**2).astype(np.float32)
    above = (land > land[grid // 2, grid // 2] - rng.uniform(0.8, 1.6)).astype(np.uint8)
    found, tree = cv2.findContours(above, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    main = max(range(len(found)), key=lambda i: len(found[i]) if tree[0][i][3] < 0 else 0)
    lakes = [found[i] for i in range(len(found)) if tree[0][i][3] == main and len(found[i]) > 16]
    return _fill([_smooth(found[main][:, 0])] + [_smooth(lake[:, 0]) for lake in lakes], side)


def _smooth(outline: Outline) -> Outline:
    """The staircase of a pixel contour removed."""
    padded = np.concatenate([outline[-2:], outline, outline[:2]]).astype(np.float64)
    return (padded[:-4] + padded[1:-3] + padded[2:-2] + padded[3:-1] + padded[4:]) / 5


def _polygon(rng: Rng, side: int) -> np.ndarray:
    corners = int(rng.integers(3, 10))
    angle = _angles(corners) + rng.uniform(-0.35, 0.35, corners) * 2 * np.pi / corners
    return _fill([_stretch(rng, _polar(rng.uniform(rng.uniform(0.35, 1), 1, corners), angle))], side)


def _star(rng: Rng, side: int) -> np.ndarray:
    spikes = int(rng.integers(3, 11))
    radius = np.tile([1.0, rng.uniform(0.25, 0.75)], spikes)
    return _fill([_stretch(rng, _polar(radius, _angles(2 * spikes)), 0.6)], side)


def _rounded(rng: Rng) -> Outline:
    """A superellipse: ellipse, cushion, rectangle with rounded corners."""
    angle = _angles(120)
    power = rng.choice([2.0, 2.0, 3.0, 6.0, 20.0])
    radius = (np.abs(np.cos(angle)) ** power + np.abs(np.sin(angle)) ** power) ** (-1 / power)
    return _polar(radius, angle) * [1, rng.uniform(0.25, 1)]


def _pebble(rng: Rng, side: int) -> np.ndarray:
    return _fill([_rounded(rng)], side)


def _ring(rng: Rng, side: int) -> np.ndarray:
    outer = _rounded(rng)
    return _fill([outer, outer * rng.uniform(0.35, 0.85) + rng.uniform(-0.04, 0.04, 2)], side)


def _curve(rng: Rng, side: int) -> np.ndarray:
    """A bent line, as of a rope, a branch or a snake."""
    turns = cv2.resize(
        rng.normal(size=(1, 6)).astype(np.float32) * rng.uniform(0.05, 0.5), (80, 1), None, 0, 0, 2
    )
    heading = np.cumsum(turns[0]) + rng.uniform(0, 2 * np.pi)
    path = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], -1), 0)
    return _stroke(path, side, float(np.exp(rng.uniform(np.log(0.03), np.log(0.2)))))


def _letter(rng: Rng, side: int) -> np.ndarray:
    return _glyph("ABCDEFGHKMNPQRSTUVWXYZabdefghkmnpqrstuwyz&@"[int(rng.integers(43))], side)


def _glyph(text: str, side: int) -> np.ndarray:
    alpha = _printed(text)
    scale = side / max(alpha.shape)
    size = (max(round(alpha.shape[1] * scale), 2), max(round(alpha.shape[0] * scale), 2))
    return cv2.resize(alpha, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


@cache
def _printed(text: str) -> np.ndarray:
    page = Image.new("L", (300, 300))
    ImageDraw.Draw(page).text((40, 20), text, fill=255, font=ImageFont.load_default(200))
    return _crop(np.asarray(page))


def _figure(rng: Rng, side: int) -> np.ndarray:
    """A body with limbs and perhaps a head: how animals, chairs and bottles are made."""
    turn = rng.uniform(0, np.pi)
    middle = side / 2
    axes = (round(side * rng.uniform(0.12, 0.25)), round(side * rng.uniform(0.2, 0.32)))
    alpha = np.zeros((side, side), np.uint8)
    cv2.ellipse(alpha, (int(middle), int(middle)), axes, np.degrees(turn), 0, 360, 255, -1, cv2.LINE_AA)
    thick = max(round(side * rng.uniform(0.04, 0.11)), 2)
    for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(2, 6))):
        knee = middle + side * rng.uniform(0.2, 0.3) * np.array([np.cos(angle), np.sin(angle)])
        foot = knee + side * rng.uniform(0.08, 0.18) * np.array([np.cos(angle + 0.6), np.sin(angle + 0.6)])
        path = np.round(np.stack([[middle, middle], knee, foot]) * 2**_SUBPIXEL).astype(np.int32)
        cv2.polylines(alpha, [path], False, 255, thick, cv2.LINE_AA, _SUBPIXEL)
    if rng.random() < 0.7:
        way = np.array([-np.sin(turn), np.cos(turn)])
        x, y = np.round(middle + way * axes[1] * 1.2).astype(int)
        cv2.circle(alpha, (int(x), int(y)), round(side * rng.uniform(0.07, 0.14)), 255, -1, cv2.LINE_AA)
    return alpha


# ------------------------------------------------------------------ families that only the held-out split has


def _crescent(rng: Rng, side: int) -> np.ndarray:
    angle = np.linspace(0.35, 2 * np.pi - 0.35, 80)
    outer = _polar(np.ones(80), angle)
    bulge = rng.uniform(0.1, 0.75)
    inner = np.stack([outer[0, 0] + (outer[:, 0] - outer[0, 0]) * bulge, outer[:, 1]], -1)[::-1]
    return _fill([np.concatenate([outer, inner])], side)


def _gear(rng: Rng, side: int) -> np.ndarray:
    teeth = int(rng.integers(6, 15))
    angle = _angles(teeth * 8)
    wave = np.clip(np.sin(angle * teeth) * 3, -1, 1)
    outer = _polar(1 + rng.uniform(0.06, 0.18) * wave, angle)
    hole = _polar(np.full(60, rng.uniform(0.15, 0.5)), _angles(60))
    return _fill([outer, hole] if rng.random() < 0.6 else [outer], side)


def _heart(rng: Rng, side: int) -> np.ndarray:
    t = _angles(120)
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return _fill([_stretch(rng, np.stack([16 * np.sin(t) ** 3, y], -1), 0.6)], side)


def _arrow(rng: Rng, side: int) -> np.ndarray:
    half, neck = rng.uniform(0.08, 0.25), rng.uniform(0, 0.6)
    top = [[-1, -half], [neck, -half], [neck, -rng.uniform(0.35, 0.7)], [1, 0]]
    return _fill([np.array(top + [[x, -y] for x, y in top[-2::-1]])], side)


def _zigzag(rng: Rng, side: int) -> np.ndarray:
    count = int(rng.integers(4, 9))
    path = np.stack(
        [np.linspace(-1, 1, count), np.tile([-1.0, 1.0], count)[:count] * rng.uniform(0.2, 0.8)], -1
    )
    return _stroke(path, side, rng.uniform(0.05, 0.14))


def _digit(rng: Rng, side: int) -> np.ndarray:
    return _glyph("0123456789"[int(rng.integers(10))], side)


_FAMILIES: dict[str, Callable[[Rng, int], np.ndarray]] = {
    "blob": _blob, "island": _island, "polygon": _polygon, "star": _star, "pebble": _pebble, "ring": _ring,
    "curve": _curve, "letter": _letter, "figure": _figure,
    "crescent": _crescent, "gear": _gear, "heart": _heart, "arrow": _arrow, "zigzag": _zigzag,
    "digit": _digit,
}  # fmt: skip
_HELD = ("crescent", "gear", "heart", "arrow", "zigzag", "digit")
_TRAIN = tuple(name for name in _FAMILIES if name not in _HELD)
