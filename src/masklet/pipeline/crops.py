"""Where automatic masks look: crops of the picture, and points in them.

In: sizes and counts. Out: crops in pixels, points as fractions of a crop. Knows nothing about models. The
scheme is that of SAM's mask generator (Kirillov et al. 2023, arXiv:2304.02643, appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.errors import InputError

COARSE_STEPS = (4, 2, 1)  # of an adaptive search: every fourth point of the grid, every second, all


@dataclass(frozen=True)
class Crop:
    """A part of the picture, in its pixels; layer 0 is the whole."""

    box_xyxy: tuple[int, int, int, int]
    layer: int

    @property
    def size_hw(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.box_xyxy
        return y1 - y0, x1 - x0


def crops_of(size_hw: tuple[int, int], layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole picture, then layer after layer of 2 x 2, 4 x 4, ... crops, column by column.

    In the first layer neighbours share `overlap_ratio` of the picture's shorter side, in the next half of
    that, and so on. Raises InputError for a layer with more crops than the picture has pixels for.
    """
    height, width = size_hw
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        side = 2**layer
        overlap = int(overlap_ratio * min(size_hw) * (2 / side))
        crop_w, crop_h = (math.ceil((overlap * (side - 1) + size) / side) for size in (width, height))
        starts_x, starts_y = ([(size - overlap) * i for i in range(side)] for size in (crop_w, crop_h))
        if starts_x[-1] >= width or starts_y[-1] >= height:
            raise InputError(
                f"Crop layer {layer} makes {side} x {side} parts of the picture, which is only {width} wide "
                f"and {height} high; give a smaller crop_n_layers."
            )
        crops += [
            Crop((x, y, min(x + crop_w, width), min(y + crop_h, height)), layer)
            for x in starts_x
            for y in starts_y
        ]
    return crops


def square_grid(side: int) -> np.ndarray:
    """The centres (side * side, 2) of equal cells as (x, y), fractions of the picture, row by row."""
    offset = 1 / (2 * side)
    centres = np.linspace(offset, 1 - offset, side)
    return np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2)


def layer_grids(side: int, layers: int, downscale: int) -> list[np.ndarray]:
    """A grid for the whole picture and for the crops of each layer, `downscale` times fewer points a side
    from layer to layer. Raises InputError for a grid without points."""
    sides = [side // downscale**layer for layer in range(layers + 1)]
    if 0 in sides:
        layer = sides.index(0)
        raise InputError(
            f"points_per_side {side} leaves no points for crop layer {layer}: {side} / {downscale}^{layer} "
            "is under 1. Give more points, a smaller crop_n_points_downscale_factor or fewer layers."
        )
    return [square_grid(side) for side in sides]


def checked_grids(grids: Any, layers: int) -> list[np.ndarray]:
    """Grids that a user gave, one for each layer, as (N, 2) float64. Raises InputError."""
    if not isinstance(grids, Sequence) or len(grids) <= layers:
        got = len(grids) if isinstance(grids, Sequence) else type(grids).__name__
        raise InputError(
            f"point_grids must be a list of {layers + 1} arrays, one for the picture and one for each crop "
            f"layer, got {got}."
        )
    return [_checked_grid(grid, index) for index, grid in enumerate(grids)]


def coarse_to_fine(side: int) -> list[np.ndarray]:
    """The indices of a square grid's points in parts: every fourth in both directions, the rest of every
    second, the rest. A grid too small for a part has fewer parts."""
    row, column = np.divmod(np.arange(side * side), side)
    parts, done = [], np.zeros(side * side, np.bool_)
    for step in COARSE_STEPS:
        chosen = ((row % step == step // 2) & (column % step == step // 2)) & ~done
        done |= chosen
        parts.append(np.flatnonzero(chosen))
    return [part for part in parts if part.size]


def _checked_grid(grid: Any, index: int) -> np.ndarray:
    try:
        points = np.asarray(grid, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"point_grids[{index}] is not an array of numbers: {error}") from error
    if points.ndim != 2 or points.shape[1] != 2 or len(points) == 0:
        raise InputError(
            f"point_grids[{index}] has shape {points.shape}; give at least one point, (N, 2) as x, y."
        )
    if not ((points >= 0) & (points <= 1)).all():  # NaN too
        raise InputError(
            f"point_grids[{index}] holds values outside 0 to 1; points are fractions of the picture's width "
            "and height."
        )
    return points
