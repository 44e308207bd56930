"""Masks that were found without being asked for one by one: measured at the picture's size, kept small.

In: low-resolution logits, limits. Out: `FoundMask`: its numbers, and its pixels packed. The tests are those
of SAM's mask generator (Kirillov et al. 2023, arXiv:2304.02643, appendix B). Knows nothing about networks.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from masklet.pipeline.postprocess import Resizing, component_areas, component_at

Box = tuple[int, int, int, int]

_ROUNDING = 1e-5  # of interpolated logits, relative to their size
_EDGE_PIXELS = 20  # a box this near to the edge of a crop may go on behind it


@dataclass(frozen=True)
class Limits:
    """A mask is what is over `threshold`. It is kept when it changes little if that moves by `offset` up or
    down: the IoU of the two, its stability, must be at least `min_stability`."""

    threshold: float
    offset: float
    min_stability: float


@dataclass(frozen=True, eq=False)
class FoundMask:
    """One mask. `box_xyxy` are the pixel edges around it, in the picture's frame as all else; `packed` its
    pixels within them. `crop_xyxy` is where it was seen, `point_xy` the point that it was asked for."""

    box_xyxy: Box
    packed: bytes
    area: int
    predicted_iou: float
    stability: float
    point_xy: tuple[float, float]
    crop_xyxy: Box

    @classmethod
    def of(cls, pixels: np.ndarray, corner_xy: tuple[int, int], **numbers: Any) -> FoundMask:
        """A mask from its pixels (h, w) bool, not all False, in a window that begins at `corner_xy`."""
        columns, rows = np.flatnonzero(pixels.any(axis=0)), np.flatnonzero(pixels.any(axis=1))
        tight = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        x, y = corner_xy
        box = x + int(columns[0]), y + int(rows[0]), x + int(columns[-1]) + 1, y + int(rows[-1]) + 1
        packed = zlib.compress(np.packbits(tight).tobytes(), 1)
        return cls(box, packed, int(np.count_nonzero(tight)), **numbers)

    def pixels(self) -> np.ndarray:
        """(h, w) bool: what is inside of the box."""
        x0, y0, x1, y1 = self.box_xyxy
        bits = np.frombuffer(zlib.decompress(self.packed), np.uint8)
        count = (y1 - y0) * (x1 - x0)
        return np.unpackbits(bits, count=count).reshape(y1 - y0, x1 - x0).view(np.bool_)

    def moved(self, by_xy: tuple[int, int]) -> FoundMask:
        """A mask of a part of the picture, seen from the picture; the part's corner is at `by_xy`."""
        (x, y), point = by_xy, self.point_xy
        boxes = ((x0 + x, y0 + y, x1 + x, y1 + y) for x0, y0, x1, y1 in (self.box_xyxy, self.crop_xyxy))
        box, crop = boxes
        return replace(self, box_xyxy=box, crop_xyxy=crop, point_xy=(point[0] + x, point[1] + y))

    def outermost_xyxy(self) -> Box:
        """The outermost pixels, which the reference calls the box: one less to the right and below."""
        x0, y0, x1, y1 = self.box_xyxy
        return x0, y0, x1 - 1, y1 - 1


@dataclass(frozen=True, eq=False)
class Measured:
    """A mask that is stable: its pixels (h, w) in a window whose corner is `corner_xy`."""

    pixels: np.ndarray
    corner_xy: tuple[int, int]
    stability: float


def measure(plane: np.ndarray, resizing: Resizing, limits: Limits) -> Measured | None:
    """The mask of low-resolution logits (h, w) at the picture's size; None if it is empty or not stable.

    The counts are those of the enlarged logits. But an enlarged value lies between the four that it is made
    of, which tells beforehand where it cannot matter, and mostly also that a mask will fail.
    """
    low, high = limits.threshold - limits.offset, limits.threshold + limits.offset
    window = _window(plane, resizing, low, high, limits)
    if window is None:
        return None
    x0, y0, x1, y1 = window
    pixels = np.empty((y1 - y0, x1 - x0), np.bool_)
    above = below = 0
    for rows, block in resizing.blocks(plane, window):
        above += np.count_nonzero(block > high)
        below += np.count_nonzero(block > low)
        np.greater(block, limits.threshold, out=pixels[rows])
    if below == 0 or not pixels.any():
        return None
    stability = np.float32(above) / np.float32(below)
    if limits.min_stability > 0 and stability < np.float32(limits.min_stability):
        return None
    return Measured(pixels, (x0, y0), float(stability))


def _window(plane: np.ndarray, resizing: Resizing, low: float, high: float, limits: Limits) -> Box | None:
    """Where enlarged logits can be over `low`; None if the mask is empty or surely not stable."""
    greatest, least = _extremes(plane)
    slack = _ROUNDING * max(1.0, abs(low), abs(high))
    maybe_below = greatest > low - slack
    if not (greatest > limits.threshold - slack).any():
        return None
    if limits.min_stability > 0:
        # How many outputs each place of the plane is the top left neighbour of.
        rows = np.bincount(resizing.rows, minlength=plane.shape[0]).astype(np.float64)
        columns = np.bincount(resizing.columns, minlength=plane.shape[1]).astype(np.float64)
        most_above = rows @ (greatest > high - slack) @ columns
        least_below = rows @ (least > low + slack) @ columns
        if most_above < limits.min_stability * least_below * (1 - _ROUNDING):
            return None
    rows, columns = np.flatnonzero(maybe_below.any(axis=1)), np.flatnonzero(maybe_below.any(axis=0))
    y0, x0 = np.searchsorted(resizing.rows, rows[0]), np.searchsorted(resizing.columns, columns[0])
    y1 = np.searchsorted(resizing.rows, rows[-1], side="right")
    x1 = np.searchsorted(resizing.columns, columns[-1], side="right")
    return int(x0), int(y0), int(x1), int(y1)


def _extremes(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The greatest and the least of each place and its neighbours to the right, below and between."""
    extremes = []
    for of_two in (np.maximum, np.minimum):
        wide = plane.copy()
        of_two(plane[:, :-1], plane[:, 1:], out=wide[:, :-1])
        both = wide.copy()
        of_two(wide[:-1], wide[1:], out=both[:-1])
        extremes.append(both)
    return extremes[0], extremes[1]


def is_cut_off(found: FoundMask, size_hw: tuple[int, ...]) -> bool:
    """Whether the mask comes near to an edge of its crop that is not also one of the picture (H, W)."""
    edges = zip(found.outermost_xyxy(), found.crop_xyxy, (0, 0, size_hw[1], size_hw[0]), strict=True)
    return any(
        abs(edge - crop) <= _EDGE_PIXELS and abs(edge - picture) > _EDGE_PIXELS
        for edge, crop, picture in edges
    )


def without_small_regions(
    found: FoundMask, min_area: float, size_hw: tuple[int, int]
) -> tuple[FoundMask, bool]:
    """The mask with holes, then islands under `min_area` pixels removed, and whether there were such.

    Regions are 8-connected, in a picture of (H, W) pixels. If all islands are small, the largest stays, of
    equal ones the first.
    """
    # A background region that goes on behind this margin is not small.
    margin = int(np.ceil(min_area))
    x0, y0, x1, y1 = found.box_xyxy
    left, top = min(margin, x0), min(margin, y0)
    right, bottom = min(margin, size_hw[1] - x1), min(margin, size_hw[0] - y1)
    pixels = np.pad(found.pixels(), ((top, bottom), (left, right)))

    areas = component_areas(~pixels)
    holes = (areas > 0) & (areas < min_area)
    pixels |= holes
    areas = component_areas(pixels)
    islands = (areas > 0) & (areas < min_area)
    if not holes.any() and not islands.any():
        return found, False
    if areas.max() < min_area:
        pixels = component_at(pixels, int(areas.argmax()))
    else:
        pixels &= ~islands
    names = ("predicted_iou", "stability", "point_xy", "crop_xyxy")
    numbers = {name: getattr(found, name) for name in names}
    return FoundMask.of(pixels, (x0 - left, y0 - top), **numbers), True
