"""The memory encoder: a frame's features and an object's mask as one memory (Ravi et al. 2024).

In: projected features of the frame (once for all objects) and mask logits of B objects. Out: memories (B, T,
M) in raster order. ConvNeXt blocks as in Liu et al. 2022, arXiv:2201.03545. That memories are kept as
bfloat16 is the pipeline's matter.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import (
    LAYER_NORM_EPS,
    LayerNorm,
    Linear,
    ModuleList,
    Ops,
    Parameter,
    Weights,
    pointwise,
)
from masklet.model.tokens import TokenOrder, raster

DOWNSAMPLINGS = 4  # stride 2 each: from the model's input to the stride of the embedding
FUSER_LAYERS = 2
MASK_SCALE, MASK_BIAS = 20.0, -10.0  # of mask probabilities


class MaskDownSampler(nn.Module):
    """(B, 1, S, S) -> (B, T, C), raster order. Keys `encoder.{0, 1, 3, 4, 6, 7, 9, 10, 12}`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.encoder = ModuleList()
        self._steps: list[tuple[Weights, Weights]] = []
        for step in range(DOWNSAMPLINGS):
            before, after = 4**step, 4 ** (step + 1)
            pair = Weights(weight=[after, before, 3, 3], bias=[after]), Weights(weight=[after], bias=[after])
            setattr(self.encoder, str(3 * step), pair[0])
            setattr(self.encoder, str(3 * step + 1), pair[1])
            self._steps.append(pair)
        last = Weights(weight=[channels, 4**DOWNSAMPLINGS, 1, 1], bias=[channels])
        setattr(self.encoder, str(3 * DOWNSAMPLINGS), last)

    def forward(self, op: Ops, mask: ir.Value) -> ir.Value:  # type: ignore[override]
        x = mask
        for index, (convolution, norm) in enumerate(self._steps):
            weight, bias = op.weight("same", convolution.weight), op.weight("same", convolution.bias)
            x = op.Conv(x, weight, bias, strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
            x = op.Transpose(x, perm=[0, 2, 3, 1])
            scale, shift = op.weight("same", norm.weight), op.weight("same", norm.bias)
            x = op.Gelu(op.LayerNormalization(x, scale, shift, axis=-1, epsilon=LAYER_NORM_EPS))
            if index + 1 < DOWNSAMPLINGS:
                x = op.Transpose(x, perm=[0, 3, 1, 2])
        last = getattr(self.encoder, str(3 * DOWNSAMPLINGS))
        return pointwise(op, op.reshape(x, (0, -1, 4**DOWNSAMPLINGS)), last)


class CXBlock(nn.Module):
    """ConvNeXt block on tokens (B, T, C), raster order. Keys `dwconv`, `norm`, `pwconv1/2`, `gamma`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = Weights(weight=[channels, 1, 7, 7], bias=[channels])
        self.norm = LayerNorm(channels)
        self.pwconv1 = Linear(channels, 4 * channels)
        self.pwconv2 = Linear(4 * channels, channels)
        self.gamma = Parameter([channels])
        self._channels = channels

    def forward(self, op: Ops, x: ir.Value, grid_hw: tuple[int, int]) -> ir.Value:  # type: ignore[override]
        image = op.reshape(op.Transpose(x, perm=[0, 2, 1]), (0, self._channels, *grid_hw))
        weight, bias = op.weight("same", self.dwconv.weight), op.weight("same", self.dwconv.bias)
        image = op.Conv(image, weight, bias, pads=[3, 3, 3, 3], kernel_shape=[7, 7], group=self._channels)
        y = op.Transpose(op.reshape(image, (0, self._channels, -1)), perm=[0, 2, 1])
        y = self.pwconv1(op, self.norm(op, y), gelu=True)
        if not op.folds:
            return op.Add(x, op.Mul(self.pwconv2(op, y), op.weight("same", self.gamma)))
        weight, bias = (
            op.weight("scaled_rows", part, self.gamma) for part in (self.pwconv2.weight, self.pwconv2.bias)
        )
        return op.Add(x, op.linear(y, weight, bias))


class Fuser(nn.Module):
    """(B, T, C) -> (B, T, C). Keys `layers.{0, 1}`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = ModuleList([CXBlock(channels) for _ in range(FUSER_LAYERS)])

    def forward(self, op: Ops, x: ir.Value, grid_hw: tuple[int, int]) -> ir.Value:  # type: ignore[override]
        for index, layer in enumerate(self.layers):
            x = layer(op, x, grid_hw)
            op.tap(f"layers.{index}", x)
        return x


class MemoryEncoder(nn.Module):
    """Keys `mask_downsampler`, `pix_feat_proj`, `fuser`, `out_proj`."""

    def __init__(self, channels: int, memory_channels: int) -> None:
        super().__init__()
        self.mask_downsampler = MaskDownSampler(channels)
        self.pix_feat_proj = Weights(weight=[channels, channels, 1, 1], bias=[channels])
        self.fuser = Fuser(channels)
        self.out_proj = Weights(weight=[memory_channels, channels, 1, 1], bias=[memory_channels])

    def begin(self, op: Ops, features: ir.Value, order: TokenOrder) -> ir.Value:
        """The frame's share, for all objects: features (1, T, C) in any order -> (1, T, C), raster order."""
        return pointwise(op, op.rearrange(features, order, raster(*order.grid_hw)), self.pix_feat_proj)

    def forward(  # type: ignore[override]
        self, op: Ops, pixels: ir.Value, logits: ir.Value, binary: ir.Value, grid_hw: tuple[int, int]
    ) -> ir.Value:
        """`pixels` of `begin`; `logits` (B, 1, S / 4, S / 4); `binary` (1,) bool: the mask is cut at zero, as
        where a user prompted, instead of softened -> (B, T, M)."""
        scales = op.constant(np.array([1, 1, 4, 4], np.float32))
        x = op.Resize(logits, None, scales, mode="linear", coordinate_transformation_mode="half_pixel")
        cut = op.Where(op.Greater(x, op.constant(0.0)), op.constant(1.0), op.constant(0.0))
        x = op.Where(binary, cut, op.Sigmoid(x))
        x = op.Add(op.Mul(x, op.constant(MASK_SCALE)), op.constant(MASK_BIAS))

        x = op.Add(pixels, self.mask_downsampler(op, x))
        return pointwise(op, self.fuser(op, x, grid_hw), self.out_proj)
