"""Each recipe against the slow obvious computation."""

from __future__ import annotations

import numpy as np
import pytest

from masklet.errors import EngineError
from masklet.model import derive
from masklet.model.tokens import nested_blocks

RNG = np.random.default_rng(7)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def test_folded_convolutions_equal_one_after_the_other():
    first, first_bias, second, second_bias = normal(12, 8, 1, 1), normal(12), normal(5, 12, 1, 1), normal(5)
    x = normal(30, 8)
    expected = (x @ first[..., 0, 0].T + first_bias) @ second[..., 0, 0].T + second_bias
    got = x @ derive.folded_weight(first, second).T + derive.folded_bias(first_bias, second, second_bias)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)


def test_cell_matrix_is_the_stride_two_convolution():
    weight, x = normal(6, 3, 2, 2), normal(3, 2, 2)
    expected = np.einsum("oikl,ikl->o", weight, x)
    tokens = x.transpose(1, 2, 0).reshape(-1)  # four tokens of three channels
    np.testing.assert_allclose(derive.cell_matrix(weight) @ tokens, expected, atol=1e-5)


def test_uncell_matrix_is_the_transposed_convolution():
    weight, x = normal(6, 3, 2, 2), normal(6)
    expected = np.einsum("iokl,i->klo", weight, x).reshape(-1)
    np.testing.assert_allclose(derive.uncell_matrix(weight) @ x, expected, atol=1e-5)


def cubic(distance: float) -> float:
    distance = abs(distance)
    if distance <= 1:
        return 1.25 * distance**3 - 2.25 * distance**2 + 1
    return -0.75 * (distance**3 - 5 * distance**2 + 8 * distance - 4) if distance < 2 else 0.0


def test_hiera_position_against_a_loop():
    table, window = normal(1, 2, 3, 3), normal(1, 2, 4, 4)
    got = derive.hiera_position(table, window, grid=(8, 8), block=0).reshape(8, 8, 2)
    for y, x in [(0, 0), (3, 5), (7, 7)]:
        centre_y, centre_x = (y + 0.5) * 3 / 8 - 0.5, (x + 0.5) * 3 / 8 - 0.5
        expected = window[0, :, y % 4, x % 4].astype(np.float64)
        for i in range(int(np.floor(centre_y)) - 1, int(np.floor(centre_y)) + 3):
            for j in range(int(np.floor(centre_x)) - 1, int(np.floor(centre_x)) + 3):
                weight = cubic(centre_y - i) * cubic(centre_x - j)
                expected += weight * table[0, :, min(max(i, 0), 2), min(max(j, 0), 2)]
        np.testing.assert_allclose(got[y, x], expected, atol=1e-5)


def test_tables_follow_the_token_order():
    table, window = normal(1, 2, 3, 3), normal(1, 2, 4, 4)
    in_raster = derive.hiera_position(table, window, grid=(8, 8), block=0)
    nested = derive.hiera_position(table, window, grid=(8, 8), block=4)
    np.testing.assert_array_equal(nested, in_raster[nested_blocks(8, 8, 4).slots])


def test_dense_position_against_a_loop():
    gaussian = normal(2, 5)
    got = derive.dense_position(gaussian, grid=(4, 6), block=0).reshape(4, 6, 10)
    x, y = 2 * (2 + 0.5) / 6 - 1, 2 * (3 + 0.5) / 4 - 1
    angles = 2 * np.pi * (np.array([x, y]) @ gaussian.astype(np.float64))
    np.testing.assert_allclose(got[3, 2], np.concatenate([np.sin(angles), np.cos(angles)]), atol=1e-5)


def test_an_unknown_recipe_is_named():
    with pytest.raises(EngineError, match=r"'nonsense'.*masklet cache --clear"):
        derive.compute("nonsense", [], {})
