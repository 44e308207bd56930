"""How good a mask is, and where a person would click next.

In: boolean masks (H, W) in pixels. Out: numbers, and clicks (x, y, label). Region similarity J and boundary
accuracy F are those of DAVIS (Perazzi et al. 2016): F matches outlines within 0.8 % of the picture's
diagonal. Knows nothing about models.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

BOUNDARY_TOLERANCE = 0.008  # of the diagonal


def iou(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union, 1 for two empty masks."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def boundary_f(a: np.ndarray, b: np.ndarray) -> float:
    """The F-measure of two masks' outlines, 1 for two empty masks."""
    outlines = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    if not all(outline.any() for outline in outlines):
        return float(outlines[0].any() == outlines[1].any())
    radius = np.ceil(BOUNDARY_TOLERANCE * np.hypot(*a.shape))
    near = [ndimage.distance_transform_edt(~outline) <= radius for outline in outlines]
    precision = (outlines[0] & near[1]).sum() / outlines[0].sum()
    recall = (outlines[1] & near[0]).sum() / outlines[1].sum()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def deepest(mask: np.ndarray) -> tuple[int, int]:
    """(x, y): the pixel farthest from anything outside the mask or the picture."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(distance), mask.shape)
    return int(x), int(y)


def next_click(truth: np.ndarray, mask: np.ndarray) -> tuple[int, int, int]:
    """(x, y, label): the middle of the largest connected region that is wrong; on the object if it was
    missed."""
    wrong, count = ndimage.label(truth ^ mask)
    if count == 0:
        return (*deepest(truth), 1)
    largest = wrong == 1 + np.argmax(np.bincount(wrong.ravel())[1:])
    x, y = deepest(largest)
    return x, y, int(truth[y, x])


def bounding_box(mask: np.ndarray) -> list[int]:
    """[x0, y0, x1, y1]: first and last column and row of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])]


@dataclass
class Tally:
    """Numbers under names, and their means."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(float(value))

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(numbers)) for name, numbers in self.values.items()}


def calibration(predicted: np.ndarray, actual: np.ndarray, bins: int = 5) -> list[tuple[float, float, int]]:
    """(mean predicted, mean actual, count) per bin of equal width of predicted IoU in [0, 1]."""
    bin_of = np.minimum((np.asarray(predicted) * bins).astype(int), bins - 1)
    return [
        (float(predicted[bin_of == b].mean()), float(actual[bin_of == b].mean()), int((bin_of == b).sum()))
        for b in range(bins)
        if (bin_of == b).any()
    ]
