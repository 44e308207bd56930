"""A picture as the network's input.

In: (H, W, 3) uint8 RGB. Out: (1, 3, S, S) float32, resized to a square and normalised with ImageNet's
statistics. Matches the reference's image path: antialiased bilinear on floats in [0, 1]. (Its video path
resizes otherwise.)
"""

from __future__ import annotations

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def image_input(image: np.ndarray, size: int) -> np.ndarray:
    """Resize and normalise; the picture is stretched to the square, not padded."""
    from PIL import Image

    planes = np.empty((1, 3, size, size), np.float32)
    for channel in range(3):
        # Pillow's float mode resizes with the same kernel as torch's antialiased one and doesn't round.
        plane = Image.fromarray(image[..., channel].astype(np.float32))
        planes[0, channel] = np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR))
        planes[0, channel] *= 1 / (255 * STD[channel])
        planes[0, channel] -= MEAN[channel] / STD[channel]
    return planes
