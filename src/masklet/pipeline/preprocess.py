"""A picture as the network's input.

In: (H, W, 3) uint8 RGB. Out: (1, 3, S, S) float32, resized and normalised with ImageNet's statistics. The
references resize in three ways: SAM 2 pictures, SAM 2 frames of a video, SAM pictures.
"""

from __future__ import annotations

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def image_input(image: np.ndarray, size: int) -> np.ndarray:
    """A picture: antialiased bilinear on floats. It is stretched to the square, not padded."""
    from PIL import Image

    planes = np.empty((1, 3, size, size), np.float32)
    for channel in range(3):
        # Pillow's float mode resizes with the same kernel as torch's antialiased one and doesn't round.
        plane = Image.fromarray(image[..., channel].astype(np.float32))
        planes[0, channel] = np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR))
        planes[0, channel] *= 1 / (255 * STD[channel])
        planes[0, channel] -= MEAN[channel] / STD[channel]
    return planes


def frame_input(image: np.ndarray, size: int) -> np.ndarray:
    """A frame of a video: Pillow's bicubic on bytes, which rounds to bytes. Stretched likewise."""
    from PIL import Image

    resized = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    return _normalised_bytes(resized, size)


def padded_input(image: np.ndarray, size: int) -> np.ndarray:
    """A picture for SAM: its longer side made `size` by Pillow's bilinear on bytes, then padded with zeros,
    after normalising, right and below."""
    from PIL import Image

    height, width = padded_size(image.shape[:2], size)
    resized = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    return _normalised_bytes(resized, size)


def padded_size(size_hw: tuple[int, ...], size: int) -> tuple[int, int]:
    """The size (H, W) in the model input of a picture whose longer side is made `size`."""
    scale = size / max(size_hw)
    # A strip that is thinner than a pixel would vanish; the reference cannot resize it.
    return max(1, int(size_hw[0] * scale + 0.5)), max(1, int(size_hw[1] * scale + 0.5))


def _normalised_bytes(image: np.ndarray, size: int) -> np.ndarray:
    """Bytes (h, w, 3) as the top left part of the input, zero elsewhere."""
    unit = (np.arange(256) / 255.0).astype(np.float32)
    planes = np.zeros((1, 3, size, size), np.float32)
    for channel in range(3):
        normalised = (unit - MEAN[channel]) / STD[channel]  # of each value that a byte can have
        planes[0, channel, : image.shape[0], : image.shape[1]] = normalised[image[..., channel]]
    return planes


def mask_input(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask prompt (H, W) bool at the model's size: (1, 1, S, S) float32 of zeros and ones, antialiased and
    cut."""
    from PIL import Image

    resized = mask.astype(np.float32)
    if mask.shape != (size, size):
        plane = Image.fromarray(resized)
        resized = (np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR)) >= 0.5).astype(
            np.float32
        )
    return resized.astype(np.float32)[None, None]


def low_res_of_mask(mask: np.ndarray) -> np.ndarray:
    """Logits (1, S / 4, S / 4) of +-10 that stand for a mask prompt (1, 1, S, S), antialiased at its
    outline."""
    from PIL import Image

    plane = Image.fromarray(mask[0, 0] * np.float32(20) - np.float32(10))
    quarter = (plane.width // 4, plane.height // 4)
    return np.asarray(plane.resize(quarter, Image.Resampling.BILINEAR))[None]
