"""Decoded masks made fit for use: specks and holes cleaned, enlarged to the picture, thresholded.

In: mask logits (..., h, w) as the decoder gives them, NumPy. Out: logits or masks, same leading dimensions.
Knows nothing about networks, prompts or files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

FILL_MARGIN = 10.0  # logits beyond the threshold that cleaned pixels get, as in the reference
HOLE_LOGIT = 0.1  # of filled holes in tracked masks, as in the reference
FILL_HOLE_AREA = 8  # of the holes that tracking fills by default, in low-resolution pixels, as published

_ROUNDING = 1e-6  # of the largest value: 17 roundings, where interpolating makes five
# How much longer an output takes that is computed alone instead of with all others, and a cell of such.
_OUTLINE, _CELL = 12, 150

# Elements of one block of rows while resizing: two blocks of float32 stay in a core's cache.
_BLOCK_ELEMENTS = 1 << 15
_THREADED_PIXELS = 1 << 18  # of a plane: starting threads takes as long as resizing fewer


# --------------------------------------------------------------------------------------------------- resizing


def resize_logits(logits: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Logits (..., h, w) at another size, (..., H, W) float32.

    Bilinear without antialiasing; pixels are areas, so the corners' centres move and borders repeat. That is
    torch's `interpolate(mode="bilinear", align_corners=False)`, whose order of operations and float32
    weights these are.
    """
    out = np.empty((*logits.shape[:-2], *size_hw), np.float32)
    planes = out.reshape(-1, *size_hw)
    _resize(_planes(logits), size_hw, lambda index, rows, block: np.copyto(planes[index, rows], block))
    return out


def resize_and_threshold(logits: np.ndarray, size_hw: tuple[int, int], threshold: float = 0.0) -> np.ndarray:
    """`resize_logits(logits, size_hw) > threshold`, (..., H, W) bool.

    The enlarged logits never exist as a whole: a quarter of the memory, and two to three times as fast; where
    a mask is smooth, only those at its outline exist at all.
    """
    out = np.empty((*logits.shape[:-2], *size_hw), np.bool_)
    masks = out.reshape(-1, *size_hw)
    outlines = _Outlines(logits.shape[-2:], size_hw)
    rough = [
        (plane, mask)
        for plane, mask in zip(_planes(logits), masks, strict=True)
        if not outlines.draw(plane, threshold, mask)
    ]

    def use(index: int, rows: slice, block: np.ndarray) -> None:
        np.greater(block, threshold, out=rough[index][1][rows])

    _resize([plane for plane, _ in rough], size_hw, use)
    return out


def _planes(logits: np.ndarray) -> np.ndarray:
    """(..., h, w) as (N, h, w) float32."""
    return np.asarray(logits, np.float32).reshape(-1, *logits.shape[-2:])


def _resize(
    planes: np.ndarray | list[np.ndarray],
    size_hw: tuple[int, int],
    use: Callable[[int, slice, np.ndarray], Any],
) -> None:
    """Resize each plane (h, w) in blocks of rows: `use` gets the plane's index, the rows and their values,
    which the next block overwrites. Several large planes are resized at a time, each in a thread of its own
    (NumPy lets them run)."""
    if len(planes) == 0:
        return
    resizing = Resizing(planes[0].shape, size_hw)

    def plane_blocks(index: int) -> None:
        for rows, block in resizing.blocks(planes[index], (0, 0, size_hw[1], size_hw[0])):
            use(index, rows, block)

    workers = min(len(planes), os.cpu_count() or 1)
    if workers < 2 or size_hw[0] * size_hw[1] < _THREADED_PIXELS:
        for index in range(len(planes)):
            plane_blocks(index)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(plane_blocks, range(len(planes))))


class Resizing:
    """Planes of one size (h, w) at another (H, W), in the way of `resize_logits`, as a whole or in part.

    Each output is a convex combination of the plane's values at `rows`[y] and `columns`[x] and at their next
    neighbours, 2 x 2 in all.
    """

    def __init__(self, size_in_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
        self.size_hw = size_hw
        self._vertical = _taps(size_in_hw[0], size_hw[0])
        self._horizontal = _taps(size_in_hw[1], size_hw[1])
        self.rows, self.columns = self._vertical[0], self._horizontal[0]

    def blocks(
        self, plane: np.ndarray, window_xyxy: tuple[int, int, int, int]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Some rows of the window of the output at a time: which ones, counted from the window's first, and
        their values, float32, which the next block overwrites."""
        x0, y0, x1, y1 = window_xyxy
        if x0 == x1 or y0 == y1:
            return
        top, bottom, top_weight, bottom_weight = (taps[y0:y1] for taps in self._vertical)
        left, right, left_weight, right_weight = (taps[x0:x1] for taps in self._horizontal)
        plane = plane[top[0] : bottom[-1] + 1]  # only what the window reads
        top, bottom = top - top[0], bottom - top[0]
        wide = np.take(plane, left, axis=1)
        wide *= left_weight
        wide += np.take(plane, right, axis=1) * right_weight

        count, width = y1 - y0, x1 - x0
        step = min(count, max(1, _BLOCK_ELEMENTS // width))
        upper, lower = np.empty((2, step, width), np.float32)
        for start in range(0, count, step):
            rows = slice(start, min(start + step, count))
            size = rows.stop - start
            # "clip" only spares a copy of the output: the indices are in range.
            np.take(wide, top[rows], axis=0, out=upper[:size], mode="clip")
            np.take(wide, bottom[rows], axis=0, out=lower[:size], mode="clip")
            upper[:size] *= top_weight[rows, None]
            lower[:size] *= bottom_weight[rows, None]
            upper[:size] += lower[:size]
            yield rows, upper[:size]


class _Outlines:
    """Planes of one size (h, w) as masks of another (H, W): arithmetic only along the outlines.

    A cell (i, j) of a plane is its value there and the next neighbours, 2 x 2. What is computed between four
    values on one side of the threshold, and not all but on it, is on that side as well.
    """

    def __init__(self, size_in_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
        (self._rows, _, *self._vertical), (self._columns, _, *weights) = (
            _taps(size_in, size) for size_in, size in zip(size_in_hw, size_hw, strict=True)
        )
        self._first_row, self._end_row = _outputs(self._rows, size_in_hw[0])
        first, end = _outputs(self._columns, size_in_hw[1])
        self._empty_rows, self._empty_columns = self._first_row == self._end_row, first == end
        # The outputs of each column of cells (w, K); the last one again where they are fewer.
        span = np.arange(np.max(end - first, initial=0))
        self._x = np.minimum(first[:, None] + span, np.maximum(end - 1, 0)[:, None])
        self._left, self._right = (weight[self._x] for weight in weights)

    def draw(self, plane: np.ndarray, threshold: float, mask: np.ndarray) -> bool:
        """Fill `mask` (H, W) with what `Resizing` makes of a plane (h, w) > threshold; False if so many cells
        are on both sides that computing all is faster."""
        if mask.size < 2 * plane.size:
            return False
        largest = max(float(plane.max()), -float(plane.min())) + abs(float(threshold))
        margin = _ROUNDING * largest + np.finfo(np.float32).tiny  # infinite or NaN: then no cell is sure
        above, below = _whole(plane > threshold + margin), _whole(plane <= threshold - margin)
        unsure = above == below
        unsure[self._empty_rows] = unsure[:, self._empty_columns] = False
        if np.count_nonzero(unsure) > min(plane.size // _OUTLINE, mask.size // _CELL):
            return False
        i, j = np.nonzero(unsure)
        np.take(np.take(above, self._columns, axis=1), self._rows, axis=0, out=mask, mode="clip")
        self._draw_cells(plane, threshold, i, j, mask)
        return True

    def _draw_cells(
        self, plane: np.ndarray, threshold: float, i: np.ndarray, j: np.ndarray, mask: np.ndarray
    ) -> None:
        """The outputs in the cells (i, j), a row of each at a time, computed as in `Resizing.blocks`."""
        below, beside = (np.minimum(at + 1, size - 1) for at, size in zip((i, j), plane.shape, strict=True))
        left, right = self._left[j], self._right[j]
        upper = plane[i, j][:, None] * left
        upper += plane[i, beside][:, None] * right
        lower = plane[below, j][:, None] * left
        lower += plane[below, beside][:, None] * right
        pixels, width = mask.reshape(-1), mask.shape[1]
        top, bottom = self._vertical
        y, end = self._first_row[i], self._end_row[i]
        at = y[:, None] * width + self._x[j]
        while len(y):
            values = upper * top[y][:, None]
            values += lower * bottom[y][:, None]
            pixels[at] = values > threshold
            y, at = y + 1, at + width
            more = np.flatnonzero(y < end)
            if len(more) < len(y):
                upper, lower, at, y, end = (array[more] for array in (upper, lower, at, y, end))


def _whole(binary: np.ndarray) -> np.ndarray:
    """Where a cell's four values are True (h, w); the last are their own neighbours."""
    whole = binary.copy()
    whole[:-1] &= binary[1:]
    whole[:, :-1] &= whole[:, 1:]
    return whole


def _outputs(first: np.ndarray, size_in: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each source index, the first and the end of the outputs that have it as their first tap."""
    sources = np.arange(size_in)
    return np.searchsorted(first, sources, side="left"), np.searchsorted(first, sources, side="right")


def _taps(size_in: int, size_out: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis: the two source indices of each output and their weights.

    Bit for bit torch's: it computes in float32, and compilers fuse its multiplication and addition, which
    round once.
    """
    scale = np.float64(np.float32(size_in) / np.float32(size_out))
    position = (scale * (np.arange(size_out) + 0.5) - 0.5).astype(np.float32)
    position = np.maximum(position, np.float32(0))
    first = np.minimum(position.astype(np.intp), size_in - 1)
    second = np.minimum(first + 1, size_in - 1)
    second_weight = np.clip(position - first.astype(np.float32), np.float32(0), np.float32(1))
    return first, second, np.float32(1) - second_weight, second_weight


# --------------------------------------------------------------------------------------------------- cleaning


def clean_low_res(
    logits: np.ndarray, *, max_hole_area: float, max_sprinkle_area: float, mask_threshold: float = 0.0
) -> np.ndarray:
    """Logits (..., h, w) with small holes filled and small specks removed, float32; the input is left alone.

    A hole is an 8-connected component of background (<= `mask_threshold`) of at most `max_hole_area` pixels,
    at the border too; it gets `mask_threshold` + 10. A sprinkle is such a component of foreground of at most
    `max_sprinkle_area` pixels; it gets `mask_threshold` - 10. Both are found in the mask as it came, so a
    speck that filling would have joined to its surroundings still goes. Areas are in pixels of `logits`; 0
    turns a step off. The method of `SAM2Transforms.postprocess_masks`, which works on CUDA devices only.
    """
    logits = np.asarray(logits, np.float32)
    cleaned = logits
    if max_hole_area > 0:
        holes = _small_components(logits <= mask_threshold, max_hole_area)
        cleaned = np.where(holes, np.float32(mask_threshold + FILL_MARGIN), cleaned)
    if max_sprinkle_area > 0:
        sprinkles = _small_components(logits > mask_threshold, max_sprinkle_area)
        cleaned = np.where(sprinkles, np.float32(mask_threshold - FILL_MARGIN), cleaned)
    return cleaned


def fill_holes(logits: np.ndarray, max_area: float) -> np.ndarray:
    """Logits (..., h, w) with holes of at most `max_area` pixels raised to just above zero (0: left as they
    are).

    Components of what is not positive, 8-connected, at the border too: `fill_holes_in_mask_scores` of SAM 2,
    which works on CUDA devices only.
    """
    if max_area <= 0:
        return logits
    return np.where(_small_components(logits <= 0, max_area), np.float32(HOLE_LOGIT), logits)


def _small_components(binary: np.ndarray, max_area: float) -> np.ndarray:
    areas = component_areas(binary)
    return (areas > 0) & (areas <= max_area)


def component_areas(binary: np.ndarray) -> np.ndarray:
    """The area of each pixel's 8-connected component in its plane, 0 where False: (..., h, w) int32."""
    binary = np.asarray(binary, np.bool_)
    roots, lengths = _runs(binary)
    areas = np.bincount(roots, weights=lengths, minlength=len(roots)).astype(np.int32)[roots]
    out = np.zeros(binary.shape, np.int32)
    out[binary] = np.repeat(areas, lengths)
    return out


def component_at(binary: np.ndarray, pixel: int) -> np.ndarray:
    """The 8-connected component of a mask (h, w) that has the pixel with this flat index, which is True."""
    roots, lengths = _runs(binary)
    numbers = np.zeros(binary.shape, np.intp)
    numbers[binary] = np.repeat(roots, lengths) + 1
    return numbers == numbers.flat[pixel]


def _runs(binary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs (stretches of True in a row) of (..., h, w), in order: a number that all runs of an 8-connected
    component share, and their lengths.

    Works on runs, not pixels: a mask has some hundred, and links between runs of neighbouring rows come from
    two binary searches.
    """
    height, width = binary.shape[-2:]
    planes = binary.reshape(-1, height, width)

    # One long line: a False before the first row, after each row, and a row of False after each plane, so
    # that no run reaches from one row or plane into the next.
    pitch = width + 1
    line = np.zeros(len(planes) * (height + 1) * pitch + 1, np.bool_)
    line[1:].reshape(-1, height + 1, pitch)[:, :height, :width] = planes
    edges = np.flatnonzero(line[1:] != line[:-1])
    starts, ends = edges[0::2], edges[1::2]  # a run is [start, end)

    # The runs that touch run r from the row above, diagonally too: above[r] <= index < beyond[r].
    above = np.searchsorted(ends, starts - pitch, side="left")
    beyond = np.searchsorted(starts, ends - pitch, side="right")
    return _roots(above, beyond), ends - starts


def _roots(above: np.ndarray, beyond: np.ndarray) -> np.ndarray:
    """One representative for each run, the same for all runs of a component.

    First each run hooks on to the first one above it. What links are left join whole trees, in rounds: of
    the two ways, lower index or higher, the one in which more trees have somewhere to go. A tree with a link
    can go at least one way, so each round removes at least half of the trees that are not yet whole:
    log2(runs) rounds at most.
    """
    runs = np.arange(len(above))
    root = _flattened(np.where(beyond > above, above, runs))
    extra = np.maximum(beyond - above - 1, 0)  # links beyond the first
    one = np.repeat(runs, extra)
    other = np.arange(len(one)) + np.repeat(above + 1 - (np.cumsum(extra) - extra), extra)
    while True:
        one, other = root[one], root[other]
        apart = one != other
        if not apart.any():
            return root
        one, other = one[apart], other[apart]
        low, high = np.minimum(one, other), np.maximum(one, other)
        down, up = runs.copy(), runs.copy()
        down[high], up[low] = low, high  # where several links compete, any one will do
        hooks = down if np.count_nonzero(down != runs) >= np.count_nonzero(up != runs) else up
        root = _flattened(hooks)[root]


def _flattened(parent: np.ndarray) -> np.ndarray:
    """The root of each node in a forest, by pointer jumping: log2(depth) steps."""
    while True:
        grandparent = parent[parent]
        if np.array_equal(grandparent, parent):
            return parent
        parent = grandparent
