"""Seeded pictures and clips of textured shapes whose masks are known.

In: a seed and a size. Out: a `Scene` or a `Clip`. Knows nothing about models, engines or files.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from masklet.errors import InputError
from masklet.testing.stream import raw_words

_MIN_SIDE = 32
_SHAPES = ("ellipse", "rectangle", "ring", "cross")
_TEXTURES = ("stripes", "checks", "speckle", "plain")
_VIVID = ((214, 40, 40), (20, 90, 200), (20, 130, 60), (240, 120, 20), (130, 40, 160))  # RGB


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture of K textured shapes whose visible parts are known. Pixels are those of `image`."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    masks: np.ndarray  # (K, H, W) bool, what is visible of each shape; disjoint, none is empty
    points_xy: np.ndarray  # (K, 2) float32, the pixel of each mask farthest from its outline
    boxes_xyxy: np.ndarray  # (K, 4) float32, the first and last column and row of each mask


def synthetic_scene(seed: int = 0, size_hw: tuple[int, int] = (720, 1280)) -> Scene:
    """A seeded picture: four textured shapes, which may partly hide each other, on a smooth background, with
    noise.

    Raises `InputError` for a side under 32 pixels.
    """
    height, width = _checked_size_hw(size_hw)
    draw = _Draw(f"{seed}:scene")
    image = _background(draw, height, width)
    order = draw.shuffled(len(_SHAPES))
    shapes = [_draw_shape(draw, index, _SHAPES[kind], height, width) for index, kind in enumerate(order)]
    image, masks = _render(image, shapes, f"{seed}:noise")
    points_xy = np.stack([_deepest_pixel_xy(mask) for mask in masks])
    boxes_xyxy = np.stack([_bounding_box_xyxy(mask) for mask in masks])
    return Scene(image, masks, points_xy, boxes_xyxy)


@dataclass(frozen=True, eq=False)
class Clip:
    """F frames in which K textured shapes move and hide each other. Pixels are those of `frames`."""

    frames: np.ndarray  # (F, H, W, 3) uint8, RGB
    masks: np.ndarray  # (F, K, H, W) bool, what is visible of each shape; disjoint, empty where it is hidden

    def point_xy(self, frame: int, shape: int) -> np.ndarray:
        """(2,) float32: the pixel (x, y) farthest from the shape's outline. A hidden shape: `InputError`."""
        return _deepest_pixel_xy(self._visible(frame, shape))

    def box_xyxy(self, frame: int, shape: int) -> np.ndarray:
        """(4,) float32: the shape's first and last column and row. A hidden shape: `InputError`."""
        return _bounding_box_xyxy(self._visible(frame, shape))

    def _visible(self, frame: int, shape: int) -> np.ndarray:
        mask = self.masks[frame, shape]
        if not mask.any():
            raise InputError(
                f"shape {shape} is hidden in frame {frame} of the clip; choose a frame in which it shows"
            )
        return mask


def synthetic_clip(seed: int = 0, num_frames: int = 24, size_hw: tuple[int, int] = (144, 192)) -> Clip:
    """A seeded clip: the shapes of a scene pass over each other and turn back at the picture's edges, the
    background drifts, and every frame has its own noise. Frame t is the same whatever the clip's length.

    Raises `InputError` for a side under 32 pixels and for a clip without frames.
    """
    height, width = _checked_size_hw(size_hw)
    if num_frames < 1:
        raise InputError(f"a clip of {num_frames} frames was asked for; give 1 or more")
    draw, cell = _Draw(f"{seed}:clip"), min(height, width) // 2
    background = _background(draw, height + cell, width + cell)
    order = draw.shuffled(len(_SHAPES))
    shapes = [_draw_shape(draw, index, _SHAPES[kind], height, width) for index, kind in enumerate(order)]
    # In sixteenths of a pixel a frame: a cell in 12 to 6 frames, the background a third as fast.
    moves = [_Move(*(draw.sign() * cell * 16 // draw.between(6, 12) for _ in "yx")) for _ in shapes]
    drift = _Move(*(draw.sign() * cell * 16 // draw.between(18, 36) for _ in "yx"))

    rendered = []
    for time in range(num_frames):
        top, left = drift.at(time, (cell // 2, cell // 2), (cell, cell))
        placed = [
            replace(shape, centre_yx=move.at(time, shape.centre_yx, (height - 1, width - 1)))
            for shape, move in zip(shapes, moves, strict=True)
        ]
        window = background[top : top + height, left : left + width].copy()
        rendered.append(_render(window, placed, f"{seed}:clip noise {time}"))
    return Clip(*map(np.stack, zip(*rendered, strict=True)))


def occlusion_clip(seed: int = 0, num_frames: int = 24, size_hw: tuple[int, int] = (144, 192)) -> Clip:
    """A seeded clip of two shapes: number 0, a ball of one vivid colour, goes from left to right behind
    number 1, a striped pillar that hides it whole for about a fifth of the frames. The background is pale,
    every frame has its own noise.

    Raises `InputError` for a side under 32 pixels and for a clip of fewer than 8 frames.
    """
    height, width = _checked_size_hw(size_hw)
    if num_frames < 8:
        raise InputError(f"an occlusion in {num_frames} frames was asked for; give 8 or more")
    draw, radius = _Draw(f"{seed}:occlusion"), min(height, width) // 7
    background = _background(draw, height, width) // 4 + 144
    row, vivid = height // 2 + draw.between(-height // 8, height // 8), draw.between(0, len(_VIVID) - 1)
    colours = np.array(_VIVID[vivid]), np.array(_VIVID[vivid])
    ball = _Shape("ellipse", (row, 0), radius, radius, (1, 0), radius, "plain", colours)
    middle, half_width, greys = (
        (height // 2, width // 2),
        radius + width // 12,
        (np.full(3, 62), np.full(3, 98)),
    )
    pillar = _Shape("rectangle", middle, half_width, height, (1, 0), radius // 2, "stripes", greys)
    rendered = []
    for time in range(num_frames):
        column = width // 8 + (width - width // 4) * time // (num_frames - 1)
        shapes = [replace(ball, centre_yx=(row, column)), pillar]
        rendered.append(_render(background.copy(), shapes, f"{seed}:occlusion noise {time}"))
    return Clip(*map(np.stack, zip(*rendered, strict=True)))


@dataclass(frozen=True)
class _Move:
    """A velocity in sixteenths of a pixel a frame."""

    y: int
    x: int

    def at(self, time: int, start_yx: tuple[int, int], last_yx: tuple[int, int]) -> tuple[int, int]:
        """Where what started at `start_yx` is, when it turns back at 0 and at `last_yx`."""
        y, x = (
            last - abs((start * 16 + velocity * time) // 16 % (2 * last) - last)
            for start, velocity, last in zip(start_yx, (self.y, self.x), last_yx, strict=True)
        )
        return y, x


def _checked_size_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = size_hw
    if min(height, width) < _MIN_SIDE:
        raise InputError(
            f"a scene of {height} x {width} pixels is too small; both sides must be {_MIN_SIDE} or more"
        )
    return height, width


class _Draw:
    """Integers from a seeded stream, in the order asked for."""

    def __init__(self, key: str) -> None:
        self._words = iter(raw_words(key, 1024).tolist())

    def between(self, low: int, high: int) -> int:
        """One integer of low .. high, both included."""
        return low + next(self._words) % (high - low + 1)

    def sign(self) -> int:
        return 2 * self.between(0, 1) - 1

    def colour(self) -> np.ndarray:
        return np.array([self.between(16, 240) for _ in range(3)])

    def shuffled(self, count: int) -> list[int]:
        """0 .. count - 1 in a drawn order."""
        rest = list(range(count))
        return [rest.pop(self.between(0, len(rest) - 1)) for _ in range(count)]


def _background(draw: _Draw, height: int, width: int) -> np.ndarray:
    """(H, W, 3) int64: a 4 x 5 lattice of colours, interpolated bilinearly in 1/256 steps."""
    rows, columns = 4, 5
    lattice = np.stack([draw.colour() for _ in range(rows * columns)]).reshape(rows, columns, 3)
    y = np.arange(height, dtype=np.int64) * ((rows - 1) * 256) // height
    x = np.arange(width, dtype=np.int64) * ((columns - 1) * 256) // width
    (y0, fy), (x0, fx) = divmod(y, 256), divmod(x, 256)
    fy, fx = fy[:, None, None], fx[None, :, None]
    top = lattice[y0][:, x0] * (256 - fx) + lattice[y0][:, x0 + 1] * fx
    bottom = lattice[y0 + 1][:, x0] * (256 - fx) + lattice[y0 + 1][:, x0 + 1] * fx
    return (top * (256 - fy) + bottom * fy) >> 16


@dataclass(frozen=True, eq=False)
class _Shape:
    """A textured shape. Its own axes u, v are integers, scaled by the length of `direction`."""

    kind: str
    centre_yx: tuple[int, int]
    half_u: int
    half_v: int
    direction: tuple[int, int]
    period: int
    texture: str
    colours: tuple[np.ndarray, np.ndarray]

    def cover(self, image: np.ndarray, owner: np.ndarray, index: int) -> None:
        """Draw into `image` and `owner`, over what is there."""
        height, width = owner.shape
        (a, b), (centre_y, centre_x) = self.direction, self.centre_yx
        squared, length = a * a + b * b, math.isqrt(a * a + b * b)
        dy = np.arange(height, dtype=np.int64)[:, None] - centre_y
        dx = np.arange(width, dtype=np.int64)[None, :] - centre_x
        u, v = a * dx + b * dy, a * dy - b * dx
        inside = _inside(self.kind, u * u, v * v, self.half_u**2 * squared, self.half_v**2 * squared)

        period = self.period * length
        if self.texture == "stripes":
            second = (u // period) % 2 == 1
        elif self.texture == "checks":
            second = (u // period + v // period) % 2 == 1
        elif self.texture == "speckle":
            second = ((u // length) * 7 + (v // length) * 13) % 11 < 4
        else:
            second = np.zeros(owner.shape, bool)
        image[inside] = np.where(second[..., None], self.colours[1], self.colours[0])[inside]
        owner[inside] = index


def _draw_shape(draw: _Draw, index: int, kind: str, height: int, width: int) -> _Shape:
    """A shape in quarter `index` of the picture."""
    cell = min(height, width) // 2
    row, column = divmod(index, 2)
    centre_y = height * (2 * row + 1) // 4 + draw.between(-cell // 8, cell // 8)
    centre_x = width * (2 * column + 1) // 4 + draw.between(-cell // 8, cell // 8)
    # No shape reaches farther than 0.7 cells, and centres are 0.75 cells apart or more: every centre stays
    # visible.
    half_u, half_v = draw.between(cell * 3 // 8, cell // 2), draw.between(cell // 4, cell // 2)
    direction = draw.between(1, 8), draw.between(-8, 8)
    period = max(2, cell // draw.between(6, 12))
    texture = _TEXTURES[draw.between(0, len(_TEXTURES) - 1)]
    colours = draw.colour(), draw.colour()
    return _Shape(kind, (centre_y, centre_x), half_u, half_v, direction, period, texture, colours)


def _render(image: np.ndarray, shapes: list[_Shape], noise: str) -> tuple[np.ndarray, np.ndarray]:
    """The picture of `shapes` over a background, with noise, and the visible part of each."""
    owner = np.full(image.shape[:2], -1)
    for index, shape in enumerate(shapes):
        shape.cover(image, owner, index)
    words = raw_words(noise, -(-image.size // 8)).view(np.uint8)[: image.size].reshape(image.shape)
    image = np.clip(image + words.astype(np.int64) % 17 - 8, 0, 255).astype(np.uint8)
    return image, np.stack([owner == index for index in range(len(shapes))])


def _inside(kind: str, uu: np.ndarray, vv: np.ndarray, half_uu: int, half_vv: int) -> np.ndarray:
    """Whether each pixel is in the shape; all arguments are squares."""
    if kind == "rectangle":
        return (uu <= half_uu) & (vv <= half_vv)
    if kind == "cross":
        bar_u, bar_v = (uu <= half_uu) & (9 * vv <= half_vv), (9 * uu <= half_uu) & (vv <= half_vv)
        return bar_u | bar_v
    outline = half_uu * half_vv
    # The minimum keeps far pixels outside, and the products within 64 bits for sides up to 16384.
    radius = np.minimum(uu, half_uu + 1) * half_vv + np.minimum(vv, half_vv + 1) * half_uu
    inside = radius <= outline
    return inside & (radius > outline // 8) if kind == "ring" else inside


def _deepest_pixel_xy(mask: np.ndarray) -> np.ndarray:
    """(2,) float32: the pixel (x, y) farthest, in city blocks, from anything outside `mask`; the first one of
    equals."""
    distance = np.where(np.pad(mask, 1), mask.size, 0)
    for axis in (0, 1):
        steps = np.arange(distance.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
        forward = np.minimum.accumulate(distance - steps, axis) + steps
        backward = np.flip(np.minimum.accumulate(np.flip(distance + steps, axis), axis), axis) - steps
        distance = np.minimum(forward, backward)
    y, x = np.unravel_index(np.argmax(distance), distance.shape)
    return np.array([x - 1, y - 1], np.float32)


def _bounding_box_xyxy(mask: np.ndarray) -> np.ndarray:
    """(4,) float32: the first and last column and row with a pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)
