"""What light, lens, sensor and file do to a picture: uint8 RGB in and out, or matrices and fields to apply.

All that is random is drawn once into a value that the frames of a clip share. Knows nothing about objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

Rng = np.random.Generator


def colour_matrix(rng: Rng, strength: float = 1.0) -> np.ndarray:
    """A 4x4 matrix for premultiplied RGBA: hue, saturation, contrast, brightness; at times grey.

    The last column adds a colour in proportion to the alpha: an offset, as it is before premultiplication.
    """
    hue = rng.normal() * 0.35 * strength
    if rng.random() < 0.15 * strength:
        hue = rng.uniform(-np.pi, np.pi)
    saturation = float(np.exp(rng.normal() * 0.35 * strength))
    tint = np.exp(rng.normal(size=3) * 0.07 * strength)
    if rng.random() < 0.08 * strength:  # grey, or a duotone
        saturation, tint = 0.0, np.exp(rng.normal(size=3) * rng.choice([0.02, 0.4]))
    grey = np.full((3, 3), 1 / 3)
    axis = np.sqrt(1 / 3) * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    turn = grey + np.cos(hue) * (np.eye(3) - grey) + np.sin(hue) * axis
    contrast = float(np.exp(rng.normal() * 0.25 * strength))
    brightness = rng.normal() * 0.1 * strength
    matrix = np.eye(4)
    matrix[:3, :3] = contrast * np.diag(tint) @ (grey + saturation * (np.eye(3) - grey)) @ turn
    matrix[:3, 3] = 0.45 * (1 - contrast) + brightness
    return matrix


def recolour(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A 4x4 colour matrix applied to RGB, or to premultiplied RGBA."""
    if picture.shape[2] == 3:
        return cv2.transform(picture, np.concatenate([matrix[:3, :3], 255 * matrix[:3, 3:]], 1))
    changed = cv2.transform(picture, matrix)
    alpha = cv2.extractChannel(changed, 3)
    return cv2.min(changed, cv2.merge([alpha] * 4))


def light_field(rng: Rng, strength: float) -> np.ndarray:
    """A smooth factor (9, 9, 3) float32 around 1: light from one side, a vignette, patches, a cast."""
    y, x = np.mgrid[-1:1:9j, -1:1:9j]
    turn = rng.uniform(0, 2 * np.pi)
    field = rng.normal() * 0.25 * (x * np.cos(turn) + y * np.sin(turn)) - abs(rng.normal()) * 0.12 * (
        x**2 + y**2
    )
    patches = cv2.resize(rng.normal(size=(4, 4)).astype(np.float32), (9, 9), interpolation=cv2.INTER_CUBIC)
    field = field + 0.12 * patches * (rng.random() < 0.5)
    cast = rng.normal(size=3) * 0.05
    return np.exp(strength * (field[..., None] + cast)).astype(np.float32)


def lit(picture: np.ndarray, field: np.ndarray, gain: float = 1.0) -> np.ndarray:
    """RGB or premultiplied RGBA times a field, (h, w) or (h, w, 3) of any resolution, times a gain."""
    if field.ndim == 2:
        field = cv2.merge([field] * 3)
    if picture.shape[2] == 4:
        field = cv2.merge([*cv2.split(field), np.ones(field.shape[:2], np.float32)])
    full = cv2.resize(field, (picture.shape[1], picture.shape[0]), interpolation=cv2.INTER_LINEAR)
    return cv2.multiply(picture, full, scale=gain, dtype=cv2.CV_8U)


def bevel(rng: Rng, alpha: np.ndarray) -> np.ndarray:
    """A factor (h, w) float32 around 1 that makes a flat outline look round, lit from one side."""
    height, width = alpha.shape
    small = cv2.resize(alpha, (48, 48), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    hill = cv2.GaussianBlur(small, (0, 0), rng.uniform(2, 8))
    turn = float(rng.uniform(0, 2 * np.pi))
    slope = np.cos(turn) * cv2.Sobel(hill, cv2.CV_32F, 1, 0) + np.sin(turn) * cv2.Sobel(
        hill, cv2.CV_32F, 0, 1
    )
    slope *= rng.uniform(0.15, 0.6) / max(float(np.abs(slope).max()), 1e-6)
    return cv2.resize((1 + slope).astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)


def motion_kernel(step_xy: np.ndarray) -> np.ndarray | None:
    """A blur (k, k) along a step in pixels; None where it is too short to be seen."""
    length = float(np.hypot(*step_xy))
    if length < 1.5:
        return None
    reach = int(np.ceil(length / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.uint8)
    half = np.round(np.asarray(step_xy) * 8).astype(int)  # half the step, 4 fraction bits
    middle = np.array([reach, reach]) * 16
    cv2.line(kernel, (middle - half).tolist(), (middle + half).tolist(), 255, 1, cv2.LINE_AA, 4)
    return kernel.astype(np.float32) / max(int(kernel.sum()), 1)


@dataclass(frozen=True)
class Shadow:
    """Where a scene's soft shadows fall: a shift and a blur as shares of the side, and how dark."""

    shift_xy: tuple[float, float]
    blur: float
    darkness: float

    @classmethod
    def draw(cls, rng: Rng) -> Shadow:
        """A random shadow, from a contact line to a far soft one."""
        reach = float(np.exp(rng.uniform(np.log(0.006), np.log(0.06))))
        turn = rng.uniform(0, 2 * np.pi)
        shift = (reach * float(np.cos(turn)), reach * float(np.sin(turn)))
        return cls(shift, reach * rng.uniform(0.4, 1.2), rng.uniform(0.2, 0.75))


@dataclass(frozen=True)
class Camera:
    """Lens, tone, sensor and file of one picture or clip."""

    blur: float  # pixels; 0 is none
    shake_xy: tuple[float, float]  # motion blur of the whole picture, pixels
    sharpen: float  # how much of the fine detail is added once more, as cameras do
    reduce: float  # taken at a size this many times smaller
    tone: np.ndarray  # lookup table (1, 256, 3) uint8
    noise: float  # standard deviation, grey levels
    grey_noise: bool
    quality: int  # JPEG; 0 is none

    @classmethod
    def draw(cls, rng: Rng) -> Camera:
        """A random camera; about one picture in five comes out clean."""
        clean = rng.random() < 0.2
        gamma = np.exp(rng.normal(size=3) * 0.03 + rng.normal() * 0.15)
        grey = np.linspace(0, 1, 256)[:, None]
        low, high = rng.uniform(-0.04, 0.08), rng.uniform(0.9, 1.08)
        tone = np.clip(255 * (low + (high - low) * grey**gamma), 0, 255).astype(np.uint8)[None]
        turn = rng.uniform(0, np.pi)
        shake = rng.uniform(2, 7) if rng.random() < 0.05 else 0.0
        return cls(
            blur=0.0 if clean or rng.random() < 0.5 else float(np.exp(rng.uniform(np.log(0.4), np.log(1.8)))),
            shake_xy=(shake * float(np.cos(turn)), shake * float(np.sin(turn))),
            sharpen=rng.uniform(0.3, 1.5) if not clean and rng.random() < 0.25 else 0.0,
            reduce=rng.uniform(1.2, 2.2) if not clean and rng.random() < 0.12 else 1.0,
            tone=tone,
            noise=0.0 if clean or rng.random() < 0.3 else float(np.exp(rng.uniform(np.log(0.7), np.log(14)))),
            grey_noise=bool(rng.random() < 0.5),
            quality=0 if clean or rng.random() < 0.4 else int(rng.integers(25, 96)),
        )

    def take(self, rng: Rng, picture: np.ndarray) -> np.ndarray:
        """The picture (h, w, 3) uint8 as this camera stores it."""
        size = (picture.shape[1], picture.shape[0])
        if self.blur:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur)
        kernel = motion_kernel(np.array(self.shake_xy))
        if kernel is not None:
            picture = cv2.filter2D(picture, -1, kernel)
        if self.sharpen:
            smooth = cv2.GaussianBlur(picture, (0, 0), 1.0)
            picture = cv2.addWeighted(picture, 1 + self.sharpen, smooth, -self.sharpen, 0)
        if self.reduce > 1:
            small = (round(size[0] / self.reduce), round(size[1] / self.reduce))
            picture = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
        picture = cv2.LUT(picture, self.tone)
        if self.noise:
            grain = _grain(rng, picture.shape[:2], self.grey_noise)
            picture = cv2.addWeighted(picture, 1, grain, self.noise, 0, dtype=cv2.CV_8U)
        if self.quality:
            # Red and blue are swapped for the encoder: chroma is treated alike, and two copies are saved.
            _, coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
            picture = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))
        if self.reduce > 1:
            picture = cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR)
        return picture


def _grain(rng: Rng, size_hw: tuple[int, int], grey: bool) -> np.ndarray:
    """Unit noise (h, w, 3): a random window of a fixed field; to draw it anew costs more than the rest."""
    bank = _noise_bank(grey, max(512, 1 << (max(size_hw) + 64).bit_length()))
    y, x = rng.integers(0, bank.shape[0] - size_hw[0]), rng.integers(0, bank.shape[1] - size_hw[1])
    return np.ascontiguousarray(bank[y : y + size_hw[0], x : x + size_hw[1]])


@lru_cache(maxsize=4)
def _noise_bank(grey: bool, side: int) -> np.ndarray:
    noise = np.random.default_rng(7).standard_normal((side, side, 1 if grey else 3), np.float32)
    return np.repeat(noise, 3, 2) if grey else cv2.GaussianBlur(noise, (0, 0), 0.6) * 1.7
