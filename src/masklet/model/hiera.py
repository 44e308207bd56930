"""Hiera, SAM 2's image trunk (Ryali et al. 2023, arXiv:2306.00989), with windowed position embeddings.

In: a normalised picture (1, 3, S, S). Out: the tokens of each of the four stages (1, T, C) in the given
orders. Tokens never leave token form; pooling and windows are matters of order (see `tokens`). A block that
changes stage still uses the window of the stage before it, and padding comes after norm1, so padded q, k and
v are the bias.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model import tokens
from masklet.model.attention import attend, project_in, project_out
from masklet.model.config import HieraConfig
from masklet.model.layers import MLP, LayerNorm, Linear, ModuleList, Ops, Parameter, Weights
from masklet.model.tokens import TokenOrder

# The first two stages have most of the tokens and never leave their windows: they are computed a piece of the
# picture at a time, which bounds their memory and keeps it in cache.
LOCAL_STAGES = (0, 1)
PIECES = 4


class MultiScaleAttention(nn.Module):
    """Attention inside windows, queries pooled 2x2 where the stage changes; `window` 0 attends globally.

    (1, T, dim) in `order` -> (1, T or T / 4, dim_out) in `order_out`. Keys `qkv`, `proj`.
    """

    def __init__(self, dim: int, dim_out: int, heads: int, window: int, pool: bool) -> None:
        super().__init__()
        self.qkv = Weights(weight=[3 * dim_out, dim], bias=[3 * dim_out])
        self.proj = Linear(dim_out, dim_out)
        self._dim, self._heads, self._window, self._pool = dim_out, heads, window, pool

    def forward(  # type: ignore[override]
        self, op: Ops, x: ir.Value, order: TokenOrder, order_out: TokenOrder
    ) -> ir.Value:
        inside = self._window_order(order)
        if op.folds and not self._pool and (inside.slots < 0).any():
            x, inside = self._attend_in_parts(op, x, order, inside)
        else:
            x = self._attend(op, op.rearrange(x, order, inside), self._window**2 or len(inside.slots))
        x = op.rearrange(x, inside.pooled() if self._pool else inside, order_out)
        return project_out(op, x, self.proj, self.qkv) if op.folds else self.proj(op, x)

    def _attend(self, op: Ops, x: ir.Value, span: int, padding: int = 0) -> ir.Value:
        """Tokens (1, T, dim), `span` to a window, attend to their window and to so many keys and values of
        zero. (1, T or T / 4, dim_out)."""
        q, k, v = project_in(op, x, self.qkv)
        q_span = span
        if self._pool:
            q, q_span = op.pool_cells(q, self._dim), span // 4

        # Each window is one of a batch.
        q = op.reshape(q, (-1, q_span, self._dim))
        k, v = (op.reshape(t, (-1, span, self._dim)) for t in (k, v))
        if padding:
            behind = op.constant(np.array([0, 0, 0, 0, padding, 0]))
            k, v = (op.Pad(t, behind, op.constant(0.0)) for t in (k, v))
        x = attend(op, q, k, v, self._heads, self._dim // self._heads)
        return op.reshape(x, (1, -1, self._dim))

    def _attend_in_parts(
        self, op: Ops, x: ir.Value, order: TokenOrder, inside: TokenOrder
    ) -> tuple[ir.Value, TokenOrder]:
        """`_attend` where windows at the border are padded: those with equally many tokens at a time, so that
        padding is neither projected nor looks at anything. What it is as keys and values is zero, since their
        biases are folded out. Returns the tokens and their order."""
        span, results, slots = self._window**2, [], []
        for part, count in tokens.equal_windows(inside, span):
            results.append(self._attend(op, op.rearrange(x, order, part), count, span - count))
            slots.append(part.slots)
        return op.Concat(*results, axis=1), TokenOrder(inside.grid_hw, np.concatenate(slots))

    def _window_order(self, order: TokenOrder) -> TokenOrder:
        """An order in which each window is a run of tokens, grouped if pooled; `order` if it is one."""
        suits = order.grouped or not self._pool
        if self._window == 0:
            return order if suits else tokens.cells(*order.grid_hw)
        if suits and tokens.contiguous(order, self._window):
            return order
        return tokens.windows(*order.grid_hw, self._window, in_cells=True)


class MultiScaleBlock(nn.Module):
    """Norm, windowed attention, norm, MLP. (1, T, dim) in `order` -> (1, T', dim_out) in `order_out`.

    Keys `norm1`, `attn`, `norm2`, `mlp`, and `proj` where the stage changes.
    """

    def __init__(self, dim: int, dim_out: int, heads: int, window: int) -> None:
        super().__init__()
        self.window, self._pool, self._dim_out = window, dim != dim_out, dim_out
        self.norm1 = LayerNorm(dim)
        self.attn = MultiScaleAttention(dim, dim_out, heads, window, self._pool)
        self.norm2 = LayerNorm(dim_out)
        self.mlp = MLP((dim_out, 4 * dim_out, dim_out), "gelu")
        if self._pool:
            self.proj = Linear(dim, dim_out)

    def is_run(self, order: TokenOrder) -> bool:
        """True when each of the block's windows is a run of consecutive tokens of `order`."""
        return self.window > 0 and order.grouped and tokens.contiguous(order, self.window)

    def forward(  # type: ignore[override]
        self, op: Ops, x: ir.Value, order: TokenOrder, order_out: TokenOrder
    ) -> ir.Value:
        skip, x = x, self.norm1(op, x)
        if self._pool:
            grouped = order if order.grouped else tokens.cells(*order.grid_hw)
            skip = op.pool_cells(op.rearrange(self.proj(op, x), order, grouped), self._dim_out)
            skip = op.rearrange(skip, grouped.pooled(), order_out)
        x = op.Add(skip, self.attn(op, x, order, order_out))
        return op.Add(x, self.mlp(op, self.norm2(op, x)))


class PatchEmbed(nn.Module):
    """7x7 stride-4 convolution. (1, 3, S, S) -> (1, T, C) in the given order. Keys `proj`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = PatchConvolution(channels)
        self._channels = channels

    def forward(self, op: Ops, image: ir.Value, order: TokenOrder) -> ir.Value:  # type: ignore[override]
        x = op.Transpose(self.proj(op, image), perm=[0, 2, 3, 1])
        op.tap("", x)
        x = op.reshape(x, (1, -1, self._channels))
        return op.rearrange(x, tokens.raster(*order.grid_hw), order)


class PatchConvolution(nn.Module):
    """(1, 3, S, S) -> (1, C, S / 4, S / 4). Keys `weight` (C, 3, 7, 7), `bias` (C)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = Parameter([channels, 3, 7, 7])
        self.bias = Parameter([channels])

    def forward(self, op: Ops, image: ir.Value) -> ir.Value:  # type: ignore[override]
        return op.Conv(image, self.weight, self.bias, kernel_shape=[7, 7], strides=[4, 4], pads=[3, 3, 3, 3])


class Hiera(nn.Module):
    """The trunk. (1, 3, S, S) -> four times (1, T, C). Keys `patch_embed`, `pos_embed*`, `blocks`."""

    def __init__(self, config: HieraConfig) -> None:
        super().__init__()
        dim, heads = config.embed_dim, config.num_heads
        self.patch_embed = PatchEmbed(dim)
        self.pos_embed = Parameter([1, dim, *config.window_pos_embed_bkg_spatial_size])
        self.pos_embed_window = Parameter([1, dim, config.window_spec[0], config.window_spec[0]])

        self._stages: list[list[MultiScaleBlock]] = []
        index = 0
        for stage, depth in enumerate(config.stages):
            made = []
            for position in range(depth):
                changes = stage > 0 and position == 0
                window = config.window_spec[stage - 1 if changes else stage]
                window = 0 if index in config.global_att_blocks else window
                heads *= 2 if changes else 1
                made.append(MultiScaleBlock(dim, 2 * dim if changes else dim, heads, window))
                dim *= 2 if changes else 1
                index += 1
            self._stages.append(made)
        self.blocks = ModuleList([block for stage in self._stages for block in stage])

    def forward(  # type: ignore[override]
        self, op: Ops, image: ir.Value, orders: tuple[TokenOrder, ...], block: int
    ) -> list[ir.Value]:
        """`orders`: one per stage; `block`: the block size of the first stage's nested order, or 0."""
        x = self.patch_embed(op, image, orders[0])
        grid = list(orders[0].grid_hw)
        table = op.weight("hiera_position", self.pos_embed, self.pos_embed_window, grid=grid, block=block)
        x = op.Add(x, table)

        outputs, index = [], 0
        for stage, blocks in enumerate(self._stages):
            before = orders[max(stage - 1, 0)]
            count = PIECES if stage in LOCAL_STAGES and self._is_local(blocks, before, orders[stage]) else 1
            pieces = op.Split(x, axis=1, num_outputs=count, _outputs=count) if count > 1 else [x]
            results = []
            for piece in pieces:
                order = before
                for offset, layer in enumerate(blocks):
                    piece, order = layer(op, piece, order, orders[stage]), orders[stage]
                    op.tap(f"blocks.{index + offset}", piece, (1, *order.grid_hw, -1))
                results.append(piece)
            x = op.Concat(*results, axis=1) if count > 1 else results[0]
            outputs.append(x)
            index += len(blocks)
        return outputs

    def _is_local(self, blocks: list[MultiScaleBlock], before: TokenOrder, order: TokenOrder) -> bool:
        """True when all blocks of a stage stay inside windows that are runs of tokens, `PIECES` times as
        many.
        """
        orders = [before, *[order] * (len(blocks) - 1)]
        return all(
            block.is_run(each) and len(each.slots) % (PIECES * block.window**2) == 0
            for block, each in zip(blocks, orders, strict=True)
        )
