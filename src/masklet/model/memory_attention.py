"""Memory attention: the current frame's features look at what is remembered of an object (Ravi et al. 2024).

In: the frame's tokens, memories of F frames and P object pointers per object. Out: the tokens, conditioned.
Which frames are remembered is policy and decided in `pipeline.memory`. Positions inside attention are rotary
over the grid (Su et al. 2021, arXiv:2104.09864; axial as in Heo et al. 2024, arXiv:2403.13298).

What does not depend on the object is apart, so that it runs once per frame: `begin` is the first layer up to
its queries. Keys are made of M = 64 channels; the value side stays at these: softmax(QK) (M Wv + b) Wo is
(softmax(QK) M) Wv Wo + b Wo, which leaves a third of the reference's work on that side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.attention import attend_by_rows
from masklet.model.layers import LayerNorm, Linear, ModuleList, Ops, Parameter, Weights, scope, static_shape
from masklet.model.tokens import MemoryPlaces, TokenOrder

TORCH_EPS = 1e-5
INPUT_POSITION_SCALE = 0.1  # of the sine table that is added to the frame's features


@dataclass(frozen=True)
class Rotation:
    """Cosines and sines (T, C / 2) of T = `count` tokens, in some order."""

    cos: ir.Value
    sin: ir.Value
    count: int

    @classmethod
    def table(cls, op: Ops, grid_hw: tuple[int, int], block: int, channels: int) -> Rotation:
        """The table for tokens in nested order with this block, or raster order for block 0."""
        settings = {"grid": list(grid_hw), "block": block, "channels": channels}
        count = grid_hw[0] * grid_hw[1]
        return cls(op.weight("rotary_cos", **settings), op.weight("rotary_sin", **settings), count)

    @classmethod
    def of_memory(cls, op: Ops, places: MemoryPlaces, channels: int) -> Rotation:
        """The table for a memory's tokens; those without a place are not turned."""
        settings = {**_laid_out(places), "channels": channels}
        return cls(op.weight("rotary_cos", **settings), op.weight("rotary_sin", **settings), places.count)


@dataclass(frozen=True)
class Memory:
    """What B objects remember, as keys and values of K = F * T + P' tokens.

    `seen` (B * F, T, M + 1) are keys with a place in the picture, `pointers` (B, P', M + 1) those without;
    both end in a one. `values` (B, K, M).
    """

    seen: ir.Value
    pointers: ir.Value
    values: ir.Value
    rotation: Rotation


class RotaryAttention(nn.Module):
    """One head at the width of its queries. Keys `q_proj`, `k_proj`, `v_proj`, `out_proj`."""

    def __init__(self, channels: int, channels_in: int) -> None:
        super().__init__()
        self.q_proj = Linear(channels, channels)
        self.k_proj = Linear(channels_in, channels)
        self.v_proj = Linear(channels_in, channels)
        self.out_proj = Linear(channels, channels)
        self._channels = channels

    def forward(  # type: ignore[override]
        self, op: Ops, x: ir.Value, rotation: Rotation
    ) -> ir.Value:
        """Tokens (B, T, C) among themselves."""
        q = op.rotate(self.q_proj(op, x), rotation.cos, rotation.sin)
        k = op.rotate(self.k_proj(op, x), rotation.cos, rotation.sin)
        return self._mixed(op, q, k, x, rotation.count)

    def queries(self, op: Ops, x: ir.Value, rotation: Rotation) -> ir.Value:
        """Queries (B, T, C) for `look`."""
        with scope(op, self):
            return op.rotate(self.q_proj(op, x), rotation.cos, rotation.sin)

    def look(self, op: Ops, q: ir.Value, memory: Memory, count: int) -> ir.Value:
        """T = `count` queries (B, T, C) look at the memory -> (B, T, C)."""
        with scope(op, self):
            # The keys' bias comes in through the column of ones: adding it would be one more pass over them.
            projection = op.weight("with_bias", self.k_proj.weight, self.k_proj.bias)
            seen = op.rotate(op.linear(memory.seen, projection), memory.rotation.cos, memory.rotation.sin)
            seen = op.Reshape(
                seen, op.Concat(op.Shape(q, start=0, end=1), _sizes(op, -1, self._channels), axis=0)
            )
            k = op.Concat(seen, op.linear(memory.pointers, projection), axis=1)
            return self._mixed(op, q, k, memory.values, count)

    def _mixed(self, op: Ops, q: ir.Value, k: ir.Value, values: ir.Value, count: int) -> ir.Value:
        """Attention over unprojected values, and both projections behind it."""
        value, out = self.v_proj, self.out_proj
        if not op.folds:
            values = value(op, values)
        x = attend_by_rows(op, q, k, values, self._channels, count)
        if not op.folds:
            return out(op, x)
        bias = op.weight("carried_bias", out.weight, out.bias, value.bias, start=0)
        return op.linear(x, op.weight("folded_weight", value.weight, out.weight), bias)


class MemoryAttentionLayer(nn.Module):
    """Self-attention, attention to the memory, MLP, each behind a norm and with a residual."""

    def __init__(self, channels: int, memory_channels: int, mlp_dim: int) -> None:
        super().__init__()
        self.self_attn = RotaryAttention(channels, channels)
        self.cross_attn_image = RotaryAttention(channels, memory_channels)
        self.linear1 = Linear(channels, mlp_dim)
        self.linear2 = Linear(mlp_dim, channels)
        self.norm1 = LayerNorm(channels, TORCH_EPS)
        self.norm2 = LayerNorm(channels, TORCH_EPS)
        self.norm3 = LayerNorm(channels, TORCH_EPS)

    def begin(self, op: Ops, x: ir.Value, rotation: Rotation) -> tuple[ir.Value, ir.Value]:
        """The part without memory: tokens (B, T, C) and the queries that they send to it."""
        with scope(op, self):
            x = op.Add(x, self.self_attn(op, self.norm1(op, x), rotation))
            return x, self.cross_attn_image.queries(op, self.norm2(op, x), rotation)

    def end(self, op: Ops, x: ir.Value, queries: ir.Value, memory: Memory, count: int) -> ir.Value:
        """The part with memory: T = `count` tokens (B, T, C) -> (B, T, C)."""
        with scope(op, self):
            x = op.Add(x, self.cross_attn_image.look(op, queries, memory, count))
            x = op.Add(x, self.linear2(op, op.Relu(self.linear1(op, self.norm3(op, x)))))
            op.tap("", x)
            return x


class MemoryAttention(nn.Module):
    """Keys `layers.{0..}`, `norm`."""

    def __init__(self, channels: int, memory_channels: int, mlp_dim: int, layers: int) -> None:
        super().__init__()
        self._layers = [MemoryAttentionLayer(channels, memory_channels, mlp_dim) for _ in range(layers)]
        self.layers = ModuleList([*self._layers])
        self.norm = LayerNorm(channels, TORCH_EPS)
        self._channels = channels

    def begin(self, op: Ops, x: ir.Value, order: TokenOrder, block: int) -> tuple[ir.Value, ir.Value]:
        """The frame's features (1, T, C) -> tokens and queries of the first layer, for all objects."""
        with scope(op, self):
            settings = {"grid": list(order.grid_hw), "block": block, "channels": self._channels}
            x = op.Add(x, op.weight("sine_position", **settings, scale=INPUT_POSITION_SCALE))
            return self._layers[0].begin(op, x, self._rotation(op, order, block))

    def end(
        self, op: Ops, x: ir.Value, queries: ir.Value, memory: Memory, order: TokenOrder, block: int
    ) -> ir.Value:
        """Tokens and queries of `begin`, for B objects, and their memory -> conditioned tokens (B, T, C)."""
        with scope(op, self):
            rotation = self._rotation(op, order, block)
            x = self._layers[0].end(op, x, queries, memory, rotation.count)
            for layer in self._layers[1:]:
                x = layer.end(op, *layer.begin(op, x, rotation), memory, rotation.count)
            return self.norm(op, x)

    def _rotation(self, op: Ops, order: TokenOrder, block: int) -> Rotation:
        return Rotation.table(op, order.grid_hw, block, self._channels)


@dataclass(frozen=True)
class MemoryTokens:
    """Memories and pointers of B objects as one sequence of K tokens with their positions.

    `ages` is `maskmem_tpos_enc` (F, 1, 1, M), `pointer_time` in 2.1 `obj_ptr_tpos_proj`, else None;
    `channels` C.
    """

    ages: Parameter
    pointer_time: Weights | None
    channels: int

    def __call__(
        self,
        op: Ops,
        memories: ir.Value,
        slots: ir.Value,
        pointers: ir.Value,
        distances: ir.Value | None,
        places: MemoryPlaces,
    ) -> Memory:
        """Memories (B, F, T, M), whose tokens lie at `places`; `slots` (B, F), rows of the table of ages;
        pointers (B, P, C); `distances` (B, P) in time, 1 for the farthest (2.1)."""
        width = static_shape(self.ages)[-1]

        # Where and when each memory token was seen.
        where = op.weight("sine_position", **_laid_out(places), channels=width, scale=1.0)
        when = op.Gather(op.weight("flat", self.ages), slots, axis=0)  # B F M
        seen = op.Add(memories, op.Add(where, op.Unsqueeze(when, op.constant(np.array([2])))))
        seen = _with_one(op, op.Reshape(seen, _sizes(op, -1, places.count, width)))

        # A pointer is several tokens, which share a position in time and have none in the picture.
        batch = op.Shape(memories, start=0, end=1)
        tokens = op.Reshape(pointers, op.Concat(batch, _sizes(op, -1, width), axis=0))
        timed = tokens
        if self.pointer_time is not None and distances is not None:
            timed = self._timed(op, tokens, distances, self.pointer_time)

        values = op.Concat(
            op.Reshape(memories, op.Concat(batch, _sizes(op, -1, width), axis=0)), tokens, axis=1
        )
        rotation = Rotation.of_memory(op, places, self.channels)
        return Memory(seen, _with_one(op, timed), values, rotation)

    def _timed(self, op: Ops, tokens: ir.Value, distances: ir.Value, projection: Weights) -> ir.Value:
        """Tokens (B, P * C / M, M) plus the projected sine code of their distances (B, P)."""
        last = op.constant(np.array([-1]))
        half = np.arange(self.channels // 2, dtype=np.float32)
        rate = np.float32(10000.0) ** (2 * (half // 2) / np.float32(self.channels // 2))
        angle = op.Div(op.Unsqueeze(distances, last), op.constant(rate.astype(np.float32)))
        code = op.Concat(op.Sin(angle), op.Cos(angle), axis=-1)
        bias = op.weight("same", projection.bias)
        time = op.linear(code, op.weight("same", projection.weight), bias)  # B P M
        parts = self.channels // static_shape(self.ages)[-1]
        time = op.Expand(op.Unsqueeze(time, op.constant(np.array([2]))), _sizes(op, 1, 1, parts, 1))
        return op.Add(tokens, op.Reshape(time, op.Shape(tokens)))


def _laid_out(places: MemoryPlaces) -> dict[str, Any]:
    """Settings of recipes."""
    grid = {"grid": list(places.grid_hw), "block": 0}
    return {**grid, "placeless": places.placeless} if places.placeless else grid


def _with_one(op: Ops, x: ir.Value) -> ir.Value:
    """(B, T, M) -> (B, T, M + 1), ending in a one."""
    return op.Pad(x, _sizes(op, 0, 0, 0, 0, 0, 1), op.constant(1.0))


def _sizes(op: Ops, *sizes: int) -> ir.Value:
    return op.constant(np.array(sizes))
