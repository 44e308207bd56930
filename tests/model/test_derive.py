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


def test_a_bias_as_one_more_column():
    weight, bias, x = normal(6, 4), normal(6), normal(9, 4)
    ones = np.concatenate([x, np.ones((9, 1), np.float32)], axis=1)
    np.testing.assert_allclose(ones @ derive.with_bias(weight, bias).T, x @ weight.T + bias, atol=1e-5)


def test_scaled_rows_scale_what_comes_out():
    weight, bias, scale, x = normal(6, 4), normal(6), normal(6), normal(9, 4)
    got = x @ derive.scaled_rows(weight, scale).T + derive.scaled_rows(bias, scale)
    np.testing.assert_allclose(got, scale * (x @ weight.T + bias), atol=1e-5)


def test_folded_values_and_projection_behind_attention():
    """softmax(A) (X V' + b) O' + c = softmax(A) X (O V)' + (O b + c): rows of a softmax sum to one."""
    values, values_bias, out, out_bias, x = normal(8, 4), normal(8), normal(5, 8), normal(5), normal(20, 4)
    attention = np.exp(normal(7, 20).astype(np.float64))
    attention /= attention.sum(axis=1, keepdims=True)
    expected = attention @ (x @ values.T + values_bias) @ out.T + out_bias
    got = attention @ x @ derive.folded_weight(values, out).T
    got += derive.carried_bias(out, out_bias, values_bias, start=0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_sine_position_against_a_loop():
    got = derive.sine_position(grid=(3, 5), block=0, channels=8, scale=0.5).reshape(3, 5, 8)
    for y, x in [(0, 0), (2, 1), (1, 4)]:
        for half, place, size in ((0, y, 3), (4, x, 5)):  # rows first, then columns
            for index in range(4):
                angle = (place + 1) / (size + 1e-6) * 2 * np.pi / 10000 ** (2 * (index // 2) / 4)
                expected = 0.5 * (np.sin(angle) if index % 2 == 0 else np.cos(angle))
                assert abs(got[y, x, half + index] - expected) < 1e-6


def rotated(vector: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """Pairs of neighbouring channels as complex numbers, turned."""
    turned = (vector[0::2] + 1j * vector[1::2]) * (cos + 1j * sin)
    return np.stack([turned.real, turned.imag], axis=1).reshape(-1)


def test_rotary_angles_against_a_loop():
    settings = {"grid": (3, 5), "block": 0, "channels": 16}
    cos, sin = derive.rotary_cos(**settings), derive.rotary_sin(**settings)
    assert cos.shape == sin.shape == (15, 8)
    for y, x in [(0, 0), (2, 1), (1, 4)]:
        for pair in range(8):  # columns first, then rows
            angle = (x, y)[pair // 4] / 10000 ** (4 * (pair % 4) / 16)
            assert abs(cos[y * 5 + x, pair] - np.cos(angle)) < 1e-6
            assert abs(sin[y * 5 + x, pair] - np.sin(angle)) < 1e-6


def test_rotary_products_depend_on_the_distance_alone():
    settings = {"grid": (6, 6), "block": 0, "channels": 16}
    cos, sin = derive.rotary_cos(**settings), derive.rotary_sin(**settings)
    q, k = normal(16), normal(16)

    def product(first: tuple[int, int], second: tuple[int, int]) -> float:
        (a, b), (c, d) = first, second
        return rotated(q, cos[6 * a + b], sin[6 * a + b]) @ rotated(k, cos[6 * c + d], sin[6 * c + d])

    assert abs(product((0, 1), (2, 0)) - product((3, 5), (5, 4))) < 1e-5
    assert abs(product((0, 1), (2, 0)) - product((2, 0), (0, 1))) > 1e-3


@pytest.mark.parametrize("recipe", ["sine_position", "rotary_cos", "rotary_sin"])
def test_tables_of_the_grid_follow_the_token_order(recipe):
    settings = {"grid": [8, 8], "channels": 16} | ({"scale": 1.0} if recipe == "sine_position" else {})
    in_raster = derive.compute(recipe, [], {**settings, "block": 0})
    nested = derive.compute(recipe, [], {**settings, "block": 4})
    np.testing.assert_array_equal(nested, in_raster[nested_blocks(8, 8, 4).slots])
    assert nested.dtype == np.float32


def test_an_unknown_recipe_is_named():
    with pytest.raises(EngineError, match=r"'nonsense'.*masklet cache --clear"):
        derive.compute("nonsense", [], {})
