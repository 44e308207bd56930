"""Token orders: which place of the feature grid each token of a sequence comes from.

Attention inside a window doesn't care in which order the window's tokens stand, and neither does any
per-token layer. So the fused networks keep their tokens in an order in which a window is a run of consecutive
tokens and every 2x2 cell that is pooled (or that an upsampling makes) is four consecutive tokens:
partitioning, pooling, nearest upsampling and 2x2 stride-2 (transposed) convolutions then need no movement of
data at all. A graph is built for one order or another from the same module code; `gather_index` says how to
get from one to the other.

In: grid sizes, window sizes. Out: integer arrays. Pure numpy; knows nothing about graphs or weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from masklet.model.config import PATCH_STRIDE, STAGES, HieraConfig


@dataclass(frozen=True, eq=False)
class TokenOrder:
    """Slot i of a sequence holds the token of raster place `slots[i]` (row * W + column); -1 is padding.

    `grid_hw` is the size (H, W) of the grid that the places refer to, in tokens.
    """

    grid_hw: tuple[int, int]
    slots: np.ndarray

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, TokenOrder)
            and self.grid_hw == other.grid_hw
            and np.array_equal(self.slots, other.slots)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def grouped(self) -> bool:
        """True when each run of four slots is one 2x2 cell of the grid (or four padding slots)."""
        if len(self.slots) % 4:
            return False
        width = self.grid_hw[1]
        cells = self.slots.reshape(-1, 4)
        first = cells[:, :1]
        whole = cells == first + np.array([0, 1, width, width + 1])
        even = (first // width % 2 == 0) & (first % width % 2 == 0)
        return bool(np.all((whole & even) | np.all(cells < 0, axis=1, keepdims=True)))

    def pooled(self) -> TokenOrder:
        """The order that is left when each 2x2 cell of a grouped order becomes one token."""
        height, width = self.grid_hw
        first = self.slots.reshape(-1, 4)[:, 0]
        places = (first // width // 2) * (width // 2) + first % width // 2
        return TokenOrder((height // 2, width // 2), np.where(first < 0, -1, places))


@dataclass(frozen=True)
class MemoryPlaces:
    """Where a memory's tokens lie in the picture: the first `placeless` nowhere, then those of a grid, row by
    row."""

    grid_hw: tuple[int, int]
    placeless: int = 0

    @property
    def count(self) -> int:
        """How many tokens a memory has."""
        return self.placeless + self.grid_hw[0] * self.grid_hw[1]


def raster(height: int, width: int) -> TokenOrder:
    """Row by row, the reference's own order."""
    return TokenOrder((height, width), np.arange(height * width))


def cells(height: int, width: int) -> TokenOrder:
    """2x2 cells row by row; pooling this order gives `raster(height // 2, width // 2)`."""
    places = np.arange(height * width).reshape(height // 2, 2, width // 2, 2)
    return TokenOrder((height, width), places.transpose(0, 2, 1, 3).reshape(-1))


def nested_blocks(height: int, width: int, block: int) -> TokenOrder:
    """Blocks of `block` x `block` tokens row by row; inside a block, quarters of quarters down to 2x2 cells.

    `block` is a power of two that divides both sides.
    """
    place = np.arange(height * width).reshape(height // block, block, width // block, block)
    place = place.transpose(0, 2, 1, 3)  # block rows, block columns, rows, columns
    levels = block.bit_length() - 1
    place = place.reshape(*place.shape[:2], *(2,) * (2 * levels))
    rows = [2 + level for level in range(levels)]
    interleaved = [axis for row in rows for axis in (row, row + levels)]
    return TokenOrder((height, width), place.transpose(0, 1, *interleaved).reshape(-1))


def windows(height: int, width: int, size: int, *, in_cells: bool) -> TokenOrder:
    """Windows of `size` x `size` tokens, padded right and below, each row by row; in 2x2 cells, if asked for
    and if all sides are even."""
    rows, columns = -(-height // size), -(-width // size)
    place = np.full((rows * size, columns * size), -1)
    place[:height, :width] = np.arange(height * width).reshape(height, width)
    place = place.reshape(rows, size, columns, size).transpose(0, 2, 1, 3)
    if in_cells and size % 2 == 0 and height % 2 == 0 and width % 2 == 0:
        place = place.reshape(rows, columns, size // 2, 2, size // 2, 2).transpose(0, 1, 2, 4, 3, 5)
    return TokenOrder((height, width), place.reshape(-1))


def equal_windows(order: TokenOrder, span: int) -> list[tuple[TokenOrder, int]]:
    """The windows of an order, runs of `span` slots, that have equally many tokens, fullest first: the order
    of their tokens without padding, and how many tokens each window has."""
    runs = order.slots.reshape(-1, span)
    counts = (runs >= 0).sum(axis=1)
    found = []
    for count in sorted(set(counts.tolist()), reverse=True):
        slots = runs[counts == count]
        found.append((TokenOrder(order.grid_hw, slots[slots >= 0]), count))
    return found


def upscaled_orders(height: int, width: int, nested: bool) -> tuple[TokenOrder, TokenOrder, TokenOrder]:
    """Orders for a grid of four times and of twice this size, and for the grid itself, which is raster.

    Nested, each token's four successors stand where it stood; else all are raster.
    """
    if not nested:
        return raster(4 * height, 4 * width), raster(2 * height, 2 * width), raster(height, width)
    finest = nested_blocks(4 * height, 4 * width, 4)
    return finest, finest.pooled(), raster(height, width)


def gather_index(source: TokenOrder, target: TokenOrder) -> np.ndarray | None:
    """For each slot of `target` the slot of `source` that holds its token; `len(source.slots)` for padding.

    None when both orders are the same. `source` must hold every place that `target` asks for.
    """
    if source == target:
        return None
    where = np.full(source.grid_hw[0] * source.grid_hw[1], len(source.slots))
    real = np.flatnonzero(source.slots >= 0)
    where[source.slots[real]] = real
    return np.where(target.slots < 0, len(source.slots), where[target.slots])


def contiguous(source: TokenOrder, size: int) -> bool:
    """True when each `size` x `size` window of the grid already is a run of tokens of `source`."""
    height, width = source.grid_hw
    if height % size or width % size or len(source.slots) != height * width:
        return False
    runs = source.slots.reshape(-1, size * size)
    window = (runs // width // size) * (width // size) + runs % width // size
    return bool(np.all(window == window[:, :1]))


def stage_orders(config: HieraConfig, image_size: int, nested: bool) -> tuple[tuple[TokenOrder, ...], int]:
    """Token orders of the four stages for a square picture, and the block size of the first (0: raster).

    The block is as large as makes the third stage's windows contiguous too where they need no padding.
    """
    side = image_size // PATCH_STRIDE
    if not nested:
        return tuple(raster(side >> stage, side >> stage) for stage in range(STAGES)), 0
    window = config.window_spec[2]
    fits = window & (window - 1) == 0 and (side // 4) % window == 0
    block = 4 * window if fits else 8
    orders = [nested_blocks(side, side, block)]
    for _ in range(STAGES - 1):
        orders.append(orders[-1].pooled())
    return tuple(orders), block
