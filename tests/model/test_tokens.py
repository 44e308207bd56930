"""Token orders are permutations (plus padding) with the runs that their names promise."""

from __future__ import annotations

import numpy as np
import pytest

from masklet.families.sam2 import PRESETS
from masklet.model import tokens


@pytest.mark.parametrize("order", [tokens.raster(8, 16), tokens.cells(8, 16), tokens.nested_blocks(8, 16, 4)])
def test_every_place_comes_once(order):
    assert sorted(order.slots) == list(range(8 * 16))


def test_nested_blocks_of_four_by_hand():
    order = tokens.nested_blocks(4, 4, 4)
    assert order.slots.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert order.grouped
    assert order.pooled().slots.tolist() == [0, 1, 2, 3]


def test_padded_windows_by_hand():
    order = tokens.windows(3, 3, 2, in_cells=True)
    assert order.slots.tolist() == [0, 1, 3, 4, 2, -1, 5, -1, 6, 7, -1, -1, 8, -1, -1, -1]


def test_even_windows_are_grouped_and_pool_to_half_windows():
    order = tokens.windows(10, 10, 4, in_cells=True)
    assert order.grouped
    assert order.pooled() == tokens.TokenOrder((5, 5), order.pooled().slots)
    assert sorted(place for place in order.pooled().slots if place >= 0) == list(range(25))
    pooled = order.pooled().slots.reshape(-1, 4)
    expected = tokens.windows(5, 5, 2, in_cells=True).slots.reshape(-1, 4)
    assert [set(window) for window in pooled] == [set(window) for window in expected]


def test_gather_index_moves_tokens_and_marks_padding():
    source, target = tokens.nested_blocks(8, 8, 8), tokens.windows(8, 8, 3, in_cells=True)
    index = tokens.gather_index(source, target)
    values = np.append(source.slots, -1)  # the token of a place is the place; one padding row behind
    np.testing.assert_array_equal(values[index], target.slots)
    assert tokens.gather_index(source, tokens.nested_blocks(8, 8, 8)) is None


@pytest.mark.parametrize("name", ["sam2.1_hiera_tiny", "sam2.1_hiera_base_plus", "sam2.1_hiera_large"])
@pytest.mark.parametrize("size", [1024, 512, 96])
def test_first_two_stages_stay_in_window_order(name, size):
    trunk = PRESETS[name].trunk
    orders, block = tokens.stage_orders(trunk, size, nested=True)
    assert tokens.contiguous(orders[0], trunk.window_spec[0])
    assert tokens.contiguous(orders[1], trunk.window_spec[1])
    assert orders[0] == tokens.nested_blocks(size // 4, size // 4, block)
    assert all(order.grouped for order in orders[:3])


def test_large_needs_no_rearrangement_at_its_own_size():
    trunk = PRESETS["sam2.1_hiera_large"].trunk
    orders, _ = tokens.stage_orders(trunk, 1024, nested=True)
    assert all(
        tokens.contiguous(order, window) for order, window in zip(orders, trunk.window_spec, strict=True)
    )


def test_contiguous_says_no():
    assert not tokens.contiguous(tokens.raster(8, 8), 4)
    assert not tokens.contiguous(tokens.raster(8, 8), 3)


def test_windows_with_equally_many_tokens_come_together():
    order = tokens.windows(4, 5, 3, in_cells=False)  # 2 x 2 windows: of 3 x 3, 3 x 2, 1 x 3, 1 x 2 tokens
    parts = tokens.equal_windows(order, 9)
    assert [count for _, count in parts] == [9, 6, 3, 2]
    assert [part.slots.tolist() for part, _ in parts] == [
        [0, 1, 2, 5, 6, 7, 10, 11, 12],
        [3, 4, 8, 9, 13, 14],
        [15, 16, 17],
        [18, 19],
    ]
    square = tokens.equal_windows(tokens.windows(4, 4, 3, in_cells=False), 9)
    assert [(len(part.slots) // count, count) for part, count in square] == [(1, 9), (2, 3), (1, 1)]
