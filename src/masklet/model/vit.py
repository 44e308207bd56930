"""SAM's image encoder: a plain ViT, windowed but for a few global blocks, with absolute and decomposed
relative positions, and its neck (Li et al. 2022, arXiv:2203.16527; Kirillov et al. 2023, arXiv:2304.02643).

In: a normalised picture (1, 3, S, S). Out: its features as tokens (1, T, C), raster order. Relative positions
are those of MViTv2 (Li et al. 2022, arXiv:2112.01526): each query has a term for every row and one for every
column of its window. Padding comes after norm1, so padded q, k and v are the bias.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from masklet.model import tokens
from masklet.model.attention import SquareShape, attend_in_squares, project_in, project_out
from masklet.model.config import VIT_PATCH, VitConfig
from masklet.model.layers import MLP, LayerNorm, Linear, ModuleList, Ops, Parameter, Weights
from masklet.model.tokens import TokenOrder, raster

MLP_RATIO = 4  # hidden channels of a block's MLP, in widths


class RelativeAttention(nn.Module):
    """Attention inside windows of `window` x `window` tokens; 0 attends globally.

    (1, T, C) -> (1, T, C), raster order. Keys `qkv`, `proj`, `rel_pos_h`, `rel_pos_w`, whose tables are for
    `reach` places along an axis.
    """

    def __init__(self, dim: int, heads: int, window: int, reach: int) -> None:
        super().__init__()
        self.qkv = Weights(weight=[3 * dim, dim], bias=[3 * dim])
        self.proj = Linear(dim, dim)
        self.rel_pos_h = Parameter([2 * reach - 1, dim // heads])
        self.rel_pos_w = Parameter([2 * reach - 1, dim // heads])
        self._dim, self._heads, self._window = dim, heads, window

    def forward(self, op: Ops, x: ir.Value, order: TokenOrder) -> ir.Value:  # type: ignore[override]
        side = self._window or order.grid_hw[0]
        inside = tokens.windows(*order.grid_hw, side, in_cells=False)
        x = op.rearrange(x, order, inside)
        q, k, v = (op.reshape(part, (-1, side**2, self._dim)) for part in project_in(op, x, self.qkv))

        # Each window is one of a batch.
        shape = SquareShape(side, self._heads, self._dim // self._heads)
        rows, columns = self._by_row(op, q, shape), self._by_column(op, q, shape)
        op.tap("rel_h", rows, (-1, side, side, side))
        op.tap("rel_w", columns, (-1, side, side, side))
        x = attend_in_squares(op, q, k, v, rows, columns, shape)

        x = op.rearrange(op.reshape(x, (1, -1, self._dim)), inside, order)
        return project_out(op, x, self.proj, self.qkv) if op.folds else self.proj(op, x)

    def _by_row(self, op: Ops, q: ir.Value, shape: SquareShape) -> ir.Value:
        """Queries (B, side * side, C) -> their terms for each row of keys (B, heads, side * side, side)."""
        side, heads, head_dim = shape.side, shape.heads, shape.head_dim
        table = op.weight("relative_position", self.rel_pos_h, side=side)
        x = op.MatMul(op.reshape(q, (-1, side, side * heads, head_dim)), table)  # B row (column heads) side
        return op.Transpose(op.reshape(x, (-1, side * side, heads, side)), perm=[0, 2, 1, 3])

    def _by_column(self, op: Ops, q: ir.Value, shape: SquareShape) -> ir.Value:
        """Queries (B, side * side, C) -> their terms for each column of keys, in the same shape."""
        side, heads, head_dim = shape.side, shape.heads, shape.head_dim
        table = op.weight("relative_position", self.rel_pos_w, side=side)
        x = op.Transpose(op.reshape(q, (-1, side, side, heads * head_dim)), perm=[0, 2, 1, 3])
        x = op.MatMul(op.reshape(x, (-1, side, side * heads, head_dim)), table)  # B column (row heads) side
        x = op.Transpose(op.reshape(x, (-1, side, side, heads, side)), perm=[0, 3, 2, 1, 4])
        return op.reshape(x, (0, heads, side * side, side))


class VitBlock(nn.Module):
    """Norm, attention, norm, MLP, with residuals. (1, T, C) -> (1, T, C). Keys `norm1/2`, `attn`, `mlp`."""

    def __init__(self, dim: int, heads: int, window: int, reach: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = RelativeAttention(dim, heads, window, reach)
        self.norm2 = LayerNorm(dim)
        self.mlp = MLP((dim, MLP_RATIO * dim, dim), "gelu")

    def forward(self, op: Ops, x: ir.Value, order: TokenOrder) -> ir.Value:  # type: ignore[override]
        x = op.Add(x, self.attn(op, self.norm1(op, x), order))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


class PatchEmbed(nn.Module):
    """16x16 stride-16 convolution. (1, 3, S, S) -> (1, T, C), raster order. Keys `proj`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.proj = Weights(weight=[dim, 3, VIT_PATCH, VIT_PATCH], bias=[dim])
        self._dim = dim

    def forward(self, op: Ops, image: ir.Value) -> ir.Value:  # type: ignore[override]
        weight, bias = op.weight("same", self.proj.weight), op.weight("same", self.proj.bias)
        side = [VIT_PATCH, VIT_PATCH]
        x = op.Transpose(op.Conv(image, weight, bias, kernel_shape=side, strides=side), perm=[0, 2, 3, 1])
        op.tap("", x)
        return op.reshape(x, (1, -1, self._dim))


class Neck(nn.Module):
    """1x1 and 3x3 convolution without bias, each with a norm. (1, T, dim) -> (1, T, C), raster order.

    Keys `0`, `1`, `2`, `3`.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self._layers = (
            Weights(weight=[channels, dim, 1, 1]),
            LayerNorm(channels),
            Weights(weight=[channels, channels, 3, 3]),
            LayerNorm(channels),
        )
        for index, layer in enumerate(self._layers):
            setattr(self, str(index), layer)
        self._channels = channels

    def forward(self, op: Ops, x: ir.Value, order: TokenOrder) -> ir.Value:  # type: ignore[override]
        reduce, norm, mix, last = self._layers
        x = op.linear(x, op.weight("pointwise", reduce.weight))
        self._tap(op, "0", x, order)
        x = norm(op, x)
        self._tap(op, "1", x, order)

        image = op.reshape(op.Transpose(x, perm=[0, 2, 1]), (1, self._channels, *order.grid_hw))
        image = op.Conv(image, op.weight("same", mix.weight), kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x = op.Transpose(op.reshape(image, (1, self._channels, -1)), perm=[0, 2, 1])
        self._tap(op, "2", x, order)
        return last(op, x)

    def _tap(self, op: Ops, name: str, x: ir.Value, order: TokenOrder) -> None:
        op.tap(name, x, (1, *order.grid_hw, self._channels), perm=[0, 3, 1, 2])


class Vit(nn.Module):
    """(1, 3, S, S) -> (1, T, C). Keys `patch_embed`, `pos_embed`, `blocks`, `neck`.

    `grid` is the side of the grid that the checkpoint's tables are made for; for pictures of another size
    they are resized.
    """

    def __init__(self, config: VitConfig, channels: int, grid: int) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(config.embed_dim)
        self.pos_embed = Parameter([1, grid, grid, config.embed_dim])
        windows = [0 if i in config.global_attn_indexes else config.window for i in range(config.depth)]
        self._blocks = [
            VitBlock(config.embed_dim, config.num_heads, window, window or grid) for window in windows
        ]
        self.blocks = ModuleList([*self._blocks])
        self.neck = Neck(config.embed_dim, channels)

    def forward(self, op: Ops, image: ir.Value, grid: int) -> ir.Value:  # type: ignore[override]
        """`grid` is the side of the picture's own grid, in tokens."""
        order = raster(grid, grid)
        x = self.patch_embed(op, image)
        x = op.Add(x, op.weight("resized_position", self.pos_embed, grid=[grid, grid]))
        for index, block in enumerate(self._blocks):
            x = block(op, x, order)
            op.tap(f"blocks.{index}", x, (1, grid, grid, -1))
        return self.neck(op, x, order)
