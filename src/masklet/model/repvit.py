"""RepViT, EdgeTAM's image trunk (Wang et al. 2023, arXiv:2307.09283), re-parameterised as weights are bound.

In: a normalised picture (1, 3, S, S). Out: the tokens of each of the four stages (1, T, C) in the given
orders. The checkpoint's tensors stay as published: a convolution and the batch norm behind it become one
convolution, and so do the three branches of a depthwise mixer (Ding et al. 2021, arXiv:2101.03697), exactly,
through recipes of `derive`. All dialects have this one form: what they differ in lies behind the trunk.
Squeeze and excitation as in Hu et al. 2018, arXiv:1709.01507.
"""

from __future__ import annotations

import onnx_ir as ir
from onnxscript import nn

from masklet.model import tokens
from masklet.model.config import RepVitConfig
from masklet.model.layers import ModuleList, Ops, Parameter, Weights
from masklet.model.tokens import TokenOrder

KERNEL = 3  # side of every convolution that is not 1x1
MLP_RATIO = 2
EXCITATION_RATIO, EXCITATION_MULTIPLE = 4, 8  # channels per squeezed channel, whose count is a multiple of 8


class BatchNorm(Weights):
    """Keys `weight`, `bias`, `running_mean`, `running_var` (C)."""

    running_mean: Parameter
    running_var: Parameter

    def __init__(self, channels: int) -> None:
        names = "weight", "bias", "running_mean", "running_var"
        super().__init__(**{name: [channels] for name in names})


class ConvNorm(nn.Module):
    """A convolution without bias and a batch norm, as one convolution. (1, in, H, W) -> (1, out, H', W').

    Keys `c.weight`, `bn`.
    """

    def __init__(
        self, size_in: int, size_out: int, kernel: int = 1, *, stride: int = 1, depthwise: bool = False
    ) -> None:
        super().__init__()
        self.c = Weights(weight=[size_out, 1 if depthwise else size_in, kernel, kernel])
        self.bn = BatchNorm(size_out)
        self._shape = {
            "kernel_shape": [kernel, kernel],
            "strides": [stride, stride],
            "pads": [kernel // 2] * 4,
            "group": size_in if depthwise else 1,
        }

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        weight = op.weight("normed_weight", self.c.weight, self.bn.weight, self.bn.running_var)
        return op.Conv(x, weight, op.weight("normed_bias", *self.shift()), **self._shape)

    def shift(self) -> tuple:
        """What the bias is made of."""
        return self.bn.weight, self.bn.bias, self.bn.running_mean, self.bn.running_var


class Mixer(nn.Module):
    """Depthwise 3x3 and 1x1 convolutions, each with a norm, and the input itself: one 3x3 convolution.

    (1, C, H, W) -> (1, C, H, W). Keys `conv`, `conv1`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = ConvNorm(channels, channels, KERNEL, depthwise=True)
        self.conv1 = ConvNorm(channels, channels, depthwise=True)
        self._channels = channels

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        branches = self.conv, self.conv1
        kernels = [p for b in branches for p in (b.c.weight, b.bn.weight, b.bn.running_var)]
        weight = op.weight("merged_weight", *kernels)
        bias = op.weight("merged_bias", *self.conv.shift(), *self.conv1.shift())
        return op.Conv(x, weight, bias, kernel_shape=[KERNEL] * 2, pads=[1] * 4, group=self._channels)


class Excitation(nn.Module):
    """Every channel times a gate that all channels' means decide. (1, C, H, W) -> (1, C, H, W).

    Keys `fc1`, `fc2`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = _nearest_multiple(channels / EXCITATION_RATIO, EXCITATION_MULTIPLE)
        self.fc1 = Weights(weight=[squeezed, channels, 1, 1], bias=[squeezed])
        self.fc2 = Weights(weight=[channels, squeezed, 1, 1], bias=[channels])

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        gate = op.Relu(self._linear(op, op.GlobalAveragePool(x), self.fc1))
        return op.Mul(x, op.Sigmoid(self._linear(op, gate, self.fc2)))

    def _linear(self, op: Ops, x: ir.Value, layer: Weights) -> ir.Value:
        return op.Conv(x, op.weight("same", layer.weight), op.weight("same", layer.bias), kernel_shape=[1, 1])


class ChannelMixer(nn.Module):
    """1x1 convolutions with a GELU between, and a residual. (1, C, H, W) -> (1, C, H, W).

    Keys `conv1`, `conv2`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, MLP_RATIO * channels)
        self.conv2 = ConvNorm(MLP_RATIO * channels, channels)

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        return op.Add(x, self.conv2(op, op.Gelu(self.conv1(op, x))))


class RepVitBlock(nn.Module):
    """(1, C, H, W) -> (1, C, H, W). Keys `token_mixer`, `se` (some blocks), `channel_mixer`."""

    def __init__(self, channels: int, *, excited: bool) -> None:
        super().__init__()
        self.token_mixer = Mixer(channels)
        self.se = Excitation(channels) if excited else None
        self.channel_mixer = ChannelMixer(channels)

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        x = self.token_mixer(op, x)
        x = x if self.se is None else self.se(op, x)
        x = self.channel_mixer(op, x)
        op.tap("", x)
        return x


class Downsample(nn.Module):
    """(1, in, H, W) -> (1, out, H / 2, W / 2). Keys `pre_block`, `*_downsample`, `ffn`."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.pre_block = RepVitBlock(size_in, excited=False)
        self.spatial_downsample = ConvNorm(size_in, size_in, KERNEL, stride=2, depthwise=True)
        self.channel_downsample = ConvNorm(size_in, size_out)
        self.ffn = ChannelMixer(size_out)

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        x = self.spatial_downsample(op, self.pre_block(op, x))
        x = self.ffn(op, self.channel_downsample(op, x))
        op.tap("", x)
        return x


class RepVitStage(nn.Module):
    """Keys `downsample` (all stages but the first), `blocks`."""

    def __init__(self, size_in: int, size_out: int, depth: int, *, first: bool) -> None:
        super().__init__()
        self.downsample = None if first else Downsample(size_in, size_out)
        self.blocks = ModuleList([RepVitBlock(size_out, excited=index % 2 == 0) for index in range(depth)])

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        x = x if self.downsample is None else self.downsample(op, x)
        for block in self.blocks:
            x = block(op, x)
        return x


class Stem(nn.Module):
    """(1, 3, S, S) -> (1, C, S / 4, S / 4). Keys `conv1`, `conv2`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, channels // 2, KERNEL, stride=2)
        self.conv2 = ConvNorm(channels // 2, channels, KERNEL, stride=2)

    def forward(self, op: Ops, image: ir.Value) -> ir.Value:  # type: ignore[override]
        x = self.conv2(op, op.Gelu(self.conv1(op, image)))
        op.tap("", x)
        return x


class RepVitBody(nn.Module):
    """Keys `stem`, `stages_0` to `stages_3`."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        dims = config.embed_dims
        self.stem = Stem(dims[0])
        self._stages = [
            RepVitStage(before, dim, depth, first=index == 0)
            for index, (before, dim, depth) in enumerate(
                zip((dims[0], *dims), dims, config.depths, strict=False)
            )
        ]
        for index, stage in enumerate(self._stages):
            setattr(self, f"stages_{index}", stage)

    def forward(self, op: Ops, image: ir.Value) -> list[ir.Value]:  # type: ignore[override]
        x, outputs = self.stem(op, image), []
        for stage in self._stages:
            x = stage(op, x)
            outputs.append(x)
        return outputs


class RepVit(nn.Module):
    """The trunk. (1, 3, S, S) -> four times (1, T, C). Keys `body`."""

    def __init__(self, config: RepVitConfig) -> None:
        super().__init__()
        self.body = RepVitBody(config)
        self._dims = config.embed_dims

    def forward(  # type: ignore[override]
        self, op: Ops, image: ir.Value, orders: tuple[TokenOrder, ...], block: int
    ) -> list[ir.Value]:
        """`orders`: one per stage; `block`, that of a nested first stage, decides nothing here."""
        outputs = []
        for x, channels, order in zip(self.body(op, image), self._dims, orders, strict=True):
            x = op.reshape(op.Transpose(x, perm=[0, 2, 3, 1]), (1, -1, channels))
            outputs.append(op.rearrange(x, tokens.raster(*order.grid_hw), order))
        return outputs


def _nearest_multiple(value: float, step: int) -> int:
    """The multiple of `step` that is nearest to `value`, halves up; one `step` at least."""
    return max(step, int(value + step / 2) // step * step)
