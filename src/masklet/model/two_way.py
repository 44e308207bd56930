"""The two-way transformer between prompt tokens and image tokens (Kirillov et al. 2023, arXiv:2304.02643,
fig. 14).

In: prompt tokens (B, N, C), image tokens (B, T, C) and their positions (T, C). Out: both, updated.
Indifferent to the order of the image tokens; every attention has eight heads, cross attention at half the
width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.attention import Attention, CrossAttention
from masklet.model.layers import MLP, LayerNorm, ModuleList, Ops, scope

DEPTH = 2
HEADS = 8
TORCH_EPS = 1e-5


@dataclass(frozen=True)
class SharedImage:
    """What the first layer's attention makes of an image that prompts share."""

    keys: ir.Value  # 1 h d T, parted by heads: h * d = C / 2
    values: ir.Value  # 1 h T d
    queries: ir.Value  # 1 T C/2


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
        self,
        op: Ops,
        queries: ir.Value,
        keys: ir.Value,
        query_pe: ir.Value,
        key_pe: ir.Value,
        shared: SharedImage | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        # Tokens among themselves; the first block has no positions and no residual.
        if self._first:
            queries = self.self_attn(op, queries, queries, queries)
        else:
            q = op.Add(queries, query_pe)
            queries = op.Add(queries, self.self_attn(op, q, q, queries))
        queries = self.norm1(op, queries)

        # Tokens look at the image.
        q, positioned = op.Add(queries, query_pe), keys
        if shared is None:
            positioned = op.Add(keys, key_pe)
            seen = self.cross_attn_token_to_image.to_image(op, q, positioned, keys)
        else:
            seen = self.cross_attn_token_to_image.to_shared(op, q, shared.keys, shared.values)
        queries = self.norm2(op, op.Add(queries, seen))
        queries = self.norm3(op, op.Add(queries, self.mlp(op, queries)))

        # The image looks at the tokens.
        q = op.Add(queries, query_pe)
        if shared is None:
            seen = self.cross_attn_image_to_token.from_image(op, positioned, q, queries)
        else:
            seen = self.cross_attn_image_to_token.from_shared(op, shared.queries, q, queries)
        keys = self.norm4(op, op.Add(keys, seen))
        op.tap("queries", queries)
        op.tap("keys", keys)
        return queries, keys


class TwoWayTransformer(nn.Module):
    """(B, N, C), (1 or B, T, C), (T, C) -> (B, N, C), (B, T, C). Keys `layers.{i}`,
    `final_attn_token_to_image`."""

    def __init__(self, channels: int, mlp_dim: int) -> None:
        super().__init__()
        self._blocks = [TwoWayAttentionBlock(channels, mlp_dim, index == 0) for index in range(DEPTH)]
        self.layers = ModuleList([*self._blocks])
        self.final_attn_token_to_image = CrossAttention(channels, HEADS, channels // 2)
        self.norm_final_attn = LayerNorm(channels, TORCH_EPS)

    def share(self, op: Ops, image: ir.Value, image_pe: ir.Value) -> SharedImage:
        """What all prompts on an image (1, T, C) have in common, for `forward`."""
        first = self._blocks[0]
        k = op.Add(image, image_pe)
        with scope(op, self), scope(op, first):
            keys, values = first.cross_attn_token_to_image.share_keys(op, k, image)
            return SharedImage(keys, values, first.cross_attn_image_to_token.share_queries(op, k))

    def forward(  # type: ignore[override]
        self,
        op: Ops,
        points: ir.Value,
        image: ir.Value,
        image_pe: ir.Value,
        wanted: int,
        shared: SharedImage | None = None,
    ) -> tuple[ir.Value, ir.Value]:
        """Only the first `wanted` tokens are needed; with `shared`, image is (1, T, C)."""
        queries, keys = points, image
        for layer in self._blocks:
            queries, keys = layer(op, queries, keys, points, image_pe, shared)
            shared = None  # from here on the image differs

        if op.folds:
            bounds = [op.constant(np.array([bound])) for bound in (0, wanted, 1)]
            queries, points = op.Slice(queries, *bounds), op.Slice(points, *bounds)
        q, k = op.Add(queries, points), op.Add(keys, image_pe)
        queries = op.Add(queries, self.final_attn_token_to_image.to_image(op, q, k, keys))
        queries = self.norm_final_attn(op, queries)
        op.tap("hs", queries)
        op.tap("src", keys)
        return queries, keys
