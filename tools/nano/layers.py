"""What things look like: random surfaces and object layers from sprites, photographs and procedural families.

A `Stock` and a generator in, pictures and `Layer`s out. Knows nothing about where an object goes.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from assets import Assets, premultiply
from canvas import Layer
from effects import bevel, colour_matrix, light_field, lit, recolour
from shapes import draw_shape, shape_families
from textures import draw_texture, gradient, random_colours, texture_families

Rng = np.random.Generator
_MARGIN = 3  # transparent pixels around a layer, so that its edge is soft wherever it is cut


class Stock:
    """What one stretch of scenes draws from: a few sprites and photographs of a split, and its families."""

    def __init__(self, assets: Assets, sprites: list[str], photos: list[str]) -> None:
        self.assets, self.sprites, self.photos = assets, sprites, photos
        self.mapped = sorted(set(photos) & set(assets.mapped))
        self.shapes, self.textures = shape_families(assets.split), texture_families(assets.split)

    def photo(self, rng: Rng, size_hw: tuple[int, int]) -> np.ndarray:
        """A random window (h, w, 3) of a random photograph, mirrored half of the time."""
        name = _pick(rng, self.photos)
        top, left, height, width = photo_window(rng, self.assets.photo(name).shape[:2], size_hw)
        halvings = int(np.log2(max(height / size_hw[0], 1)))
        photo = self.assets.photo(name, halvings)
        top, left, height, width = (value >> halvings for value in (top, left, height, width))
        window = photo[top : top + height, left : left + width]
        window = cv2.resize(window, size_hw[::-1], interpolation=cv2.INTER_LINEAR)
        return cv2.flip(window, 1) if rng.random() < 0.5 else window

    def surface(
        self, rng: Rng, size_hw: tuple[int, int], photo: float = 0.5, plain: float = 0.25
    ) -> np.ndarray:
        """A picture (h, w, 3) of a material: by chance a photograph or a plain colour, else a texture."""
        draw = rng.random()
        if draw < photo and self.photos:
            return self.photo(rng, size_hw)
        if draw > 1 - plain / 2:
            return np.full((*size_hw, 3), random_colours(rng, 1).astype(np.uint8))
        if draw > 1 - plain:
            return gradient(rng, size_hw)
        return draw_texture(rng, _pick(rng, self.textures), size_hw)

    def backdrop(self, rng: Rng, size: int) -> np.ndarray:
        """What is behind a scene (size, size, 3): a surface, often recoloured, at times far out of focus."""
        picture = self.surface(rng, (size, size), photo=0.62, plain=0.14)
        if rng.random() < 0.6:
            picture = recolour(picture, colour_matrix(rng, 0.5))
        if rng.random() < 0.25:
            small = cv2.resize(picture, (size // 4, size // 4), interpolation=cv2.INTER_AREA)
            small = cv2.GaussianBlur(small, (0, 0), float(np.exp(rng.uniform(np.log(0.4), np.log(6)))))
            picture = cv2.resize(small, (size, size), interpolation=cv2.INTER_CUBIC)
        return picture

    def thing(self, rng: Rng, side: float) -> Layer:
        """A random object whose longer side is about `side` pixels."""
        goal = max(round(side), 8)
        draw, part = rng.random(), None
        if draw < 0.1 and self.mapped:
            rgba = self._cutout(rng, goal)
        elif draw < 0.62 and self.sprites:
            rgba = self._sprite(rng, goal)
        else:
            rgba, part = self._shape(rng, goal)
        if rng.random() < 0.2:
            rgba, part = roomy(rgba), None if part is None else roomy(part)
            bend = Bend.draw(rng, rgba.shape[:2])
            rgba, part = bend.apply(rgba), None if part is None else bend.apply(part)
        if rng.random() < 0.75:
            rgba = recolour(rgba, colour_matrix(rng))
        if rng.random() < 0.3:
            rgba = lit(rgba, bevel(rng, cv2.extractChannel(rgba, 3)))
        if rng.random() < 0.3:
            rgba = self._grained(rng, rgba)
        if rng.random() < 0.3:
            rgba = lit(rgba, light_field(rng, 1.0))
        return softened(rng, rgba, part)

    def _grained(self, rng: Rng, rgba: np.ndarray) -> np.ndarray:
        """A drawing's flat colours with the light and dark of a real surface."""
        grey = cv2.cvtColor(self.surface(rng, rgba.shape[:2], photo=0.7, plain=0.0), cv2.COLOR_RGB2GRAY)
        mean, spread = cv2.meanStdDev(grey)
        gain = rng.uniform(0.08, 0.35) / max(float(spread[0, 0]), 5.0)
        return lit(rgba, 1 + gain * (grey.astype(np.float32) - np.float32(mean[0, 0])))

    def _cutout(self, rng: Rng, side: int) -> np.ndarray:
        """A region of a photograph, cut along its border."""
        name = _pick(rng, self.mapped)
        photo, labels = self.assets.photo(name), self.assets.regions(name)
        mask = (labels == rng.integers(1, max(int(labels.max()), 1) + 1)).view(np.uint8)
        x, y, width, height = cv2.boundingRect(mask)
        if width < 8 or height < 8:  # all of it is covered by smaller regions
            return self._shape(rng, side)[0]
        alpha = cv2.GaussianBlur(mask[y : y + height, x : x + width] * 255, (0, 0), 1.0)
        fit = photo.shape[1] / labels.shape[1]
        top, left, bottom, right = (round(fit * edge) for edge in (y, x, y + height, x + width))
        scale = min(side / max(width, height), 1.3)
        size = (max(round(width * scale), 3), max(round(height * scale), 3))
        look, alpha = (
            cv2.resize(one, size, interpolation=cv2.INTER_AREA)
            for one in (photo[top:bottom, left:right], alpha)
        )
        rgba = premultiply(look, alpha)
        return cv2.flip(rgba, 1) if rng.random() < 0.5 else rgba

    def _sprite(self, rng: Rng, side: int) -> np.ndarray:
        rgba = self.assets.sprite(_pick(rng, self.sprites), side)
        scale = min(side / max(rgba.shape[:2]), 1.3)  # beyond that it only looks blurred
        squeeze = rng.uniform(0.75, 1) if rng.random() < 0.3 else 1.0
        wide = rng.random() < 0.5
        width = max(round(rgba.shape[1] * scale * (squeeze if wide else 1)), 3)
        height = max(round(rgba.shape[0] * scale * (1 if wide else squeeze)), 3)
        rgba = cv2.resize(rgba, (width, height), interpolation=cv2.INTER_LINEAR)
        if rng.random() < 0.5:
            rgba = cv2.flip(rgba, 1)
        if rng.random() < 0.15:
            rgba = premultiply(
                self.surface(rng, (height, width), photo=0.7, plain=0.1), cv2.extractChannel(rgba, 3)
            )
        return rgba

    def _shape(self, rng: Rng, side: int) -> tuple[np.ndarray, np.ndarray | None]:
        alpha = draw_shape(rng, _pick(rng, self.shapes), side)
        fill = self.surface(rng, alpha.shape)
        part = None
        if rng.random() < 0.3:  # an object of several colours: a badge on a bag, a window in a wall
            for _ in range(int(rng.integers(1, 4))):
                badge = draw_shape(rng, _pick(rng, self.shapes), max(round(side * rng.uniform(0.15, 0.5)), 8))
                part = _stamp(rng, fill, badge, self.surface(rng, badge.shape))
            part = cv2.min(part, alpha) if part is not None and rng.random() < 0.7 else None
        return premultiply(fill, alpha), part


def photo_window(rng: Rng, photo_hw: tuple[int, ...], size_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """A random window (top, left, height, width) in the shape ratio of the size, mostly a wide view."""
    fit = min(photo_hw[0] / size_hw[0], photo_hw[1] / size_hw[1])
    scale = fit * rng.uniform(0.35, 1) ** 0.7
    height, width = max(round(size_hw[0] * scale), 2), max(round(size_hw[1] * scale), 2)
    height, width = min(height, photo_hw[0]), min(width, photo_hw[1])
    top, left = rng.integers(0, photo_hw[0] - height + 1), rng.integers(0, photo_hw[1] - width + 1)
    return int(top), int(left), height, width


def roomy(picture: np.ndarray) -> np.ndarray:
    """The picture with an empty margin wide enough for a bend."""
    return _framed(picture, max(picture.shape[:2]) // 8)


def softened(rng: Rng, rgba: np.ndarray, part: np.ndarray | None = None) -> Layer:
    """A layer with a transparent margin and, half of the time, an edge that is softer than the cut."""
    rgba, part = _framed(rgba, _MARGIN), None if part is None else _framed(part, _MARGIN)
    if rng.random() < 0.5:
        rgba = cv2.GaussianBlur(rgba, (0, 0), rng.uniform(0.4, 1.0))
    return Layer(rgba, part)


def recoloured(rng: Rng, layer: Layer) -> Layer:
    """The layer in slightly other colours."""
    return Layer(recolour(layer.rgba, colour_matrix(rng, 0.4)), layer.part)


def blended(layer: Layer, around: np.ndarray, amount: float) -> Layer:
    """The layer with its mean colour moved towards that of a picture by a share, its contrast kept."""
    *own, alpha = cv2.mean(layer.rgba)
    own = np.array(own) / max(alpha / 255, 1e-3)
    matrix = np.eye(4)
    matrix[:3, 3] = amount * (np.array(cv2.mean(around)[:3]) - own) / 255
    return Layer(recolour(layer.rgba, matrix), layer.part)


def _stamp(rng: Rng, onto: np.ndarray, badge: np.ndarray, look: np.ndarray) -> np.ndarray:
    """Puts a badge somewhere onto a picture, in place; its alpha (h, w) on the picture's grid."""
    height, width = min(badge.shape[0], onto.shape[0]), min(badge.shape[1], onto.shape[1])
    top, left = rng.integers(0, onto.shape[0] - height + 1), rng.integers(0, onto.shape[1] - width + 1)
    window = np.s_[top : top + height, left : left + width]
    weight = badge[:height, :width, None].astype(np.float32) / 255
    onto[window] = (onto[window] + weight * (look[:height, :width].astype(np.float32) - onto[window])).astype(
        np.uint8
    )
    alpha = np.zeros(onto.shape[:2], np.uint8)
    alpha[window] = badge[:height, :width]
    return alpha


@dataclass(frozen=True)
class Bend:
    """A smooth bend, or a view from aside, of pictures of one size; it keeps their size."""

    shift_xy: np.ndarray  # (2, 5, 5) float32, pixels; where the pixels of a coarse grid are fetched from

    @classmethod
    def draw(cls, rng: Rng, size_hw: tuple[int, ...]) -> Bend:
        """A random bend."""
        height, width = size_hw[:2]
        if rng.random() < 0.6:
            return cls(
                (max(size_hw) * rng.uniform(0.02, 0.08) * rng.normal(size=(2, 5, 5))).astype(np.float32)
            )
        y, x = np.mgrid[-1:1:5j, -1:1:5j]
        tilt = rng.uniform(-0.2, 0.2) * x + rng.uniform(-0.2, 0.2) * y
        # Only inwards: what is drawn smaller stays inside.
        tilt = (tilt + np.abs(tilt).max()) / 2
        return cls(np.stack([tilt * x * width, tilt * y * height]).astype(np.float32))

    def apply(self, picture: np.ndarray, amount: float = 1.0) -> np.ndarray:
        """The picture bent by a share of the whole bend."""
        height, width = picture.shape[:2]
        shift_x, shift_y = (amount * cv2.resize(one, (width, height), None, 0, 0, 2) for one in self.shift_xy)
        shift_x += np.arange(width, dtype=np.float32)
        shift_y += np.arange(height, dtype=np.float32)[:, None]
        return cv2.remap(picture, shift_x, shift_y, cv2.INTER_LINEAR)


def _framed(picture: np.ndarray, room: int) -> np.ndarray:
    return cv2.copyMakeBorder(picture, room, room, room, room, cv2.BORDER_CONSTANT, value=[0, 0, 0, 0])


def _pick(rng: Rng, names: list[str] | tuple[str, ...]) -> str:
    return names[int(rng.integers(len(names)))]
