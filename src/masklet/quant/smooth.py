"""Outlier smoothing: channels that are far larger than the others lend their size to the weights behind them
(SmoothQuant, Xiao et al. 2022, arXiv:2211.10438).

The numbers that go into a layer of 8 bits share one scale, so a few large channels leave few steps to all
others. Each channel of a norm is divided by a scale, its weight and bias, and the columns of the matrices
behind it are multiplied, which leaves the network what it was but for rounding.

In: the largest value of each channel behind each norm, and tensors. Out: a `Smoothing`, the factors of those
tensors that change. Knows nothing about graphs, pictures or files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

EXPONENT = 0.5  # how much of its size a channel gives away: 0 none, 1 all (docs/precision.md has the choice)
CALIBRATED_KEY = "masklet.calibrated"  # metadata: what a model was calibrated on


@dataclass(frozen=True)
class NormedLinears:
    """A norm whose output goes to linear layers only. `norm` is the prefix of its keys `weight` and `bias`
    (C), `matrices` are the keys of the layers' matrices (out, C)."""

    norm: str
    matrices: tuple[str, ...]


@dataclass(frozen=True)
class Smoothing:
    """How a model is smoothed: `factors` of a tensor's last axis by its key, what `exponent` they were made
    with, and of how many `pictures`."""

    factors: Mapping[str, np.ndarray]
    exponent: float
    pictures: int

    @property
    def norms(self) -> tuple[str, ...]:
        """The prefixes of the norms that change."""
        return tuple(key.removesuffix(".bias") for key in self.factors if key.endswith(".bias"))

    def of(self, key: str, values: np.ndarray) -> np.ndarray:
        """A tensor (..., C) as the smoothed network has it."""
        return values * self.factors[key] if key in self.factors else values

    def to_json(self) -> str:
        """What stands in the metadata of a file."""
        return json.dumps({"exponent": self.exponent, "pictures": self.pictures}, sort_keys=True)


def calibrated_on(metadata: Mapping[str, str]) -> int | None:
    """How many pictures a file's model was calibrated on; None if it was not."""
    try:
        pictures = json.loads(metadata[CALIBRATED_KEY])["pictures"]
    except (KeyError, TypeError, ValueError):
        return None
    return pictures if isinstance(pictures, int) else None


def smoothing(
    largest: Mapping[NormedLinears, np.ndarray],
    tensor: Callable[[str], np.ndarray],
    pictures: int,
    exponent: float = EXPONENT,
) -> Smoothing:
    """Factors from the largest absolute value of each channel (C), behind each norm, in so many `pictures`;
    `tensor` gives a tensor by its key."""
    factors: dict[str, np.ndarray] = {}
    for group, values in largest.items():
        weights = np.max([np.abs(tensor(key)).max(axis=0) for key in group.matrices], axis=0)
        scale = _scale(values, weights, exponent)
        factors |= {f"{group.norm}.{part}": 1 / scale for part in ("weight", "bias")}
        factors |= dict.fromkeys(group.matrices, scale)
    return Smoothing(factors, exponent, pictures)


def _scale(values: np.ndarray, weights: np.ndarray, exponent: float) -> np.ndarray:
    """The scale of each channel (C), from the largest of its values and of the weights that meet them.

    Their geometric mean is about one, which int8 does not see and which keeps weights in f16's range. A
    channel without values or weights keeps its size.
    """
    alive = (values > 0) & (weights > 0)
    if not alive.any():
        return np.ones(values.shape, np.float32)
    powers = np.zeros(values.shape)
    powers[alive] = exponent * np.log2(values[alive]) - (1 - exponent) * np.log2(weights[alive])
    powers[alive] -= powers[alive].mean()
    return np.exp2(powers).astype(np.float32)
