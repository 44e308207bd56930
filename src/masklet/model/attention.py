"""Scaled dot-product attention: one function, the kernel chosen below it, and the module with four
projections.

In: queries, keys and values as tokens (B, T, C), heads side by side in C. Out: tokens (B, T, C).
Knows nothing about windows, positions or where the tokens come from.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import Linear, Ops, Weights, scope, static_shape

ROWS_AT_ONCE = 256  # their scores take 29 MB at full memory; twice as many are not faster


def attend(op: Ops, q: ir.Value, k: ir.Value, v: ir.Value, heads: int, head_dim: int) -> ir.Value:
    """softmax(q k' / sqrt(head_dim)) v per head."""
    if op.fused:
        return op.contrib("MultiHeadAttention", q, k, v, num_heads=heads)

    def split(x: ir.Value, perm: tuple[int, ...]) -> ir.Value:
        return op.Transpose(op.reshape(x, (0, 0, heads, -1)), perm=perm)

    q = op.Mul(q, op.constant(float(head_dim) ** -0.5))
    scores = op.MatMul(split(q, (0, 2, 1, 3)), split(k, (0, 2, 3, 1)))  # B heads Tq Tk
    mixed = op.MatMul(op.Softmax(scores, axis=-1), split(v, (0, 2, 1, 3)))
    return op.reshape(op.Transpose(mixed, perm=(0, 2, 1, 3)), (0, 0, -1))


def attend_by_rows(op: Ops, q: ir.Value, k: ir.Value, v: ir.Value, head_dim: int, count: int) -> ir.Value:
    """`attend` with one wide head: a few of the `count` queries at a time look at all keys.

    With 256 channels plain products and a softmax over whole rows are a fifth faster than the fused kernel,
    whose blocks are small because they have to fit beside each other into a core's cache (benchmarks/LOG.md).
    """
    if not op.fused:
        return attend(op, q, k, v, 1, head_dim)
    mixed = []
    for start in range(0, count, ROWS_AT_ONCE):
        stop, axis = min(start + ROWS_AT_ONCE, count), op.constant(np.array([1]))
        rows = op.Slice(q, op.constant(np.array([start])), op.constant(np.array([stop])), axis)
        scores = op.contrib("FusedMatMul", rows, k, transB=1, alpha=float(head_dim) ** -0.5)
        mixed.append(op.MatMul(op.Softmax(scores, axis=-1), v))
    return mixed[0] if len(mixed) == 1 else op.Concat(*mixed, axis=1)


def project_out(op: Ops, x: ir.Value, projection: Linear, values: Linear | Weights) -> ir.Value:
    """The projection behind attention whose keys and values came without their bias.

    A constant added to all keys adds the same to all scores of a query, which softmax ignores; a constant
    added to all values comes out as it is, so its projection joins the projection's bias. `values` is the
    layer whose last bias entries are the values'.
    """
    channels = static_shape(projection.weight)[1]
    start = static_shape(values.bias)[0] - channels
    x = op.linear(x, op.weight("same", projection.weight))
    bias = op.weight("carried_bias", projection.weight, projection.bias, values.bias, start=start)
    return op.Add(x, bias)


class Attention(nn.Module):
    """Attention with separate projections, inside at `inner` channels.

    (B, Tq, C), (B, Tk, C), (B, Tk, C) -> (B, Tq, C). Keys `q_proj`, `k_proj`, `v_proj`, `out_proj`.
    """

    def __init__(self, channels: int, heads: int, inner: int) -> None:
        super().__init__()
        self.q_proj = Linear(channels, inner)
        self.k_proj = Linear(channels, inner)
        self.v_proj = Linear(channels, inner)
        self.out_proj = Linear(inner, channels)
        self._heads, self._head_dim = heads, inner // heads

    def forward(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:  # type: ignore[override]
        q = self.q_proj(op, q)
        k, v = self.k_proj(op, k, bias=not op.folds), self.v_proj(op, v, bias=not op.folds)
        x = attend(op, q, k, v, self._heads, self._head_dim)
        if not op.folds:
            return self.out_proj(op, x)
        op.leave_out(self.k_proj.bias)
        return project_out(op, x, self.out_proj, self.v_proj)


class CrossAttention(Attention):
    """`Attention` between a few prompt tokens and many image tokens, without projecting the image.

    A head's scores q' (Wk x) are (Wk' q)' x, and its result Wv (X p) is a product behind the mixing: with N
    tokens and h heads the image meets h * N rows instead of the `inner` rows of two projections, which is
    less work for up to `inner` / h tokens. Exact; the plain graph does it the reference's way.
    """

    def to_image(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Tokens (B, N, C) look at the image's keys and values (B, T, C) -> (B, N, C)."""
        if not op.folds:
            return self(op, q, k, v)
        with scope(op, self):
            op.leave_out(self.k_proj.bias)
            q = self._heads_of(op, op.Mul(self.q_proj(op, q), self._scale(op)))  # B h N d
            rows = op.MatMul(q, op.weight("head_rows", self.k_proj.weight, heads=self._heads))  # B h N C
            weights = op.Softmax(op.matmul_t(self._side_by_side(op, rows), k), axis=-1)  # B hN T
            mixed = self._stacked(op, op.MatMul(weights, v))  # B h N C
            mixed = op.MatMul(mixed, op.weight("head_columns", self.v_proj.weight, heads=self._heads))
            x = op.reshape(op.Transpose(mixed, perm=(0, 2, 1, 3)), (0, 0, self._heads * self._head_dim))
            return project_out(op, x, self.out_proj, self.v_proj)

    def from_image(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """The image (B, T, C) looks at the tokens' keys and values (B, N, C) -> (B, T, C)."""
        if not op.folds:
            return self(op, q, k, v)
        with scope(op, self):
            op.leave_out(self.k_proj.bias)
            k = self._heads_of(op, op.Mul(self.k_proj(op, k, bias=False), self._scale(op)))  # B h N d
            rows = op.MatMul(k, op.weight("head_rows", self.q_proj.weight, heads=self._heads))  # B h N C
            constant = op.MatMul(k, op.weight("head_rows", self.q_proj.bias, heads=self._heads))  # B h N 1
            scores = op.matmul_t(q, self._side_by_side(op, rows))  # B T hN
            scores = op.Add(scores, op.Transpose(self._side_by_side(op, constant), perm=(0, 2, 1)))

            tokens = op.Shape(v, start=1, end=2)
            split = op.Concat(op.constant(np.array([0, 0, self._heads])), tokens, axis=0)
            weights = op.Softmax(op.Reshape(scores, split), axis=-1)  # B T h N
            weights = op.reshape(weights, (0, 0, -1))

            v = self._heads_of(op, self.v_proj(op, v, bias=False))
            rows = op.MatMul(v, op.weight("head_inputs", self.out_proj.weight, heads=self._heads))  # B h N C
            bias = (self.out_proj.weight, self.out_proj.bias, self.v_proj.bias)
            x = op.MatMul(weights, self._side_by_side(op, rows))
            return op.Add(x, op.weight("carried_bias", *bias, start=0))

    def _scale(self, op: Ops) -> ir.Value:
        return op.constant(float(self._head_dim) ** -0.5)

    def _heads_of(self, op: Ops, x: ir.Value) -> ir.Value:
        """(B, N, h * d) -> (B, h, N, d)."""
        return op.Transpose(op.reshape(x, (0, 0, self._heads, self._head_dim)), perm=(0, 2, 1, 3))

    def _side_by_side(self, op: Ops, x: ir.Value) -> ir.Value:
        """(B, h, N, C) -> (B, h * N, C)."""
        return op.Reshape(
            x,
            op.Concat(op.Shape(x, start=0, end=1), op.constant(np.array([-1])), op.Shape(x, start=3), axis=0),
        )

    def _stacked(self, op: Ops, x: ir.Value) -> ir.Value:
        """(B, h * N, C) -> (B, h, N, C)."""
        batch, channels = op.Shape(x, start=0, end=1), op.Shape(x, start=2)
        shape = op.Concat(batch, op.constant(np.array([self._heads, -1])), channels, axis=0)
        return op.Reshape(x, shape)
