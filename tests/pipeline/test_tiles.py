from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from masklet.errors import InputError
from masklet.pipeline.found import FoundMask
from masklet.pipeline.tiles import TileJoiner, tiles_of


def cut(mask: np.ndarray, tile: tuple[int, int, int, int], iou: float = 0.9) -> FoundMask:
    """What one tile sees of a mask, in the tile's frame."""
    x0, y0, x1, y1 = tile
    part = mask[y0:y1, x0:x1]
    return FoundMask.of(
        part,
        (0, 0),
        predicted_iou=iou,
        stability=iou,
        point_xy=(1.0, 1.0),
        crop_xyxy=(0, 0, x1 - x0, y1 - y0),
    )


def joined(masks: list[np.ndarray], tiles: list[tuple[int, int, int, int]]) -> list[FoundMask]:
    joiner = TileJoiner()
    for x0, y0, x1, y1 in tiles:
        seen = [cut(mask, (x0, y0, x1, y1)) for mask in masks if mask[y0:y1, x0:x1].any()]
        joiner.add((x0, y0, x1, y1), seen)
    return joiner.joined()


def whole(one: FoundMask, size_hw: tuple[int, int]) -> np.ndarray:
    out = np.zeros(size_hw, bool)
    x0, y0, x1, y1 = one.box_xyxy
    out[y0:y1, x0:x1] = one.pixels()
    return out


# ------------------------------------------------------------------------------------------------------ tiles


@pytest.mark.parametrize("size_hw", [(100, 300), (64, 64), (65, 1000), (10, 20), (129, 128)])
@pytest.mark.parametrize("overlap", [8, 32])
def test_tiles_cover_the_picture_and_overlap(size_hw, overlap):
    tiles = tiles_of(size_hw, 64, overlap)
    covered = np.zeros(size_hw, int)
    for x0, y0, x1, y1 in tiles:
        assert (x1 - x0, y1 - y0) == (min(64, size_hw[1]), min(64, size_hw[0]))
        covered[y0:y1, x0:x1] += 1
    assert covered.min() == 1
    for axis, size in ((0, size_hw[1]), (1, size_hw[0])):
        starts = sorted({tile[axis] for tile in tiles})
        assert starts[-1] + min(64, size) == size
        assert all(b - a <= 64 - overlap for a, b in pairwise(starts))


@pytest.mark.parametrize("overlap", [0, 7, 33, 64])
def test_an_overlap_too_small_or_too_large_is_refused(overlap):
    with pytest.raises(InputError, match=rf"Tiles of 64 pixels with an overlap of {overlap}"):
        tiles_of((100, 100), 64, overlap)


# ---------------------------------------------------------------------------------------------------- joining


def test_what_crosses_tiles_comes_out_as_one():
    size_hw = (150, 170)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    disc = (x - 85) ** 2 + (y - 75) ** 2 < 70**2  # in all tiles
    ring = disc & ((x - 85) ** 2 + (y - 75) ** 2 > 60**2)
    corner = (x < 20) & (y < 30)  # in one
    masks = [disc, ring, corner]
    found = joined(masks, tiles_of(size_hw, 64, 16))
    assert len(found) == 3
    for mask in masks:
        assert any(np.array_equal(whole(one, size_hw), mask) for one in found)
    assert {one.crop_xyxy for one in found} == {(0, 0, 170, 150), (0, 0, 64, 64)}


def test_neighbours_with_different_things_in_the_strip_stay_apart():
    size_hw, tiles = (64, 112), tiles_of((64, 112), 64, 16)
    left, right = np.zeros((2, *size_hw), bool)
    left[10:30, 20:60], right[34:60, 52:100] = True, True
    joiner = TileJoiner()
    joiner.add(tiles[0], [cut(left, tiles[0])])
    joiner.add(tiles[1], [cut(right, tiles[1])])
    assert len(joiner.joined()) == 2


def test_two_masks_of_one_tile_are_never_united():
    """A part and its whole look alike in the strip; the neighbour has one mask for both."""
    size_hw, tiles = (64, 112), tiles_of((64, 112), 64, 16)
    part, object_ = np.zeros((2, *size_hw), bool)
    part[10:30, 40:100], object_[10:30, 5:100] = True, True
    joiner = TileJoiner()
    joiner.add(tiles[0], [cut(part, tiles[0]), cut(object_, tiles[0])])
    joiner.add(tiles[1], [cut(object_, tiles[1])])
    assert len(joiner.joined()) == 2


def test_not_even_through_a_chain_of_tiles():
    """One mask of the first tile agrees with one of the second, another with one of the third, and the
    second's and the third's agree with each other."""
    tiles = [(0, 0, 64, 64), (48, 0, 112, 64), (0, 48, 64, 112)]
    first, second, third, fourth = np.zeros((4, 112, 112), bool)
    first[10:20, 48:64] = True
    second[10:20, 48:64], second[52:60, 48:64] = True, True
    third[50:60, 10:40], third[52:60, 48:64] = True, True
    fourth[50:60, 10:40] = True
    joiner = TileJoiner()
    joiner.add(tiles[0], [cut(first, tiles[0]), cut(fourth, tiles[0])])
    joiner.add(tiles[1], [cut(second, tiles[1])])
    joiner.add(tiles[2], [cut(third, tiles[2])])
    assert sorted(one.area for one in joiner.joined()) == [288, 428]


def test_scores_are_means_by_area():
    size_hw, tiles = (64, 112), tiles_of((64, 112), 64, 16)
    bar = np.zeros(size_hw, bool)
    bar[10:20, 24:112] = True
    joiner = TileJoiner()
    joiner.add(tiles[0], [cut(bar, tiles[0], 0.9)])  # 40 columns
    joiner.add(tiles[1], [cut(bar, tiles[1], 0.6)])  # 64 columns
    [one] = joiner.joined()
    assert one.predicted_iou == pytest.approx((40 * 0.9 + 64 * 0.6) / 104)
    assert one.area == 880
    assert one.point_xy == (49.0, 1.0)  # of the larger part
