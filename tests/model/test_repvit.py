"""RepViT as one convolution for each layer, against all of its branches and norms written out."""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from masklet import testing
from masklet.model import derive, repvit
from masklet.runtime.devices import find_device
from masklet.runtime.graph import write_stage
from masklet.runtime.session import Session

RELATIVE = 2e-5  # of the largest value: float32 sums in another order, through a whole network
SIZE = 64
CONFIG = testing.tiny_edgetam_config(SIZE)
BODY = "image_encoder.trunk.body"


@cache
def stage():
    return write_stage(CONFIG, "encode_image", SIZE, "plain")


@cache
def weights():
    return testing.lively_weights(stage().tensors)


def picture():
    return np.random.default_rng(1).standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)


def convolved(x, weight, stride=1):
    """x (in, H, W); weight (out, in or 1, k, k): one input channel for each output if 1."""
    side, pad = weight.shape[2], weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
    height, width = x.shape[1:]
    total = 0.0
    for row in range(side):
        for column in range(side):
            part = padded[:, row : row + height : stride, column : column + width : stride]
            kernel = weight[:, :, row, column]
            depthwise = kernel.shape[1] == 1 and len(x) == len(kernel)
            total = total + (kernel[:, :, None] * part if depthwise else np.tensordot(kernel, part, 1))
    return total


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


class Written:
    """The network as published, step by step, in float64."""

    def __init__(self):
        self.weights = {name: array.astype(np.float64) for name, array in weights().items()}

    def get(self, name):
        return self.weights[f"{BODY}.{name}"]

    def normed(self, x, name, stride=1):
        x = convolved(x, self.get(f"{name}.c.weight"), stride)
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self.get(f"{name}.bn.{part}")[:, None, None] for part in names)
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + shift

    def mlp(self, x, name):
        return x + self.normed(gelu(self.normed(x, f"{name}.conv1")), f"{name}.conv2")

    def block(self, x, name):
        mixer = f"{name}.token_mixer"
        x = self.normed(x, f"{mixer}.conv") + self.normed(x, f"{mixer}.conv1") + x
        if f"{BODY}.{name}.se.fc1.weight" in self.weights:
            gate = x.mean(axis=(1, 2))
            for layer in ("fc1", "fc2"):
                gate = self.get(f"{name}.se.{layer}.weight")[:, :, 0, 0] @ gate
                gate = gate + self.get(f"{name}.se.{layer}.bias")
                gate = np.maximum(gate, 0) if layer == "fc1" else 1 / (1 + np.exp(-gate))
            x = x * gate[:, None, None]
        return self.mlp(x, f"{name}.channel_mixer")

    def stages(self, image):
        x = self.normed(gelu(self.normed(image, "stem.conv1", 2)), "stem.conv2", 2)
        for index, depth in enumerate(CONFIG.trunk.depths):
            name = f"stages_{index}"
            if index:
                x = self.block(x, f"{name}.downsample.pre_block")
                x = self.normed(x, f"{name}.downsample.spatial_downsample", 2)
                x = self.mlp(
                    self.normed(x, f"{name}.downsample.channel_downsample"), f"{name}.downsample.ffn"
                )
            for position in range(depth):
                x = self.block(x, f"{name}.blocks.{position}")
            yield x


def test_the_trunk_equals_its_branches_written_out():
    session = Session(stage(), weights().__getitem__, find_device("cpu"), 1)
    image = picture()
    for index, expected in enumerate(Written().stages(image[0].astype(np.float64))):
        name = f"{BODY}.stages_{index}.blocks.{CONFIG.trunk.depths[index] - 1}"
        got = session.run({"image": image}, [name])[name].numpy()[0]
        np.testing.assert_allclose(
            got, expected, rtol=0, atol=RELATIVE * np.abs(expected).max(), err_msg=name
        )


def test_a_mixer_is_one_kernel():
    rng = np.random.default_rng(0)
    x, wide, point = (rng.standard_normal(shape) for shape in ((5, 7, 6), (5, 1, 3, 3), (5, 1, 1, 1)))
    norms = [[rng.uniform(0.5, 2, 5) for _ in range(4)] for _ in range(2)]  # scale, shift, mean, variance
    expected = x
    for weight, (scale, shift, mean, variance) in zip((wide, point), norms, strict=True):
        factor = (scale / np.sqrt(variance + 1e-5))[:, None, None]
        expected = expected + (convolved(x, weight) - mean[:, None, None]) * factor + shift[:, None, None]
    sources = [wide, norms[0][0], norms[0][3], point, norms[1][0], norms[1][3]]
    kernel = derive.compute("merged_weight", sources, {})
    bias = derive.compute("merged_bias", [*norms[0], *norms[1]], {})
    np.testing.assert_allclose(convolved(x, kernel) + bias[:, None, None], expected, atol=1e-5)


def test_each_layer_is_one_convolution():
    import onnx

    model = onnx.load_from_string(write_stage(CONFIG, "encode_image", SIZE, "fused").onnx)
    count = sum(node.op_type == "Conv" for node in model.graph.node)
    blocks = sum(CONFIG.trunk.depths) + 3  # those of a downsampling too
    excited = sum(-(-depth // 2) for depth in CONFIG.trunk.depths)
    assert count == 2 + 3 * blocks + 2 * excited + 3 * 4
    assert not any(node.op_type == "BatchNormalization" for node in model.graph.node)


def test_every_tensor_has_a_part_in_the_features():
    """Each changed alone changes the result: one that is read and lost would not."""
    fused = write_stage(CONFIG, "encode_image", SIZE, "fused")
    filled = testing.lively_weights(fused.tensors)
    names = [name for name in fused.tensors if "stages_2" in name or "stages_0" in name or "stem" in name]

    def features(changed):
        session = Session(fused, {**filled, **changed}.__getitem__, find_device("cpu"), 1)
        return session.run({"image": picture()})["embedding"].numpy()

    before = features({})
    for name in names[::3]:
        after = features({name: filled[name] + 0.3 * np.abs(filled[name])})
        assert np.abs(after - before).max() > 1e-4 * np.abs(before).max(), name


def test_squeezed_channels_are_multiples_of_eight():
    """The published sizes, of 48, 96, 192 and 384 channels; and one below half a step."""
    found = [repvit._nearest_multiple(channels / 4, 8) for channels in (48, 96, 192, 384, 8)]
    assert found == [16, 24, 48, 96, 8]
