"""Arrays that depend on weights alone, computed once when a graph's weights are bound.

A graph names such an array by a recipe, source tensors and settings; this module is the whole list of
recipes. In: numpy arrays under the checkpoint's own keys. Out: numpy arrays (views where possible). Knows
nothing about graphs, files or engines, and imports neither onnx nor onnxscript, so that the cached path stays
light.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from masklet.errors import EngineError
from masklet.model.tokens import nested_blocks, raster

BATCH_NORM_EPS = 1e-5


def same(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


def rows(weight: np.ndarray, *, start: int, stop: int) -> np.ndarray:
    """Rows [start, stop) of a matrix or entries of a bias: one of the parts that a file stores fused."""
    return weight[start:stop]


def half(*sources: np.ndarray, of: str, settings: dict) -> np.ndarray:
    """What another recipe makes, in 16-bit floats; beyond their range, the largest of them."""
    limit = np.finfo(np.float16).max
    return np.clip(compute(of, sources, settings), -limit, limit)


def int8_matrix(*sources: np.ndarray, of: str, settings: dict) -> np.ndarray:
    """A matrix (out, in) that another recipe makes, transposed (in, out), as signed 8-bit integers.

    With `int8_scale`'s channels times these integers, two neighbouring inputs of an output never add up to
    more than 255 * 128: processors without 8-bit dot products add them in 16 bits (AVX2's vpmaddubsw) and
    would cut off what is larger. Scaling to 7 bits would do as well and costs half as much accuracy again.
    """
    matrix = compute(of, sources, settings)
    return np.clip(np.rint(matrix / _pair_scale(matrix)), -127, 127).T


def int8_scale(*sources: np.ndarray, of: str, settings: dict) -> np.ndarray:
    """The scale (out) of each output channel of `int8_matrix`."""
    return _pair_scale(compute(of, sources, settings))[:, 0]


def _pair_scale(matrix: np.ndarray) -> np.ndarray:
    """(out, 1): what one step of the integers is worth."""
    even = np.pad(matrix, ((0, 0), (0, matrix.shape[1] % 2))).reshape(len(matrix), -1, 2)
    sums = [np.maximum(side * even, 0).sum(axis=2) for side in (1, -1)]  # rounding adds at most one step
    largest = np.max([np.abs(matrix).max(axis=1), *(each.max(axis=1) for each in sums)], axis=0)
    return np.where(largest > 0, largest / np.float32(127), np.float32(1))[:, None].astype(np.float32)


def flat(*tensors: np.ndarray) -> np.ndarray:
    """Rows (..., C) of all tensors below each other: (T, C)."""
    return np.concatenate([tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors])


def stack(*tensors: np.ndarray) -> np.ndarray:
    """Equal tensors along a new first axis."""
    return np.stack(tensors)


def stack_matrices(*weights: np.ndarray) -> np.ndarray:
    """Linear weights (out, in) of several equal heads as one batch (heads, in, out)."""
    return np.ascontiguousarray(np.stack(weights).transpose(0, 2, 1))


def pointwise(weight: np.ndarray) -> np.ndarray:
    """A 1x1 convolution (out, in, 1, 1) as a matrix (out, in)."""
    return weight.reshape(weight.shape[0], weight.shape[1])


def cell_matrix(weight: np.ndarray) -> np.ndarray:
    """A 2x2 stride-2 convolution (out, in, 2, 2) as a matrix (out, 4 * in) over the four tokens of a cell."""
    return np.ascontiguousarray(weight.transpose(0, 2, 3, 1)).reshape(weight.shape[0], -1)


def uncell_matrix(weight: np.ndarray) -> np.ndarray:
    """A 2x2 stride-2 transposed convolution (in, out, 2, 2) as a matrix (4 * out, in) that makes a cell."""
    return np.ascontiguousarray(weight.transpose(2, 3, 1, 0)).reshape(-1, weight.shape[0])


def folded_weight(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Matrix of two 1x1 convolutions in a row: second @ first."""
    return (pointwise(second).astype(np.float64) @ pointwise(first)).astype(np.float32)


def folded_bias(
    first_bias: np.ndarray, second: np.ndarray, second_bias: np.ndarray, *others: np.ndarray
) -> np.ndarray:
    """Bias of two 1x1 convolutions in a row, and of what is added to them later."""
    bias = pointwise(second).astype(np.float64) @ first_bias + second_bias
    return (bias + sum(others)).astype(np.float32)


def carried_bias(weight: np.ndarray, bias: np.ndarray, values_bias: np.ndarray, *, start: int) -> np.ndarray:
    """Bias of a projection behind attention that also carries the values' bias: entries from `start` of
    theirs.

    Attention's weights sum to one, so a constant in the values comes out as it went in.
    """
    return (weight.astype(np.float64) @ values_bias[start : start + weight.shape[1]] + bias).astype(
        np.float32
    )


def with_bias(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A projection (out, in) and its bias as one matrix (out, in + 1), for inputs that end in a one."""
    return np.concatenate([weight, bias[:, None]], axis=1)


def scaled_rows(tensor: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """A projection (out, in), or its bias (out), times a scale per output channel (out)."""
    return tensor * scale.reshape(-1, *(1,) * (tensor.ndim - 1))


def head_rows(weight: np.ndarray, *, heads: int) -> np.ndarray:
    """A projection (h * d, C), or its bias (h * d), as one matrix per head (h, d, C or 1)."""
    return weight.reshape(heads, len(weight) // heads, -1)


def head_columns(weight: np.ndarray, *, heads: int) -> np.ndarray:
    """A projection (h * d, C) as one transposed matrix per head (h, C, d)."""
    return head_rows(weight, heads=heads).transpose(0, 2, 1)


def head_inputs(weight: np.ndarray, *, heads: int) -> np.ndarray:
    """A projection (C, h * d) of heads side by side as one transposed matrix per head (h, d, C)."""
    return head_rows(weight.T, heads=heads)


def normed_weight(weight: np.ndarray, scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """A convolution (out, in, k, k) with the batch norm behind it in its kernel."""
    return _normed(weight, scale, variance).astype(np.float32)


def normed_bias(scale: np.ndarray, shift: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The bias (out) that goes with `normed_weight`, of a convolution that had none."""
    return (shift - _normed(mean, scale, variance)).astype(np.float32)


def merged_weight(
    wide: np.ndarray,
    wide_scale: np.ndarray,
    wide_variance: np.ndarray,
    point: np.ndarray,
    point_scale: np.ndarray,
    point_variance: np.ndarray,
) -> np.ndarray:
    """Depthwise k x k and 1x1 convolutions, each with a batch norm, and the input itself, added up: one
    depthwise k x k convolution (C, 1, k, k) (Ding et al. 2021, arXiv:2101.03697)."""
    kernel = _normed(wide, wide_scale, wide_variance)
    centre = kernel.shape[2] // 2
    kernel[:, :, centre, centre] += 1 + _normed(point, point_scale, point_variance)[:, :, 0, 0]
    return kernel.astype(np.float32)


def merged_bias(*norms: np.ndarray) -> np.ndarray:
    """The bias that goes with `merged_weight`; scale, shift, mean and variance of each batch norm."""
    first, second = (normed_bias(*norms[start : start + 4]) for start in (0, 4))
    return first + second


def _normed(tensor: np.ndarray, scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """What a batch norm makes of a tensor (C, ...), before it shifts; float64."""
    factor = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + BATCH_NORM_EPS)
    return tensor * factor.reshape(-1, *(1,) * (tensor.ndim - 1))


def hiera_position(table: np.ndarray, window: np.ndarray, *, grid: Sequence[int], block: int) -> np.ndarray:
    """Hiera's windowed position table (T, C): bicubic background plus tiled window (Bolya et al. 2023).

    `table` is (1, C, h, w), `window` (1, C, s, s); cubic a = -0.75, half-pixel centres, as torch computes it.
    """
    height, width = grid
    background = np.einsum(
        "yi,cij,xj->yxc",
        _cubic_matrix(table.shape[2], height),
        table[0].astype(np.float64),
        _cubic_matrix(table.shape[3], width),
        optimize=True,
    )
    size_h, size_w = window.shape[2:]
    tiled = np.tile(window[0], (1, height // size_h, width // size_w)).transpose(1, 2, 0)
    return _ordered((background + tiled).astype(np.float32), block)


def resized_position(table: np.ndarray, *, grid: Sequence[int]) -> np.ndarray:
    """A ViT's position table (1, h, w, C) for a grid, (T, C): as it is, or bicubic as ViTDet resizes it (Li
    et al. 2022, arXiv:2203.16527)."""
    height, width = table.shape[1:3]
    if (height, width) == tuple(grid):
        return table.reshape(height * width, -1)
    rows, columns = _cubic_matrix(height, grid[0]), _cubic_matrix(width, grid[1])
    return np.einsum("yi,ijc,xj->yxc", rows, table[0].astype(np.float64), columns, optimize=True).reshape(
        -1, table.shape[3]
    )


def relative_position(table: np.ndarray, *, side: int) -> np.ndarray:
    """A table of relative positions (2 * L - 1, d) along one axis, as a matrix for each place of a query on
    it: (side, d, side), the last axis a key's place. Another length is resized linearly, as the reference
    does."""
    count = 2 * side - 1
    if len(table) != count:
        table = _linear_matrix(len(table), count) @ table.astype(np.float64)
    place = np.arange(side)
    return table[place[:, None] - place + side - 1].transpose(0, 2, 1)


def dense_position(gaussian: np.ndarray, *, grid: Sequence[int], block: int) -> np.ndarray:
    """Random Fourier features (T, C) of a grid's centres (Tancik et al. 2020); `gaussian` is (2, C / 2)."""
    height, width = grid
    y = (np.arange(height, dtype=np.float32) + 0.5) / np.float32(height)
    x = (np.arange(width, dtype=np.float32) + 0.5) / np.float32(width)
    centres = np.stack(np.broadcast_arrays(x[None, :], y[:, None]), axis=-1).astype(np.float32)
    angles = np.float32(2 * np.pi) * ((2 * centres - 1) @ gaussian.astype(np.float32))
    return _ordered(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), block)


def sine_position(
    *, grid: Sequence[int], block: int, channels: int, scale: float, placeless: int = 0
) -> np.ndarray:
    """Sines and cosines (T, C) of rows, then columns, normalised to one turn (Carion et al. 2020), times a
    scale. Tokens without a place come first and have zeros."""
    height, width = grid
    index = np.arange(channels // 2, dtype=np.float32)
    rate = np.float32(10000) ** (2 * (index // 2) / np.float32(channels // 2))

    def code(size: int) -> np.ndarray:
        turn = np.arange(1, size + 1, dtype=np.float32) / np.float32(size + 1e-6) * np.float32(2 * np.pi)
        angle = (turn[:, None] / rate).astype(np.float32)
        return np.where(index % 2 == 0, np.sin(angle), np.cos(angle))

    rows = np.broadcast_to(code(height)[:, None], (height, width, channels // 2))
    columns = np.broadcast_to(code(width)[None], (height, width, channels // 2))
    table = np.float32(scale) * _ordered(np.concatenate([rows, columns], axis=-1), block)
    return np.pad(table, ((placeless, 0), (0, 0)))


def rotary_cos(*, grid: Sequence[int], block: int, channels: int, placeless: int = 0) -> np.ndarray:
    """Cosines (T, C / 2) of axial rotary angles. Tokens without a place come first and are not turned."""
    return np.cos(np.pad(_rotary_angles(grid, block, channels), ((placeless, 0), (0, 0))))


def rotary_sin(*, grid: Sequence[int], block: int, channels: int, placeless: int = 0) -> np.ndarray:
    """Sines (T, C / 2) that go with `rotary_cos`."""
    return np.sin(np.pad(_rotary_angles(grid, block, channels), ((placeless, 0), (0, 0))))


def _rotary_angles(grid: Sequence[int], block: int, channels: int) -> np.ndarray:
    """Angles (T, C / 2), float64: columns in the first half of the channels, rows in the second."""
    height, width = grid
    rate = 1 / np.float32(10000) ** (np.arange(0, channels, 4, dtype=np.float32) / np.float32(channels))
    columns = np.broadcast_to(
        (np.arange(width, dtype=np.float32)[:, None] * rate)[None], (height, width, len(rate))
    )
    rows = np.broadcast_to((np.arange(height, dtype=np.float32)[:, None] * rate)[:, None], columns.shape)
    return _ordered(np.concatenate([columns, rows], axis=-1), block).astype(np.float64)


def _ordered(table_hwc: np.ndarray, block: int) -> np.ndarray:
    """Rows of a (H, W, C) table in `nested_blocks` order, or row by row for block 0."""
    height, width, channels = table_hwc.shape
    order = nested_blocks(height, width, block) if block else raster(height, width)
    return table_hwc.reshape(-1, channels)[order.slots]


def _linear_matrix(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) weights of linear interpolation, half-pixel centres, border replicated, float64."""
    centre = np.clip((np.arange(size_out) + 0.5) * size_in / size_out - 0.5, 0, size_in - 1)
    return np.clip(1 - np.abs(centre[:, None] - np.arange(size_in)), 0, None)


def _cubic_matrix(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) weights of bicubic interpolation, not antialiased, border replicated, float64."""
    a = -0.75
    centre = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    left = np.floor(centre).astype(int)
    matrix = np.zeros((size_out, size_in))
    for tap in range(-1, 3):
        distance = np.abs(centre - (left + tap))
        near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
        far = a * (distance**3 - 5 * distance**2 + 8 * distance - 4)
        np.add.at(
            matrix,
            (np.arange(size_out), np.clip(left + tap, 0, size_in - 1)),
            np.where(distance <= 1, near, far),
        )
    return matrix


RECIPES: dict[str, Callable[..., np.ndarray]] = {
    recipe.__name__: recipe
    for recipe in (
        same,
        rows,
        half,
        int8_matrix,
        int8_scale,
        flat,
        stack,
        stack_matrices,
        pointwise,
        cell_matrix,
        uncell_matrix,
        folded_weight,
        folded_bias,
        carried_bias,
        with_bias,
        scaled_rows,
        head_rows,
        head_columns,
        head_inputs,
        normed_weight,
        normed_bias,
        merged_weight,
        merged_bias,
        hiera_position,
        resized_position,
        relative_position,
        dense_position,
        sine_position,
        rotary_cos,
        rotary_sin,
    )
}


DTYPES = {"half": np.float16, "int8_matrix": np.int8}  # of recipes that do not make float32


def compute(recipe: str, sources: Sequence[np.ndarray], settings: dict) -> np.ndarray:
    """Run a recipe by name; the result is C-contiguous, float32 or what `DTYPES` says.

    Raises EngineError for a recipe that this version doesn't know (a graph of another version).
    """
    if recipe not in RECIPES:
        raise EngineError(
            f"The graph asks for the weight recipe {recipe!r}; this version knows {', '.join(RECIPES)}. "
            "Clear the graph cache with `masklet cache --clear`."
        )
    result = RECIPES[recipe](*sources, **settings)
    return np.ascontiguousarray(result, dtype=DTYPES.get(recipe, np.float32))
