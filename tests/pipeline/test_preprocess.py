"""The picture as input: antialiased bilinear on floats, ImageNet's statistics. A frame of a video: Pillow's
bicubic on bytes. Masks."""

from __future__ import annotations

import numpy as np
import pytest

from masklet.pipeline.preprocess import (
    MEAN,
    STD,
    frame_input,
    image_input,
    low_res_of_mask,
    mask_input,
    padded_input,
    padded_size,
)


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


@pytest.mark.parametrize("size_hw", [(50, 80), (7, 200), (64, 64), (1, 1), (300, 20)])
def test_a_frame_is_resized_as_bytes(size_hw):
    """Equal to the last bit: the reference divides in float64, and goes on in float32."""
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    resized = np.array(Image.fromarray(image).convert("RGB").resize((64, 64)))
    expected = (resized / 255.0).transpose(2, 0, 1).astype(np.float32)
    expected -= MEAN[:, None, None]
    expected /= STD[:, None, None]
    got = frame_input(image, 64)
    assert got.shape == (1, 3, 64, 64)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0], expected)


def test_frames_and_pictures_differ():
    """The reason for two functions: parity needs both."""
    image = np.random.default_rng(1).integers(0, 256, (50, 80, 3)).astype(np.uint8)
    assert np.abs(frame_input(image, 64) - image_input(image, 64)).max() > 0.1
    same_size = np.random.default_rng(1).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    np.testing.assert_allclose(frame_input(same_size, 64), image_input(same_size, 64), atol=1e-6)


def test_a_frame_may_be_a_view_of_something_larger():
    image = np.random.default_rng(1).integers(0, 256, (50, 160, 3)).astype(np.uint8)
    np.testing.assert_array_equal(frame_input(image[:, ::2], 64), frame_input(image[:, ::2].copy(), 64))


@pytest.mark.parametrize("size_hw", [(50, 80), (7, 200), (1, 1), (300, 20), (128, 128)])
def test_masks_against_the_obvious_computation(size_hw):
    mask = np.random.default_rng(0).random(size_hw) > 0.4
    rows, columns = triangle_weights(size_hw[0], 64), triangle_weights(size_hw[1], 64)
    share = rows @ mask.astype(np.float64) @ columns.T
    got = mask_input(mask, 64)
    assert got.shape == (1, 1, 64, 64)
    assert got.dtype == np.float32
    clear = np.abs(share - 0.5) > 1e-5  # what is halfway may fall on either side
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(got[0, 0][clear], (share >= 0.5)[clear])


def test_a_mask_of_the_right_size_stays_as_it_is():
    mask = np.random.default_rng(0).random((64, 64)) > 0.5
    np.testing.assert_array_equal(mask_input(mask, 64)[0, 0], mask)


def test_logits_of_a_mask_are_softened_at_its_outline():
    mask = np.zeros((1, 1, 64, 64), np.float32)
    mask[0, 0, 10:40, 20:50] = 1
    weights = triangle_weights(64, 16)
    got = low_res_of_mask(mask)
    assert (got.shape, got.dtype) == ((1, 16, 16), np.float32)
    np.testing.assert_allclose(got[0], weights @ (20 * mask[0, 0] - 10) @ weights.T, atol=1e-5)
    assert (got.min(), got.max()) == (-10, 10)
    assert ((got > -10) & (got < 10)).any()
    assert (low_res_of_mask(np.zeros((1, 1, 64, 64), np.float32)) == -10).all()


@pytest.mark.parametrize(
    ("size_hw", "expected"),
    [
        ((50, 80), (40, 64)),
        ((200, 7), (64, 2)),
        ((64, 64), (64, 64)),
        ((20, 300), (4, 64)),
        ((1, 300), (1, 64)),
    ],
)
def test_sam_keeps_the_shape_and_pads_with_zeros(size_hw, expected):
    from PIL import Image

    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3)).astype(np.uint8)
    height, width = padded_size(size_hw, 64)
    assert (height, width) == expected
    resized = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    got = padded_input(image, 64)
    assert got.shape == (1, 3, 64, 64)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got[0, :, :height, :width], ((resized / 255 - MEAN) / STD).transpose(2, 0, 1), atol=1e-6
    )
    assert not got[0, :, height:].any()
    assert not got[0, :, :, width:].any()
