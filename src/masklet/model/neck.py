"""The feature pyramid between trunk and decoder, and the image encoder that joins trunk and neck.

In: the trunk's four stages as tokens, finest first. Out: the three levels that SAM 2 uses, as tokens (1, T,
C): strides 4 and 8 lateral only, stride 16 with stride 32 added by nearest upsampling (in grouped order: each
token four times).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model import tokens
from masklet.model.layers import ModuleList, Ops, Weights, pointwise
from masklet.model.tokens import TokenOrder


@dataclass(frozen=True)
class Pyramid:
    """Image features as tokens in the orders of the first three stages."""

    stride4: ir.Value  # 1 T C/8
    stride8: ir.Value  # 1 T/4 C/4
    stride16: ir.Value  # 1 T/16 C


HighRes = tuple[tuple[Weights, Weights], tuple[Weights, Weights]]


class Lateral(nn.Module):
    """One level's 1x1 convolution. Keys `conv.weight`, `conv.bias`."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.conv = Weights(weight=[size_out, size_in, 1, 1], bias=[size_out])


class FpnNeck(nn.Module):
    """Four stages -> `Pyramid`. Keys `convs.{i}.conv`, coarsest level first.

    `high_res` are the decoder's two 1x1 convolutions that follow on strides 4 and 8, each with the upscaling
    that its result is added to: the pair folds into one, and takes over the upscaling's bias.
    """

    def __init__(self, dims: Sequence[int], channels: int) -> None:
        """`dims` are the stages' channels."""
        super().__init__()
        self.convs = ModuleList([Lateral(dim, channels) for dim in reversed(dims)])
        self._channels = channels

    def forward(  # type: ignore[override]
        self,
        op: Ops,
        stages: list[ir.Value],
        orders: tuple[TokenOrder, ...],
        high_res: HighRes,
    ) -> Pyramid:
        lateral = [level.conv for level in self.convs][::-1]  # type: ignore[union-attr]
        fine = [
            pointwise(op, x, conv, then, added_to=upscaling)
            for x, conv, (then, upscaling) in zip(stages, lateral, high_res, strict=False)
        ]

        coarse = self._upsampled(op, pointwise(op, stages[3], lateral[3]), orders[3], orders[2])
        x = op.Add(pointwise(op, stages[2], lateral[2]), coarse)
        self._tap(op, stages, lateral, x, orders)
        return Pyramid(fine[0], fine[1], x)

    def _upsampled(self, op: Ops, x: ir.Value, order: TokenOrder, order_out: TokenOrder) -> ir.Value:
        """Nearest upsampling by two: (1, T, C) -> (1, 4 T, C)."""
        grouped = order_out if order_out.grouped else tokens.cells(*order_out.grid_hw)
        x = op.rearrange(x, order, grouped.pooled())
        x = op.Expand(op.reshape(x, (1, -1, 1, self._channels)), op.constant(np.array([1, 1, 4, 1])))
        return op.rearrange(op.reshape(x, (1, -1, self._channels)), grouped, order_out)

    def _tap(self, op: Ops, stages: list, lateral: list, x: ir.Value, orders: tuple[TokenOrder, ...]) -> None:
        if op.dialect != "plain":
            return
        finest, fine, coarse = (pointwise(op, stages[i], lateral[i]) for i in (0, 1, 3))
        for index, level in enumerate([finest, fine, x, coarse]):
            op.tap(str(index), level, (1, *orders[index].grid_hw, self._channels), perm=[0, 3, 1, 2])


class ImageEncoder(nn.Module):
    """(1, 3, S, S) -> `Pyramid`. Keys `trunk`, `neck`.

    `trunk` makes stages of `dims` channels of a picture, token orders, and the block of the first one.
    """

    def __init__(self, trunk: nn.Module, dims: Sequence[int], channels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.neck = FpnNeck(dims, channels)

    def forward(  # type: ignore[override]
        self,
        op: Ops,
        image: ir.Value,
        orders: tuple[TokenOrder, ...],
        block: int,
        high_res: HighRes,
    ) -> Pyramid:
        return self.neck(op, self.trunk(op, image, orders, block), orders, high_res)
