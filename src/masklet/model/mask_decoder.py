"""Mask decoders: four mask candidates and their predicted IoU from one set of prompts; SAM 2's also scores
whether the object is there.

In: image features and prompt embeddings as tokens. Out: all four candidates (`DecodedValues`); which of them
is used (multimask, stability) is policy and decided in `pipeline.prompts`. Decoding has two halves, which can
run apart: prompts are rated (`RatedValues`), then masks drawn. The two 2x2 stride-2 transposed convolutions
are products that make four tokens from one, which in grouped order already stand where they belong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import LAYER_NORM_EPS, MLP, ModuleList, Ops, Weights, static_shape
from masklet.model.neck import HighRes
from masklet.model.tokens import TokenOrder, cells, raster
from masklet.model.two_way import SharedImage, TwoWayTransformer

MASKS = 4
IOU_CHANNELS = 256


@dataclass(frozen=True)
class FinerFeatures:
    """Image features of the two levels between embedding and masks."""

    stride4: ir.Value  # 1 16T C/8
    stride8: ir.Value  # 1 4T C/4


@dataclass(frozen=True)
class RatedValues:
    """B prompts before their masks are drawn; mask 0 is the single-mask token's."""

    iou: ir.Value  # B 4; of SAM 2 in [0, 1]
    object_score: ir.Value | None  # B 1, logit; SAM has none
    tokens: ir.Value  # B 4 C, the mask tokens
    image: ir.Value  # B T C, the image as each prompt sees it


@dataclass(frozen=True)
class DecodedValues(RatedValues):
    """B prompts with their masks."""

    logits: ir.Value  # B 4 4H 4W, raster


class MaskDecoder(nn.Module):
    """SAM's. Keys `transformer`, `*_token(s)`, `output_upscaling`, `output_hypernetworks_mlps`, ...

    `rate` and `draw` alone, and the transformer's `share` before them, are called in a `scope`.
    """

    finer_channels: tuple[int, ...] = ()  # of `FinerFeatures`, finest first

    def __init__(self, channels: int, mlp_dim: int) -> None:
        super().__init__()
        quarter, eighth = channels // 4, channels // 8
        self.transformer = TwoWayTransformer(channels, mlp_dim)
        self.iou_token = Weights(weight=[1, channels])
        self.mask_tokens = Weights(weight=[MASKS, channels])
        self.output_upscaling = ModuleList()
        for index, shapes in {
            0: {"weight": [channels, quarter, 2, 2], "bias": [quarter]},
            1: {"weight": [quarter], "bias": [quarter]},
            3: {"weight": [quarter, eighth, 2, 2], "bias": [eighth]},
        }.items():
            setattr(self.output_upscaling, str(index), Weights(**shapes))
        self._hypernetworks = [MLP((channels, channels, channels, eighth), "relu") for _ in range(MASKS)]
        self.output_hypernetworks_mlps = ModuleList([*self._hypernetworks])
        self.iou_prediction_head = MLP((channels, IOU_CHANNELS, IOU_CHANNELS, MASKS), "relu")
        self._own = [self.iou_token, self.mask_tokens]  # in the order of the transformer's tokens

    def forward(  # type: ignore[override]
        self,
        op: Ops,
        image: ir.Value,
        finer: FinerFeatures | None,
        sparse: ir.Value,
        image_pe: ir.Value,
        orders: tuple[TokenOrder, ...],
        shared: SharedImage | None = None,
    ) -> DecodedValues:
        """As `rate`, then `draw`; `finer` where the decoder has `finer_channels`."""
        rated = self.rate(op, sparse, image, image_pe, shared)
        logits = self.draw(op, rated.tokens, rated.image, orders, finer)
        op.tap("all_masks", logits)
        op.tap("all_ious", rated.iou)
        op.tap("mask_tokens", rated.tokens)
        if rated.object_score is not None:
            op.tap("object_score_logits", rated.object_score)
        return DecodedValues(**vars(rated), logits=logits)

    def rate(
        self,
        op: Ops,
        sparse: ir.Value,
        image: ir.Value,
        image_pe: ir.Value,
        shared: SharedImage | None = None,
    ) -> RatedValues:
        """Prompts (B, N, C) on images (B, T, C), or on one (1, T, C) of which `shared` is known; their dense
        prompt is in the images. Output tokens go before prompt tokens."""
        own = op.weight("flat", *(token.weight for token in self._own))
        batch = op.Concat(op.Shape(sparse, start=0, end=1), op.constant(np.array([1, 1])), axis=0)
        points = op.Concat(op.Expand(own, batch), sparse, axis=1)
        count = sum(static_shape(token.weight)[0] for token in self._own)
        hs, image = self.transformer(op, points, image, image_pe, count, shared)
        tokens = op.Slice(
            hs, op.constant(np.array([count - MASKS])), op.constant(np.array([count])), _axis(op, 1)
        )
        iou = self.iou_prediction_head(op, _token(op, hs, count - MASKS - 1))
        return self._scored(op, RatedValues(iou, None, tokens, image), hs)

    def _scored(self, op: Ops, rated: RatedValues, hs: ir.Value) -> RatedValues:
        """What a subclass makes of the ratings; `hs` (B, K, C) are the output tokens."""
        return rated

    def draw(
        self,
        op: Ops,
        tokens: ir.Value,
        image: ir.Value,
        orders: tuple[TokenOrder, ...],
        finer: FinerFeatures | None,
    ) -> ir.Value:
        """The masks (B, 4, 4H, 4W) of rated prompts: upscaled image features times one generated filter per
        mask token."""
        upscaled, filters = self._upscaled(op, image, orders, finer), self._filters(op, tokens)
        logits = op.MatMul(upscaled, op.Transpose(filters, perm=[0, 2, 1]))  # B 16T 4
        # Moving a token's four logits at once, before they are parted, is four times as fast.
        logits = op.rearrange(logits, orders[0], raster(*orders[0].grid_hw))
        logits = op.Transpose(logits, perm=[0, 2, 1])
        self._tap(op, upscaled, filters, orders[0].grid_hw)
        return op.reshape(logits, (0, MASKS, *orders[0].grid_hw))

    def _upscaled(
        self, op: Ops, image: ir.Value, orders: tuple[TokenOrder, ...], finer: FinerFeatures | None
    ) -> ir.Value:
        """(B, T, C) -> (B, 16 T, C / 8) in the order of the first stage, finer features added on the way."""
        first, norm, second = (getattr(self.output_upscaling, index) for index in ("0", "1", "3"))
        x = self._doubled(op, image, first, orders[2], orders[1], finer and finer.stride8)
        x = op.LayerNormalization(
            x, op.weight("same", norm.weight), op.weight("same", norm.bias), axis=-1, epsilon=LAYER_NORM_EPS
        )
        x = op.Gelu(x)
        return op.Gelu(self._doubled(op, x, second, orders[1], orders[0], finer and finer.stride4))

    def _doubled(
        self,
        op: Ops,
        x: ir.Value,
        weights: Weights,
        order: TokenOrder,
        order_out: TokenOrder,
        finer: ir.Value | None,
    ) -> ir.Value:
        """2x2 stride-2 transposed convolution: (B, T, in) -> (B, 4 T, out), plus finer features."""
        grouped = order_out if order_out.grouped else cells(*order_out.grid_hw)
        out = int(weights.bias.shape[0])  # type: ignore[index]
        x = op.linear(op.rearrange(x, order, grouped.pooled()), op.weight("uncell_matrix", weights.weight))
        x = op.rearrange(op.reshape(x, (0, -1, out)), grouped, order_out)
        if finer is not None and op.folds:
            op.leave_out(weights.bias)  # the features carry it
        else:
            x = op.Add(x, op.weight("same", weights.bias))
        return x if finer is None else op.Add(x, finer)

    def _filters(self, op: Ops, mask_tokens: ir.Value) -> ir.Value:
        """The four hypernetworks at once, as one batched product per layer: (B, 4, C) -> (B, 4, C / 8)."""
        x = op.Transpose(mask_tokens, perm=[1, 0, 2])  # masks first: 4 B C
        networks = [network.linears for network in self._hypernetworks]
        for depth in range(3):
            weight = op.weight("stack_matrices", *(layers[depth].weight for layers in networks))
            bias = op.weight("stack", *(layers[depth].bias for layers in networks))
            x = op.Add(op.MatMul(x, weight), op.Unsqueeze(bias, _axis(op, 1)))
            x = op.Relu(x) if depth < 2 else x
        return op.Transpose(x, perm=[1, 0, 2])

    def _tap(self, op: Ops, upscaled: ir.Value, filters: ir.Value, grid_hw: tuple[int, int]) -> None:
        if op.dialect != "plain":
            return
        op.tap("output_upscaling.4", upscaled, (0, *grid_hw, -1), perm=[0, 3, 1, 2])
        for index in range(MASKS):
            op.tap(f"output_hypernetworks_mlps.{index}", _token(op, filters, index))


class ScoringMaskDecoder(MaskDecoder):
    """SAM 2's: finer image features join the upscaling, and a token of its own scores the object.

    Further keys `obj_score_token`, `pred_obj_score_head`, `conv_s0`, `conv_s1`.
    """

    def __init__(self, channels: int, mlp_dim: int) -> None:
        super().__init__(channels, mlp_dim)
        quarter, eighth = channels // 4, channels // 8
        self.obj_score_token = Weights(weight=[1, channels])
        self.conv_s0 = Weights(weight=[eighth, channels, 1, 1], bias=[eighth])
        self.conv_s1 = Weights(weight=[quarter, channels, 1, 1], bias=[quarter])
        self.pred_obj_score_head = MLP((channels, channels, channels, 1), "relu")
        self.finer_channels = eighth, quarter
        self._own = [self.obj_score_token, *self._own]

    @property
    def high_res(self) -> HighRes:
        """The convolutions of the two finer levels, each with the upscaling that its result is added to."""
        first, second = (getattr(self.output_upscaling, index) for index in ("0", "3"))
        return (self.conv_s0, second), (self.conv_s1, first)

    def _scored(self, op: Ops, rated: RatedValues, hs: ir.Value) -> RatedValues:
        score = self.pred_obj_score_head(op, _token(op, hs, 0))
        return RatedValues(op.Sigmoid(rated.iou), score, rated.tokens, rated.image)


def _token(op: Ops, tokens: ir.Value, index: int) -> ir.Value:
    """One of the tokens (B, K, C): (B, C)."""
    return op.Gather(tokens, op.constant(np.array(index)), axis=1)


def _axis(op: Ops, axis: int) -> ir.Value:
    return op.constant(np.array([axis]))
