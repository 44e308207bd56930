"""Scaled dot-product attention: one function, the kernel chosen below it, and the module with four
projections.

In: queries, keys and values as tokens (B, T, C), heads side by side in C. Out: tokens (B, T, C).
Knows nothing about windows, positions or where the tokens come from.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import Linear, Ops, Weights, static_shape


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
        return project_out(op, x, self.out_proj, self.v_proj) if op.folds else self.out_proj(op, x)
