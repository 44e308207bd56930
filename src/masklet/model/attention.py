"""Scaled dot-product attention: one function, the kernel chosen below it, and the module with four
projections.

In: queries, keys and values as tokens (B, T, C), heads side by side in C. Out: tokens (B, T, C).
Knows nothing about windows, positions or where the tokens come from.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import Linear, Ops


def attend(
    op: Ops, q: ir.Value, k: ir.Value, v: ir.Value, heads: int, head_dim: int, bias: ir.Value | None = None
) -> ir.Value:
    """softmax(q k' / sqrt(head_dim)) v per head; `bias` (3 * C) is added to q, k and v side by side first."""
    if op.fused:
        return op.contrib("MultiHeadAttention", q, k, v, bias, num_heads=heads)
    if bias is not None:
        parts = op.Split(bias, axis=0, num_outputs=3, _outputs=3)
        q, k, v = (op.Add(x, part) for x, part in zip((q, k, v), parts, strict=True))

    def split(x: ir.Value, perm: tuple[int, ...]) -> ir.Value:
        return op.Transpose(op.reshape(x, (0, 0, heads, -1)), perm=perm)

    q = op.Mul(q, op.constant(float(head_dim) ** -0.5))
    scores = op.MatMul(split(q, (0, 2, 1, 3)), split(k, (0, 2, 3, 1)))  # B heads Tq Tk
    mixed = op.MatMul(op.Softmax(scores, axis=-1), split(v, (0, 2, 1, 3)))
    return op.reshape(op.Transpose(mixed, perm=(0, 2, 1, 3)), (0, 0, -1))


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
        q, k, v = self.q_proj(op, q), self.k_proj(op, k), self.v_proj(op, v)
        return self.out_proj(op, attend(op, q, k, v, self._heads, self._head_dim))
