"""The two-way transformer between prompt tokens and image tokens (Kirillov et al. 2023, arXiv:2304.02643,
fig. 14).

In: prompt tokens (B, N, C), image tokens (B, T, C) and their positions (T, C). Out: both, updated.
Indifferent to the order of the image tokens; every attention has eight heads, cross attention at half the
width.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from masklet.model.attention import Attention, CrossAttention
from masklet.model.layers import MLP, LayerNorm, ModuleList, Ops

DEPTH = 2
HEADS = 8
TORCH_EPS = 1e-5


class TwoWayAttentionBlock(nn.Module):
    """Self-attention, tokens to image, MLP, image to tokens; each with a residual and a norm."""

    def __init__(self, channels: int, mlp_dim: int, first: bool) -> None:
        super().__init__()
        self.self_attn = Attention(channels, HEADS, channels)
        self.norm1 = LayerNorm(channels, TORCH_EPS)
        self.cross_attn_token_to_image = CrossAttention(channels, HEADS, channels // 2)
        self.norm2 = LayerNorm(channels, TORCH_EPS)
        self.mlp = MLP((channels, mlp_dim, channels), "relu")
        self.norm3 = LayerNorm(channels, TORCH_EPS)
        self.cross_attn_image_to_token = CrossAttention(channels, HEADS, channels // 2)
        self.norm4 = LayerNorm(channels, TORCH_EPS)
        self._first = first

    def forward(  # type: ignore[override]
        self, op: Ops, queries: ir.Value, keys: ir.Value, query_pe: ir.Value, key_pe: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        # Tokens among themselves; the first block has no positions and no residual.
        if self._first:
            queries = self.self_attn(op, queries, queries, queries)
        else:
            q = op.Add(queries, query_pe)
            queries = op.Add(queries, self.self_attn(op, q, q, queries))
        queries = self.norm1(op, queries)

        # Tokens look at the image.
        q, k = op.Add(queries, query_pe), op.Add(keys, key_pe)
        queries = self.norm2(op, op.Add(queries, self.cross_attn_token_to_image.to_image(op, q, k, keys)))
        queries = self.norm3(op, op.Add(queries, self.mlp(op, queries)))

        # The image looks at the tokens.
        q = op.Add(queries, query_pe)
        keys = self.norm4(op, op.Add(keys, self.cross_attn_image_to_token.from_image(op, k, q, queries)))
        op.tap("queries", queries)
        op.tap("keys", keys)
        return queries, keys


class TwoWayTransformer(nn.Module):
    """(B, N, C), (B, T, C), (T, C) -> (B, N, C), (B, T, C). Keys `layers`, `final_attn_token_to_image`."""

    def __init__(self, channels: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = ModuleList(
            [TwoWayAttentionBlock(channels, mlp_dim, index == 0) for index in range(DEPTH)]
        )
        self.final_attn_token_to_image = CrossAttention(channels, HEADS, channels // 2)
        self.norm_final_attn = LayerNorm(channels, TORCH_EPS)

    def forward(  # type: ignore[override]
        self, op: Ops, points: ir.Value, image: ir.Value, image_pe: ir.Value
    ) -> tuple[ir.Value, ir.Value]:
        queries, keys = points, image
        for layer in self.layers:
            queries, keys = layer(op, queries, keys, points, image_pe)

        q, k = op.Add(queries, points), op.Add(keys, image_pe)
        queries = op.Add(queries, self.final_attn_token_to_image.to_image(op, q, k, keys))
        queries = self.norm_final_attn(op, queries)
        op.tap("hs", queries)
        op.tap("src", keys)
        return queries, keys
