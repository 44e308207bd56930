"""Pictures that are easy to take apart: a few large shapes, flat or striped, before a plain background.

A generator in, image and exact masks out. Training begins with them: what a prompt means is learned here
within minutes, and takes far longer on composites.
"""

from __future__ import annotations

import cv2
import numpy as np
from stills import Still

SHAPES = 6
LEAST = 0.012  # of the picture
STRIPED = 0.3  # of the shapes
NOISE = 6.0  # grey levels


def plain_still(rng: np.random.Generator, size: int) -> Still:
    """A random picture. Draws again in the rare case that no shape is large enough."""
    while True:
        top, bottom = rng.uniform(0, 255, (2, 3))
        share = np.linspace(0, 1, size)[:, None, None]
        image = np.repeat(top * (1 - share) + bottom * share, size, axis=1)
        owner = np.zeros((size, size), np.uint8)
        for number in range(1, SHAPES + 1):
            inside = _shape(rng, size)
            image[inside] = _surface(rng, size)[inside]
            owner[inside] = number
        masks = [owner == number for number in range(1, SHAPES + 1)]
        masks = [mask for mask in masks if mask.mean() >= LEAST]
        if masks:
            image += rng.normal(0, NOISE, image.shape)
            return Still(np.clip(image, 0, 255).astype(np.uint8), np.stack(masks))


def _shape(rng: np.random.Generator, size: int) -> np.ndarray:
    """(S, S) bool: an ellipse or a polygon."""
    canvas = np.zeros((size, size), np.uint8)
    centre, radius = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(0.1, 0.3) * size
    if rng.random() < 0.4:
        axes = (int(radius), int(radius * rng.uniform(0.4, 1)))
        cv2.ellipse(canvas, centre.astype(int).tolist(), axes, rng.uniform(0, 180), 0, 360, (1,), -1)
    else:
        corners = int(rng.integers(3, 9))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = radius * rng.uniform(0.5, 1, corners)
        outline = centre + reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(canvas, [outline.astype(np.int32)], (1,))
    return canvas > 0


def _surface(rng: np.random.Generator, size: int) -> np.ndarray:
    """(S, S, 3): one colour, or stripes of two."""
    first, second = rng.uniform(0, 255, (2, 3))
    if rng.random() >= STRIPED:
        second = first
    stripes = (np.arange(size) // int(rng.integers(2, 6)) % 2)[:, None]
    lines = np.where(stripes, first, second)[None].repeat(size, axis=0)
    return lines if rng.random() < 0.5 else lines.transpose(1, 0, 2)
