"""The picture as input: antialiased bilinear on floats, ImageNet's statistics."""

from __future__ import annotations

import numpy as np
import pytest

from masklet.pipeline.preprocess import MEAN, STD, image_input


def triangle_weights(size_in: int, size_out: int) -> np.ndarray:
    """(out, in) weights of antialiased bilinear interpolation, the slow obvious way."""
    scale = max(size_in / size_out, 1.0)
    centres = (np.arange(size_out) + 0.5) * size_in / size_out
    distance = np.abs(np.arange(size_in)[None] + 0.5 - centres[:, None]) / scale
    weights = np.clip(1 - distance, 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("size_hw", [(50, 80), (7, 200), (64, 64), (1, 1), (300, 20)])
def test_against_the_obvious_computation(size_hw):
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    rows, columns = triangle_weights(size_hw[0], 64), triangle_weights(size_hw[1], 64)
    resized = np.einsum("yi,ijc,xj->yxc", rows, image / 255.0, columns)
    expected = ((resized - MEAN) / STD).transpose(2, 0, 1)[None]
    got = image_input(image, 64)
    assert got.shape == (1, 3, 64, 64)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=2e-6)
