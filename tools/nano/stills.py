"""One picture with objects at random: a `Stock` and a generator in, image and exact masks out.

Masks are what is seen of each object. Two of them are disjoint, or one is a part of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from assets import premultiply
from canvas import Canvas, Layer, placed
from effects import Camera, Shadow, colour_matrix, light_field, lit, recolour
from layers import Stock, blended, photo_window, recoloured

Rng = np.random.Generator
MOST_MASKS = 8
LEAST_SEEN = 0.0015  # of the picture
LEAST_CONTRAST = (
    6.0  # grey levels by which an object changes what is behind it, in the channel of the largest change
)
_LARGEST = 0.9  # of the picture


@dataclass(frozen=True)
class Still:
    """A picture (S, S, 3) uint8 and the masks (N, S, S) bool of 1 to 8 objects."""

    image: np.ndarray
    masks: np.ndarray


def compose_still(rng: Rng, stock: Stock, size: int) -> Still:
    """A random picture. Draws again in the rare case that nothing in it can be seen well."""
    while True:
        mapped = bool(stock.mapped) and rng.random() < 0.18
        image, masks = _photograph(rng, stock, size) if mapped else _composite(rng, stock, size)
        if masks:
            keep = rng.permutation(len(masks))[:MOST_MASKS]
            return Still(Camera.draw(rng).take(rng, image), np.stack([masks[i] for i in keep]))


def one_piece(mask: np.ndarray, least: float = LEAST_SEEN) -> bool:
    """Whether enough of an object is seen, and enough of that in one piece, for a person to click on it."""
    seen = mask.view(np.uint8)
    area = cv2.countNonZero(seen)
    if not least * mask.size <= area <= _LARGEST * mask.size:
        return False
    left, top, width, height = cv2.boundingRect(seen)
    _, _, stats, _ = cv2.connectedComponentsWithStats(seen[top : top + height, left : left + width])
    return int(stats[1:, cv2.CC_STAT_AREA].max()) >= max(0.6 * area, least * mask.size)


def _composite(rng: Rng, stock: Stock, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    canvas = Canvas(stock.backdrop(rng, size))
    shadow = Shadow.draw(rng) if rng.random() < 0.5 else None
    blend = rng.uniform(0.2, 0.9) if rng.random() < 0.4 else 0.0
    if rng.random() < 0.15:
        canvas.paint(_ground(rng, stock, size), np.eye(3), 255)
    for owner, (layer, matrix) in enumerate(_arranged(rng, stock, size), 1):
        if blend:
            layer = blended(layer, canvas.image, blend * rng.random())
        canvas.paint(layer, matrix, owner, shadow if rng.random() < 0.8 else None)
    masks = []
    for owner, contrast in canvas.contrast.items():
        mask = canvas.owner == owner
        if contrast >= LEAST_CONTRAST and one_piece(mask):
            masks.append(mask)
            part = canvas.parts[owner] & mask if owner in canvas.parts else None
            if part is not None and one_piece(part) and cv2.countNonZero((mask & ~part).view(np.uint8)) > 20:
                masks.append(part)
    image = lit(canvas.image, light_field(rng, 1.0)) if rng.random() < 0.6 else canvas.image
    return image, masks


def _ground(rng: Rng, stock: Stock, size: int) -> Layer:
    """A table, a field, a wall: everything beyond a line across the picture."""
    line = cv2.resize(rng.normal(size=(1, 9)).astype(np.float32), (size, 1), interpolation=cv2.INTER_CUBIC)[0]
    x = np.arange(size)
    edge = (
        size * rng.uniform(0.3, 0.8)
        + (x - size / 2) * rng.normal() * 0.15
        + line * size * rng.choice([0, 0.02, 0.06])
    )
    y = np.arange(size)[:, None]
    alpha = np.clip((y - edge) * 255 / rng.uniform(1, 3), 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        alpha = np.ascontiguousarray(np.rot90(alpha, int(rng.integers(1, 4))))
    return Layer(premultiply(stock.surface(rng, (size, size), photo=0.5), alpha))


def _arranged(rng: Rng, stock: Stock, size: int) -> list[tuple[Layer, np.ndarray]]:
    """Layers and where they go, from back to front: what is larger is mostly farther back."""
    middle, spread = size * rng.uniform(0.35, 0.65, 2), size * rng.uniform(0.12, 0.4)
    everywhere, row = rng.random() < 0.4, rng.random() < 0.4
    found: list[tuple[float, Layer, np.ndarray]] = []
    for copies, share in _wanted(rng):
        layer = stock.thing(rng, share * size)
        tilt = rng.normal() * 0.3 if rng.random() < 0.6 else rng.uniform(-np.pi, np.pi)
        start = rng.uniform(0, size, 2) if everywhere else middle + rng.normal(size=2) * spread / (1 + share)
        step = rng.normal(size=2)
        step *= share * size * rng.uniform(0.6, 1.2) / max(float(np.hypot(*step)), 1e-3)
        for copy in range(copies):
            look, centre, scale, turn = layer, start, 1.0, tilt
            if copy:
                look = layer if rng.random() < 0.6 else recoloured(rng, layer)
                centre = start + copy * step if row else middle + rng.normal(size=2) * spread
                scale, turn = rng.uniform(0.7, 1.1), tilt + rng.normal() * (0.05 if row else 0.5)
            shear = rng.normal() * 0.1 if rng.random() < 0.3 else 0.0
            matrix = placed(look, centre.clip(-0.1 * size, 1.1 * size), turn, scale, shear)
            found.append((-np.log(share) + 0.5 * rng.normal(), look, matrix))
    return [(look, matrix) for _, look, matrix in sorted(found, key=lambda one: one[0])]


def _wanted(rng: Rng) -> list[tuple[int, float]]:
    """How many copies of things, and their sizes as shares of the side."""
    layout = rng.random()
    if layout < 0.35:  # one or two large things, and perhaps small ones
        large = [_between(rng, 0.35, 1.2) for _ in range(1 + (rng.random() < 0.4))]
        return [(1, share) for share in large + [_between(rng, 0.08, 0.3) for _ in range(rng.integers(0, 3))]]
    if layout < 0.7:  # several things of any size
        most = rng.uniform(0.3, 0.8)
        return [(1, _between(rng, 0.09, most)) for _ in range(rng.integers(2, 9))]
    if layout < 0.92:  # several of a kind, and others
        kinds = [(int(rng.integers(2, 5)), _between(rng, 0.1, 0.5)) for _ in range(rng.integers(1, 3))]
        return kinds + [(1, rng.uniform(0.1, 0.6)) for _ in range(rng.integers(0, 3))]
    return [(1, _between(rng, 0.2, 1.0)) for _ in range(rng.integers(7, 13))]  # hardly any backdrop is left


def _between(rng: Rng, low: float, high: float) -> float:
    """Small sizes as often as large ones, on a scale of ratios."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _photograph(rng: Rng, stock: Stock, size: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """A photograph as it is, with those of its regions that can be seen well."""
    name = stock.mapped[int(rng.integers(len(stock.mapped)))]
    photo, labels = stock.assets.photo(name), stock.assets.regions(name)
    top, left, height, width = photo_window(rng, photo.shape[:2], (size, size))
    image = cv2.resize(
        photo[top : top + height, left : left + width], (size, size), interpolation=cv2.INTER_AREA
    )
    # The same window of the label map, sampled at the middles of the picture's pixels.
    rows = (top + (np.arange(size) + 0.5) * height / size) * labels.shape[0] / photo.shape[0]
    columns = (left + (np.arange(size) + 0.5) * width / size) * labels.shape[1] / photo.shape[1]
    seen = labels[rows.astype(int)[:, None], columns.astype(int)]
    if rng.random() < 0.5:
        image, seen = np.ascontiguousarray(image[:, ::-1]), np.ascontiguousarray(seen[:, ::-1])
    image = recolour(image, colour_matrix(rng, 0.6)) if rng.random() < 0.6 else image
    areas = np.bincount(seen.ravel())
    large = [label for label in np.flatnonzero(areas >= LEAST_SEEN * size * size) if label]
    picked = [large[i] for i in rng.permutation(len(large))[: 2 * MOST_MASKS]]
    masks = [mask for label in picked if one_piece(mask := seen == label)]
    return image, masks
