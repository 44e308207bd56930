"""Measured masks against the obvious way: enlarge the whole, count, compare."""

from __future__ import annotations

import numpy as np
import pytest

from masklet.pipeline.found import FoundMask, Limits, is_cut_off, measure, without_small_regions
from masklet.pipeline.postprocess import Resizing, component_areas, resize_logits

NUMBERS = {"predicted_iou": 0.5, "stability": 0.9, "point_xy": (1.0, 2.0), "crop_xyxy": (0, 0, 64, 48)}


def smooth(seed: int, size_hw: tuple[int, int] = (32, 32), scale: float = 8.0) -> np.ndarray:
    """Logits with places on both sides of zero."""
    coarse = np.random.default_rng(seed).normal(0, scale, (4, 4)).astype(np.float32)
    return resize_logits(coarse, size_hw)


def found(mask: np.ndarray, **numbers) -> FoundMask:
    return FoundMask.of(mask, (0, 0), **(NUMBERS | numbers))


def whole(one: FoundMask, size_hw: tuple[int, int]) -> np.ndarray:
    out = np.zeros(size_hw, bool)
    x0, y0, x1, y1 = one.box_xyxy
    out[y0:y1, x0:x1] = one.pixels()
    return out


# -------------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("size_hw", [(72, 100), (32, 32), (20, 9), (300, 64)])
@pytest.mark.parametrize("threshold", [0.0, 2.5, -3.0])
@pytest.mark.parametrize("seed", range(4))
def test_the_numbers_are_those_of_the_enlarged_logits(seed, threshold, size_hw):
    plane, limits = smooth(seed), Limits(threshold, 1.0, 0.0)
    large = resize_logits(plane, size_hw)
    below = np.count_nonzero(large > threshold - 1)
    mask = large > threshold
    got = measure(plane, Resizing(plane.shape, size_hw), limits)
    if not mask.any():
        assert got is None
        return
    expected = np.zeros(size_hw, bool)
    x, y = got.corner_xy
    expected[y : y + got.pixels.shape[0], x : x + got.pixels.shape[1]] = got.pixels
    np.testing.assert_array_equal(expected, mask)
    assert got.stability == np.float32(np.count_nonzero(large > threshold + 1)) / np.float32(below)


@pytest.mark.parametrize("scale", [2.0, 6.0, 30.0])
@pytest.mark.parametrize("size_hw", [(72, 100), (20, 9), (300, 64)])
def test_rejecting_early_rejects_nothing_that_would_pass(scale, size_hw):
    """At every limit on stability, whether the bound or the count decides."""
    passed = 0
    for seed in range(20):
        plane = smooth(seed, scale=scale)
        resizing = Resizing(plane.shape, size_hw)
        exact = measure(plane, resizing, Limits(0.0, 1.0, 0.0))
        for limit in (0.2, 0.5, 0.8, 0.95):
            got = measure(plane, resizing, Limits(0.0, 1.0, limit))
            wanted = exact is not None and exact.stability >= np.float32(limit)
            assert (got is not None) == wanted
            passed += wanted
    assert passed


def test_only_the_part_that_matters_is_enlarged(monkeypatch):
    plane = np.full((32, 32), -9.0, np.float32)
    plane[10:13, 20:23] = 9.0
    windows = []
    blocks = Resizing.blocks
    monkeypatch.setattr(
        Resizing, "blocks", lambda self, plane, window: windows.append(window) or blocks(self, plane, window)
    )
    assert measure(plane, Resizing((32, 32), (320, 320)), Limits(0.0, 1.0, 0.5)) is not None
    [(x0, y0, x1, y1)] = windows
    assert (x1 - x0) * (y1 - y0) < 60 * 60


@pytest.mark.parametrize("value", [-5.0, 0.0])
def test_an_empty_mask_is_none(value):
    plane = np.full((8, 8), value, np.float32)
    assert measure(plane, Resizing((8, 8), (40, 40)), Limits(0.0, 1.0, 0.0)) is None


def test_a_full_mask_is_stable():
    plane = np.full((8, 8), 5.0, np.float32)
    got = measure(plane, Resizing((8, 8), (40, 30)), Limits(0.0, 1.0, 1.0))
    assert got.stability == 1
    assert got.pixels.shape == (40, 30)
    assert got.pixels.all()


# ------------------------------------------------------------------------------------------------ the object


@pytest.mark.parametrize("seed", range(3))
def test_packing_keeps_the_pixels(seed):
    mask = np.random.default_rng(seed).random((13, 21)) > 0.8
    one = FoundMask.of(mask, (5, 7), **NUMBERS)
    np.testing.assert_array_equal(whole(one, (40, 50))[7:20, 5:26], mask)
    assert one.area == mask.sum()
    rows, columns = np.nonzero(mask)
    x0, y0, x1, y1 = one.outermost_xyxy()
    assert (x0, x1) == (5 + columns.min(), 5 + columns.max())
    assert (y0, y1) == (7 + rows.min(), 7 + rows.max())


def test_moving_moves_everything():
    one = found(np.ones((4, 6), bool)).moved((100, 30))
    assert one.box_xyxy == (100, 30, 106, 34)
    assert one.point_xy == (101.0, 32.0)
    assert one.crop_xyxy == (100, 30, 164, 78)


@pytest.mark.parametrize(
    ("box_xyxy", "expected"),
    [
        ((150, 150, 200, 200), False),  # inside
        ((121, 150, 200, 200), False),  # 21 pixels from the crop's edge
        ((120, 150, 200, 200), True),  # 20
        ((150, 150, 280, 200), False),  # its last column is 279: 21 before the edge at 300
        ((150, 150, 281, 200), True),
        ((150, 15, 200, 200), False),  # the crop's edge is the picture's too
        ((150, 150, 200, 251), True),
    ],
)
def test_masks_at_a_crops_edge(box_xyxy, expected):
    x0, y0, x1, y1 = box_xyxy
    one = FoundMask.of(
        np.ones((y1 - y0, x1 - x0), bool), (x0, y0), **(NUMBERS | {"crop_xyxy": (100, 0, 300, 270)})
    )
    assert is_cut_off(one, (600, 800)) is expected


# -------------------------------------------------------------------------------------------------- cleaning


def obvious_cleaning(mask: np.ndarray, min_area: float) -> tuple[np.ndarray, bool]:
    """On the whole picture."""
    holes = component_areas(~mask)
    small_holes = (holes > 0) & (holes < min_area)
    mask = mask | small_holes
    islands = component_areas(mask)
    small = (islands > 0) & (islands < min_area)
    changed = bool(small_holes.any() or small.any())
    return (mask & ~small if (islands >= min_area).any() else islands == islands.max()), changed


@pytest.mark.parametrize("min_area", [1, 5, 30.5, 400, 10_000])
@pytest.mark.parametrize("seed", range(6))
def test_cleaning_in_a_window_is_cleaning_the_picture(seed, min_area):
    mask = smooth(seed, (48, 64)) + np.random.default_rng(seed).normal(0, 4, (48, 64)) > 3
    if seed % 2:  # away from the picture's border
        mask[:12], mask[-9:], mask[:, :7], mask[:, -11:] = False, False, False, False
    one, changed = without_small_regions(found(mask), min_area, (48, 64))
    expected, wanted = obvious_cleaning(mask, min_area)
    np.testing.assert_array_equal(whole(one, (48, 64)), expected)
    assert changed is wanted
    assert one.area == expected.sum()
    assert one.predicted_iou == 0.5


def test_of_small_islands_the_first_of_the_largest_stays():
    mask = np.zeros((20, 20), bool)
    mask[2:4, 10:12], mask[9:11, 3:5], mask[15, 15] = True, True, True
    one, changed = without_small_regions(found(mask), 30, (20, 20))
    assert changed
    assert one.box_xyxy == (10, 2, 12, 4)
    assert without_small_regions(one, 30, (20, 20))[1]  # it is small still
