"""A picture and who is seen in each of its pixels: layers and 2x3 matrices in, image and owner map out.

Knows nothing about where layers come from, nor about randomness.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from effects import Shadow

OPAQUE = 128  # from this alpha on a pixel belongs to the object


@dataclass(frozen=True)
class Layer:
    """An object's look: premultiplied RGBA (h, w, 4) uint8, and perhaps a part's alpha (h, w) uint8."""

    rgba: np.ndarray
    part: np.ndarray | None = None


def placed(
    layer: Layer, centre_xy: np.ndarray, turn: float, scale: float = 1.0, shear: float = 0.0
) -> np.ndarray:
    """The matrix (3, 3), layer to picture pixels, that puts the layer's middle at the centre; radians."""
    height, width = layer.rgba.shape[:2]
    cos, sin = scale * np.cos(turn), scale * np.sin(turn)
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
    offset = np.asarray(centre_xy) - linear @ np.array([(width - 1) / 2, (height - 1) / 2])
    return np.array([[*linear[0], offset[0]], [*linear[1], offset[1]], [0, 0, 1]])


class Canvas:
    """The picture being painted, back to front; owner 0 is nobody."""

    def __init__(self, image: np.ndarray, owner: np.ndarray | None = None) -> None:
        self.image = image.copy()  # (S, S, 3) uint8
        self.owner = np.zeros(image.shape[:2], np.uint8) if owner is None else owner.copy()
        self.parts: dict[int, np.ndarray] = {}  # owner -> (S, S) bool, where its part would be seen
        self.contrast: dict[int, float] = {}  # owner -> how much it changed what it covers, grey levels

    def paint(
        self,
        layer: Layer,
        matrix: np.ndarray,
        owner: int,
        shadow: Shadow | None = None,
        blur: np.ndarray | None = None,
    ) -> None:
        """Puts a layer on top of everything so far, over its shadow, blurred by a kernel."""
        size = self.image.shape[0]
        height, width = layer.rgba.shape[:2]
        corners = matrix[:2] @ np.array([[0, width, width, 0], [0, 0, height, height], [1, 1, 1, 1]], float)
        spread = 0 if blur is None else blur.shape[0] // 2
        left, top = np.clip(np.floor(corners.min(1)) - 1 - spread, 0, size).astype(int)
        right, bottom = np.clip(np.ceil(corners.max(1)) + 2 + spread, 0, size).astype(int)
        if right - left < 1 or bottom - top < 1:
            return
        if shadow is not None:
            self._shade(layer, matrix, shadow)
        window = np.s_[top:bottom, left:right]
        local = matrix[:2] - [[0, 0, left], [0, 0, top]]
        patch = cv2.warpAffine(layer.rgba, local, (right - left, bottom - top))
        solid = cv2.extractChannel(patch, 3) >= OPAQUE
        if blur is not None:
            patch = cv2.filter2D(patch, -1, blur)
        # OpenCV copies what is not contiguous pixel by pixel: channels are taken apart by its own functions.
        through = cv2.cvtColor(cv2.bitwise_not(cv2.extractChannel(patch, 3)), cv2.COLOR_GRAY2RGB)
        below = self.image[window]
        seen = cv2.add(cv2.multiply(below, through, scale=1 / 255), cv2.cvtColor(patch, cv2.COLOR_RGBA2RGB))
        if owner:
            self.contrast[owner] = max(cv2.mean(cv2.absdiff(below, seen), solid.view(np.uint8)))
            if layer.part is not None:
                part = cv2.warpAffine(layer.part, local, (right - left, bottom - top))
                self.parts[owner] = np.zeros((size, size), bool)
                self.parts[owner][window] = (part >= OPAQUE) & solid
        self.image[window] = seen
        np.copyto(self.owner[window], owner, where=solid)

    def _shade(self, layer: Layer, matrix: np.ndarray, shadow: Shadow) -> None:
        """Darkens what is below by the layer's blurred, shifted outline, at a quarter of the resolution."""
        size = self.image.shape[0]
        small = np.diag([0.25, 0.25, 1]) @ matrix
        small[:2, 2] += np.array(shadow.shift_xy) * size / 4
        alpha = cv2.extractChannel(cv2.warpAffine(layer.rgba, small[:2], (size // 4, size // 4)), 3)
        alpha = cv2.GaussianBlur(alpha, (0, 0), max(shadow.blur * size / 4, 0.5))
        left, top, width, height = (4 * value for value in cv2.boundingRect(alpha))
        if width == 0:
            return
        dark = cv2.resize(alpha, (size, size), interpolation=cv2.INTER_LINEAR)[
            top : top + height, left : left + width
        ]
        keep = cv2.convertScaleAbs(dark, alpha=-shadow.darkness, beta=255)
        window = np.s_[top : top + height, left : left + width]
        self.image[window] = cv2.multiply(
            self.image[window], cv2.cvtColor(keep, cv2.COLOR_GRAY2RGB), scale=1 / 255
        )
