"""SAM 2's mask decoder: four mask candidates, their predicted IoU and an object score from one set of
prompts.

In: image features and prompt embeddings as tokens. Out: all four candidates (`DecodedValues`); which of them
is used (multimask, stability) is policy and decided in `pipeline.prompts`. The two 2x2 stride-2 transposed
convolutions are products that make four tokens from one, which in grouped order already stand where they
belong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import LAYER_NORM_EPS, MLP, ModuleList, Ops, Weights
from masklet.model.neck import HighRes, Pyramid
from masklet.model.tokens import TokenOrder, cells, gather_index, raster
from masklet.model.two_way import TwoWayTransformer

MASKS = 4
IOU_CHANNELS = 256


@dataclass(frozen=True)
class DecodedValues:
    """What one decoding gives for B prompts; mask 0 is the single-mask token's."""

    logits: ir.Value  # B 4 4H 4W, raster
    iou: ir.Value  # B 4, in [0, 1]
    object_score: ir.Value  # B 1, logit
    tokens: ir.Value  # B 4 C, the mask tokens


class MaskDecoder(nn.Module):
    """Keys `transformer`, `*_token(s)`, `output_upscaling`, `conv_s0/1`, `output_hypernetworks_mlps`, ..."""

    def __init__(self, channels: int, mlp_dim: int) -> None:
        super().__init__()
        quarter, eighth = channels // 4, channels // 8
        self.transformer = TwoWayTransformer(channels, mlp_dim)
        self.obj_score_token = Weights(weight=[1, channels])
        self.iou_token = Weights(weight=[1, channels])
        self.mask_tokens = Weights(weight=[MASKS, channels])
        self.conv_s0 = Weights(weight=[eighth, channels, 1, 1], bias=[eighth])
        self.conv_s1 = Weights(weight=[quarter, channels, 1, 1], bias=[quarter])
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
        self.pred_obj_score_head = MLP((channels, channels, channels, 1), "relu")
        self._channels = channels

    def forward(  # type: ignore[override]
        self,
        op: Ops,
        features: Pyramid,
        sparse: ir.Value,
        dense: ir.Value,
        image_pe: ir.Value,
        orders: tuple[TokenOrder, ...],
    ) -> DecodedValues:
        """`sparse` (B, N, C); `dense` (1 or B, 1 or T, C); `image_pe` (T, C)."""
        # Output tokens before prompt tokens, the image with its dense prompt.
        own = op.weight("flat", self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight)
        batch = op.Shape(sparse, start=0, end=1)
        own = op.Expand(own, op.Concat(batch, op.constant(np.array([1, 1])), axis=0))
        points = op.Concat(own, sparse, axis=1)
        image = op.Add(features.stride16, dense)
        image = op.Expand(image, op.Concat(batch, op.constant(np.array([1, 1])), axis=0))

        hs, image = self.transformer(op, points, image, image_pe)
        mask_tokens = op.Slice(
            hs, op.constant(np.array([2])), op.constant(np.array([2 + MASKS])), _axis(op, 1)
        )

        # Masks: upscaled image features times one generated filter per mask token.
        upscaled, filters = self._upscaled(op, image, features, orders), self._filters(op, mask_tokens)
        logits = op.MatMul(upscaled, op.Transpose(filters, perm=[0, 2, 1]))  # B 16T 4
        height, width = orders[0].grid_hw
        logits = op.Transpose(logits, perm=[0, 2, 1])
        logits = self._raster(op, logits, orders[0])
        logits = op.reshape(logits, (0, MASKS, height, width))

        iou = op.Sigmoid(self.iou_prediction_head(op, op.Gather(hs, op.constant(np.array(1)), axis=1)))
        score = self.pred_obj_score_head(op, op.Gather(hs, op.constant(np.array(0)), axis=1))
        decoded = DecodedValues(logits, iou, score, mask_tokens)
        self._tap(op, decoded, upscaled, filters, (height, width))
        return decoded

    @property
    def high_res(self) -> HighRes:
        """The convolutions of the two finer levels, each with the upscaling that its result is added to."""
        first, second = (getattr(self.output_upscaling, index) for index in ("0", "3"))
        return (self.conv_s0, second), (self.conv_s1, first)

    def _upscaled(
        self, op: Ops, image: ir.Value, features: Pyramid, orders: tuple[TokenOrder, ...]
    ) -> ir.Value:
        """(B, T, C) -> (B, 16 T, C / 8) in the order of the first stage, finer features added on the way."""
        first, norm, second = (getattr(self.output_upscaling, index) for index in ("0", "1", "3"))
        x = op.Add(self._doubled(op, image, first, orders[2], orders[1]), features.stride8)
        x = op.LayerNormalization(
            x, op.weight("same", norm.weight), op.weight("same", norm.bias), axis=-1, epsilon=LAYER_NORM_EPS
        )
        x = op.Gelu(x)
        return op.Gelu(op.Add(self._doubled(op, x, second, orders[1], orders[0]), features.stride4))

    def _doubled(
        self, op: Ops, x: ir.Value, weights: Weights, order: TokenOrder, order_out: TokenOrder
    ) -> ir.Value:
        """2x2 stride-2 transposed convolution: (B, T, in) -> (B, 4 T, out)."""
        grouped = order_out if order_out.grouped else cells(*order_out.grid_hw)
        out = int(weights.bias.shape[0])  # type: ignore[index]
        x = op.linear(op.rearrange(x, order, grouped.pooled()), op.weight("uncell_matrix", weights.weight))
        x = op.reshape(x, (0, -1, out))
        if op.folds:
            op.leave_out(weights.bias)  # the features that are added next carry it
        else:
            x = op.Add(x, op.weight("same", weights.bias))
        return op.rearrange(x, grouped, order_out)

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

    def _tap(
        self, op: Ops, decoded: DecodedValues, upscaled: ir.Value, filters: ir.Value, grid_hw: tuple[int, int]
    ) -> None:
        if op.dialect != "plain":
            return
        op.tap("output_upscaling.4", upscaled, (0, *grid_hw, -1), perm=[0, 3, 1, 2])
        for index in range(MASKS):
            op.tap(
                f"output_hypernetworks_mlps.{index}", op.Gather(filters, op.constant(np.array(index)), axis=1)
            )
        op.tap("all_masks", decoded.logits)
        op.tap("all_ious", decoded.iou)
        op.tap("mask_tokens", decoded.tokens)
        op.tap("object_score_logits", decoded.object_score)

    def _raster(self, op: Ops, logits: ir.Value, order: TokenOrder) -> ir.Value:
        """(B, 4, T) from the given order to raster."""
        index = gather_index(order, raster(*order.grid_hw))
        return logits if index is None else op.Gather(logits, op.constant(index), axis=2)


def _axis(op: Ops, axis: int) -> ir.Value:
    return op.constant(np.array([axis]))
