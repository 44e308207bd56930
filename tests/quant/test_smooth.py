"""Factors of smoothing: what they even out, and what they leave alone."""

from __future__ import annotations

import json

import numpy as np
import pytest

from masklet.quant import smooth
from masklet.quant.smooth import NormedLinears, Smoothing

GROUP = NormedLinears("norm", ("a", "b"))


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal((6, 8)).astype(np.float32), "b": rng.standard_normal((2, 8))}


def test_a_norm_loses_what_its_matrices_gain(tensors: dict[str, np.ndarray]) -> None:
    values = np.array([1, 1, 1, 40, 1, 1, 1, 2], np.float32)
    made = smooth.smoothing({GROUP: values}, tensors.__getitem__, pictures=3)
    assert made.factors.keys() == {"norm.weight", "norm.bias", "a", "b"}
    assert made.norms == ("norm",)
    for part in ("weight", "bias"):
        np.testing.assert_allclose(made.factors[f"norm.{part}"] * made.factors["a"], 1, rtol=1e-6)
    np.testing.assert_array_equal(made.factors["a"], made.factors["b"])
    np.testing.assert_allclose(np.log(made.factors["a"]).mean(), 0, atol=1e-6)
    np.testing.assert_array_equal(made.of("a", tensors["a"]), tensors["a"] * made.factors["a"])
    assert made.of("other", tensors["a"]) is tensors["a"]


@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_the_exponent_says_who_is_made_even(tensors: dict[str, np.ndarray], exponent: float) -> None:
    """1: all values are equally large. 0.5: a channel's values and its weights are, up to one factor."""
    values = np.array([1, 3, 1, 40, 1, 0.1, 1, 2], np.float32)
    made = smooth.smoothing({GROUP: values}, tensors.__getitem__, 1, exponent)
    left = values * made.factors["norm.weight"]
    weights = np.abs(np.concatenate([made.of(key, tensors[key]) for key in ("a", "b")])).max(axis=0)
    ratio = left if exponent == 1 else left / weights
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_channels_without_values_or_weights_keep_their_size(tensors: dict[str, np.ndarray]) -> None:
    for key in tensors:
        tensors[key][:, 2] = 0
    values = np.array([1, 3, 5, 0, 1, 1, 1, 1], np.float32)
    factors = smooth.smoothing({GROUP: values}, tensors.__getitem__, 1).factors["a"]
    assert factors[2] == factors[3] == 1
    assert np.isfinite(factors).all()
    nothing = smooth.smoothing({GROUP: 0 * values}, tensors.__getitem__, 1).factors["a"]
    np.testing.assert_array_equal(nothing, np.ones(8))


def test_metadata() -> None:
    text = Smoothing({}, 0.5, 7).to_json()
    assert json.loads(text) == {"exponent": 0.5, "pictures": 7}
    assert smooth.calibrated_on({smooth.CALIBRATED_KEY: text}) == 7
    for other in ("", "[]", "7", "{}", '{"pictures": "many"}'):
        assert smooth.calibrated_on({smooth.CALIBRATED_KEY: other}) is None
    assert smooth.calibrated_on({}) is None
