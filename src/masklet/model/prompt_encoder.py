"""Prompts as embeddings: points and box corners as sparse tokens, a mask as a dense map.

In: coordinates (x, y) in pixels of the square model input, labels, low-resolution mask logits. Out: tokens. A
box is two points with labels 2 and 3; label -1 is padding. Which points are given, and that a padding point
is appended, is decided in `pipeline.prompts`. Random Fourier features: Tancik et al. 2020, arXiv:2006.10739.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import LAYER_NORM_EPS, ModuleList, Ops, Weights, pointwise
from masklet.model.tokens import TokenOrder, cells, raster

MASK_CHANNELS = 16
POINT_KINDS = 4  # background, foreground, box corner top left, bottom right


class PositionEmbeddingRandom(nn.Module):
    """Key `positional_encoding_gaussian_matrix` (2, C / 2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.positional_encoding_gaussian_matrix = nn.Parameter([2, channels // 2])


class PromptEncoder(nn.Module):
    """Keys `pe_layer`, `point_embeddings.{0..3}`, `not_a_point_embed`, `mask_downscaling`, ..."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = MASK_CHANNELS // 4
        self.pe_layer = PositionEmbeddingRandom(channels)
        self._kinds = [Weights(weight=[1, channels]) for _ in range(POINT_KINDS)]
        self.point_embeddings = ModuleList([*self._kinds])
        self.not_a_point_embed = Weights(weight=[1, channels])
        self.no_mask_embed = Weights(weight=[1, channels])
        self.mask_downscaling = ModuleList()
        for index, shapes in {
            0: {"weight": [quarter, 1, 2, 2], "bias": [quarter]},
            1: {"weight": [quarter], "bias": [quarter]},
            3: {"weight": [MASK_CHANNELS, quarter, 2, 2], "bias": [MASK_CHANNELS]},
            4: {"weight": [MASK_CHANNELS], "bias": [MASK_CHANNELS]},
            6: {"weight": [channels, MASK_CHANNELS, 1, 1], "bias": [channels]},
        }.items():
            setattr(self.mask_downscaling, str(index), Weights(**shapes))
        self._channels = channels

    def points(self, op: Ops, coords: ir.Value, labels: ir.Value, image_size: int) -> ir.Value:
        """(B, N, 2) pixels of the model input and (B, N) labels -> (B, N, C)."""
        # Pixel centres, to [-1, 1], random frequencies.
        unit = op.Div(op.Add(coords, op.constant(0.5)), op.constant(float(image_size)))
        unit = op.Sub(op.Mul(unit, op.constant(2.0)), op.constant(1.0))
        gaussian = op.weight("same", self.pe_layer.positional_encoding_gaussian_matrix)
        angles = op.Mul(op.MatMul(unit, gaussian), op.constant(2 * np.pi))
        features = op.Concat(op.Sin(angles), op.Cos(angles), axis=-1)  # B N C

        # Padding has an embedding of its own and no position.
        kinds = [self.not_a_point_embed.weight, *(kind.weight for kind in self._kinds)]
        embedding = op.Gather(op.weight("flat", *kinds), op.Add(labels, op.constant(np.array(1))), axis=0)
        real = op.Unsqueeze(op.GreaterOrEqual(labels, op.constant(np.array(0))), op.constant(np.array([-1])))
        return op.Add(op.Where(real, features, op.constant(0.0)), embedding)

    def mask(self, op: Ops, logits: ir.Value, orders: tuple[TokenOrder, ...]) -> ir.Value:
        """Mask logits (B, 1, 4 H, 4 W) -> (B, H * W, C) in the order of the third stage.

        Two 2x2 stride-2 convolutions are products over the four tokens of each cell.
        """
        x = op.reshape(logits, (0, -1, 1))
        x = self._downscale(op, op.rearrange(x, raster(*orders[0].grid_hw), orders[0]), orders[0], "0", "1")
        x = self._downscale(op, op.rearrange(x, *_after(orders[0], orders[1])), orders[1], "3", "4")
        x = op.rearrange(x, *_after(orders[1], orders[2]))
        return pointwise(op, x, getattr(self.mask_downscaling, "6"))

    def _downscale(self, op: Ops, x: ir.Value, order: TokenOrder, conv: str, norm: str) -> ir.Value:
        """2x2 stride-2 convolution, LayerNorm, GELU: (B, T, in) -> (B, T / 4, out)."""
        convolution, affine = getattr(self.mask_downscaling, conv), getattr(self.mask_downscaling, norm)
        out, size_in = (int(size) for size in convolution.weight.shape[:2])
        x = op.rearrange(x, order, order if order.grouped else cells(*order.grid_hw))
        x = op.linear(op.reshape(x, (0, -1, 4 * size_in)), op.weight("cell_matrix", convolution.weight))
        x = op.Add(x, op.weight("same", convolution.bias))
        scale, shift = op.weight("same", affine.weight), op.weight("same", affine.bias)
        x = op.LayerNormalization(x, scale, shift, axis=-1, epsilon=LAYER_NORM_EPS)
        return op.Gelu(op.reshape(x, (0, -1, out)))

    def no_mask(self, op: Ops) -> ir.Value:
        """What stands for the dense map when no mask is given: (1, C)."""
        return op.weight("same", self.no_mask_embed.weight)


def _after(order: TokenOrder, order_out: TokenOrder) -> tuple[TokenOrder, TokenOrder]:
    """The order that pooling cells of `order` leaves, and the one wanted."""
    return (order if order.grouped else cells(*order.grid_hw)).pooled(), order_out
