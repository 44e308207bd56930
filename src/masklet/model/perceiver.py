"""EdgeTAM's spatial perceiver: a memory of many tokens summed up in few (Zhou et al. 2025, arXiv:2501.07256).

In: memories (B, T, M) in raster order. Out: memories (B, N, M) of global latents, each of which looks at the
whole picture and lies nowhere in it, then of window latents, each of which looks at its own window and keeps
its place. Both pass through the same layers (after Jaegle et al. 2021, arXiv:2103.03206), which therefore
read the memory once for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.attention import attend
from masklet.model.layers import LayerNorm, ModuleList, Ops, Parameter, Weights, scope
from masklet.model.tokens import raster, windows

TORCH_EPS = 1e-5
MLP_RATIO = 4


@dataclass(frozen=True)
class Seen:
    """Keys and values (G, T, M) of G groups of tokens, each for its own run of `latents` latents."""

    keys: ir.Value
    values: ir.Value
    latents: int


class FeedForward(nn.Module):
    """(B, N, M) -> (B, N, M). Keys `0` (a norm), `1.weight`, `3.weight`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner, outer = [MLP_RATIO * channels, channels], [channels, MLP_RATIO * channels]
        self._steps = [LayerNorm(channels, TORCH_EPS), Weights(weight=inner), Weights(weight=outer)]
        for name, step in zip("013", self._steps, strict=True):
            setattr(self, name, step)

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        norm, inner, outer = self._steps
        x = op.Gelu(op.linear(norm(op, x), op.weight("same", inner.weight)))
        return op.linear(x, op.weight("same", outer.weight))


class Projections(nn.Module):
    """What both kinds of attention share: one head, no biases. Keys `to_q`, `to_kv`, `to_out`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.to_q = Weights(weight=[channels, channels])
        self.to_kv = Weights(weight=[2 * channels, channels])
        self.to_out = Weights(weight=[channels, channels])
        self._channels = channels

    def _keys(self, op: Ops, x: ir.Value) -> ir.Value:
        return op.linear(x, op.weight("rows", self.to_kv.weight, start=0, stop=self._channels))

    def _values(self, op: Ops, x: ir.Value) -> ir.Value:
        channels = self._channels
        return op.linear(x, op.weight("rows", self.to_kv.weight, start=channels, stop=2 * channels))

    def _mixed(self, op: Ops, latents: ir.Value, seen: Seen, count: int) -> ir.Value:
        """Normed latents (B, N, M), N = `count`, look at what each of them sees -> (B, N, M)."""
        channels = self._channels
        q = op.linear(latents, op.weight("same", self.to_q.weight))
        q = op.reshape(q, (-1, seen.latents, channels))
        x = attend(op, q, seen.keys, seen.values, 1, channels)
        return self._out(op, op.reshape(x, (-1, count, channels)))

    def _out(self, op: Ops, x: ir.Value) -> ir.Value:
        return op.linear(x, op.weight("same", self.to_out.weight))


class LatentAttention(Projections):
    """Latents look at tokens. Keys `norm_x`, `norm_latents` and the projections."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm_x = LayerNorm(channels, TORCH_EPS)
        self.norm_latents = LayerNorm(channels, TORCH_EPS)

    def read(self, op: Ops, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """Keys and values (B, T, M) of tokens (B, T, M)."""
        with scope(op, self):
            x = self.norm_x(op, x)
            return self._keys(op, x), self._values(op, x)

    def forward(self, op: Ops, latents: ir.Value, seen: Seen, count: int) -> ir.Value:  # type: ignore[override]
        return self._mixed(op, self.norm_latents(op, latents), seen, count)


class SelfAttention(Projections):
    """Latents look at each other, those of one group at those of the same. Keys `norm`, the projections."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.norm = LayerNorm(channels, TORCH_EPS)

    def forward(self, op: Ops, latents: ir.Value, group: int, count: int) -> ir.Value:  # type: ignore[override]
        x = self.norm(op, latents)
        if group == 1 and op.folds:  # of one value attention is that value
            return self._out(op, self._values(op, x))
        runs = (-1, group, self._channels)
        keys, values = (op.reshape(y, runs) for y in (self._keys(op, x), self._values(op, x)))
        return self._mixed(op, x, Seen(keys, values, group), count)


class PerceiverLayer(nn.Module):
    """(B, N, M) -> (B, N, M). Keys `attn`, `ff`, `self_attn`, `self_ff`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attn = LatentAttention(channels)
        self.ff = FeedForward(channels)
        self.self_attn = SelfAttention(channels)
        self.self_ff = FeedForward(channels)

    def read(self, op: Ops, x: ir.Value) -> tuple[ir.Value, ir.Value]:
        """See `LatentAttention.read`."""
        with scope(op, self):
            return self.attn.read(op, x)

    def forward(self, op: Ops, latents: ir.Value, seen: Seen, count: int) -> ir.Value:  # type: ignore[override]
        latents = op.Add(self.attn(op, latents, seen, count), latents)
        latents = op.Add(self.ff(op, latents), latents)
        latents = op.Add(self.self_attn(op, latents, seen.latents, count), latents)
        return op.Add(self.self_ff(op, latents), latents)


class Perceiver(nn.Module):
    """(B, T, M) -> (B, N, M). Keys `latents`, `latents_2d`, `layers.{i}`, `norm`.

    As many windows as there are `latents_2d` divide the grid, whose sides are equal.
    """

    def __init__(self, channels: int, latents: int, latents_2d: int, depth: int) -> None:
        super().__init__()
        self.latents = Parameter([latents, channels])
        self.latents_2d = Parameter([latents_2d, channels])
        self._layers = [PerceiverLayer(channels) for _ in range(depth)]
        self.layers = ModuleList([*self._layers])
        self.norm = LayerNorm(channels, TORCH_EPS)
        self._channels, self._count, self._count_2d = channels, latents, latents_2d

    def forward(self, op: Ops, memories: ir.Value, grid_hw: tuple[int, int]) -> ir.Value:  # type: ignore[override]
        side = math.isqrt(self._count_2d)
        rows = raster(*grid_hw)
        in_windows = windows(*grid_hw, grid_hw[0] // side, in_cells=False)
        area = (grid_hw[0] // side) ** 2
        where = op.weight("sine_position", grid=list(grid_hw), block=0, channels=self._channels, scale=1.0)

        everywhere, inside = (
            self._start(op, memories, self.latents),
            self._start(op, memories, self.latents_2d),
        )
        for layer in self._layers:
            keys, values = layer.read(op, memories)
            seen = Seen(op.Add(keys, where), op.Add(values, where), self._count)
            everywhere = layer(op, everywhere, seen, self._count)

            runs = (op.rearrange(x, rows, in_windows) for x in (keys, values))
            seen = Seen(*(op.reshape(x, (-1, area, self._channels)) for x in runs), latents=1)
            inside = layer(op, inside, seen, self._count_2d)
        return self.norm(op, op.Concat(everywhere, inside, axis=1))

    def _start(self, op: Ops, memories: ir.Value, latents: Parameter) -> ir.Value:
        """Latents (N, M) for each of B memories (B, N, M)."""
        ones = op.constant(np.array([1, 1]))
        per_object = op.Concat(op.Shape(memories, start=0, end=1), ones, axis=0)
        return op.Expand(op.weight("same", latents), per_object)
