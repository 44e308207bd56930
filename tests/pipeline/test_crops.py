from __future__ import annotations

import numpy as np
import pytest

from masklet.errors import InputError
from masklet.pipeline.crops import checked_grids, coarse_to_fine, crops_of, layer_grids, square_grid


def test_the_whole_picture_is_the_first_crop():
    assert [(crop.box_xyxy, crop.layer) for crop in crops_of((90, 120), 0, 0.3)] == [((0, 0, 120, 90), 0)]


def test_layers_by_hand():
    """Overlaps int(0.3 * 100 * 2 / 2) = 30, then 15. Widths ceil((30 + 150) / 2) = 90, ceil((45 + 150) / 4) =
    49; heights ceil(130 / 2) = 65, ceil(145 / 4) = 37."""
    crops = crops_of((100, 150), 2, 0.3)
    assert [crop.layer for crop in crops] == [0, *[1] * 4, *[2] * 16]
    assert [crop.box_xyxy for crop in crops[1:5]] == [
        (0, 0, 90, 65), (0, 35, 90, 100), (60, 0, 150, 65), (60, 35, 150, 100)
    ]  # fmt: skip
    assert crops[5].box_xyxy == (0, 0, 49, 37)
    assert crops[6].box_xyxy == (0, 22, 49, 59)
    assert crops[20].box_xyxy == (102, 66, 150, 100)
    assert crops[20].size_hw == (34, 48)


@pytest.mark.parametrize("size_hw", [(64, 64), (33, 500), (1, 1)])
@pytest.mark.parametrize("ratio", [0.0, 512 / 1500, 1.0])
def test_the_crops_of_a_layer_cover_the_picture(size_hw, ratio):
    if min(size_hw) == 1:
        return
    for layer in range(3):
        covered = np.zeros(size_hw, bool)
        for crop in crops_of(size_hw, 2, ratio):
            x0, y0, x1, y1 = crop.box_xyxy
            assert x0 < x1
            assert y0 < y1
            if crop.layer == layer:
                covered[y0:y1, x0:x1] = True
        assert covered.all()


@pytest.mark.parametrize(("size_hw", "layers"), [((100, 10), 3), ((1, 40), 1), ((600, 800), 12)])
def test_a_layer_with_more_crops_than_pixels_is_refused(size_hw, layers):
    with pytest.raises(InputError, match=r"Crop layer \d+ makes .* parts .* smaller crop_n_layers"):
        crops_of(size_hw, layers, 0.3)


def test_a_grid_has_the_centres_of_equal_cells_row_by_row():
    np.testing.assert_allclose(square_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert square_grid(1).tolist() == [[0.5, 0.5]]


def test_grids_thin_out_from_layer_to_layer():
    assert [len(grid) for grid in layer_grids(10, 2, 2)] == [100, 25, 4]
    assert [len(grid) for grid in layer_grids(3, 1, 1)] == [9, 9]


def test_a_grid_without_points_is_refused():
    with pytest.raises(InputError, match=r"points_per_side 3 leaves no points for crop layer 2"):
        layer_grids(3, 2, 2)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 32])
def test_coarse_to_fine_has_every_point_once(side):
    parts = coarse_to_fine(side)
    assert sorted(np.concatenate(parts).tolist()) == list(range(side * side))
    if side == 32:
        assert [len(part) for part in parts] == [64, 256, 704]
        row, column = np.divmod(parts[0], side)
        assert set(row) == set(column) == set(range(2, 32, 4))


def test_grids_of_a_user():
    [grid] = checked_grids([[[0, 1], [0.5, 0.25]]], 0)
    assert grid.dtype == np.float64
    assert grid.tolist() == [[0, 1], [0.5, 0.25]]


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([], "list of 2 arrays"),
        ([[[0.5, 0.5]]], "list of 2 arrays, .* got 1"),
        (3, "got int"),
        ([[[0.5, 0.5]], []], r"point_grids\[1\] has shape \(0,\)"),
        ([[[0.5, 0.5]], [[0.5]]], r"point_grids\[1\] has shape \(1, 1\)"),
        ([[["a", "b"]], [[0.5, 0.5]]], r"point_grids\[0\] is not an array of numbers"),
        ([[[0.5, np.nan]], [[0.5, 0.5]]], r"point_grids\[0\] holds values outside 0 to 1"),
        ([[[0.5, 1.5]], [[0.5, 0.5]]], r"point_grids\[0\] holds values outside 0 to 1"),
    ],
)
def test_grids_that_cannot_be_meant(grids, message):
    with pytest.raises(InputError, match=message):
        checked_grids(grids, 1)
