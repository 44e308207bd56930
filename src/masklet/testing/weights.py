"""Seeded "lively" weights, and checkpoints made of them.

In: tensor names and shapes, or a configuration. Out: numpy arrays or a file. Knows nothing about pictures.

Randomly initialised reference models have zero positional tables and unit norms, which hide bugs: a table
that is added in the wrong place changes nothing. `lively_weights` therefore gives every tensor a value that
matters, at a scale that keeps activations sane through the deepest trunk, so that masks are neither empty nor
full.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from masklet.errors import InputError
from masklet.testing.stream import raw_words

if TYPE_CHECKING:
    from masklet.families.edgetam import EdgeTamConfig
    from masklet.families.family import Config
    from masklet.families.sam1 import Sam1Config
    from masklet.families.sam2 import Sam2Config

# A sum of four uniform 16-bit words: mean 4 * 65535 / 2, variance 4 * (65536^2 - 1) / 12. Near enough to a
# normal (excess kurtosis -0.3, nothing beyond 3.5 standard deviations), and exact in float32.
_SUM_MEAN = np.float32(4 * 65535 / 2)
_SUM_STD = np.float32(math.sqrt(4 * (65536.0**2 - 1) / 12))

# The last layers of the hypernetworks set the spread of the mask logits. Trained models have 4 to 8: some
# logits exceed the clamp at +-32. The single mask's (token 0) is smaller, so that its stability falls on both
# sides of the threshold 0.98. Given for 32 output channels; logits are sums over these channels, so fewer of
# them get more.
_SINGLE_MASK_GAIN, _MULTIMASK_GAIN, _GAIN_CHANNELS = 1.25, 2.0, 32

# With unit gains, attention mixes thousands of memory tokens nearly evenly: exchanging two memories changes a
# mask less than rounding does. Sharper queries look at few tokens, sharper times tell pointers apart.
_MEMORY_QUERY_GAIN, _POINTER_TIME_GAIN = 3.0, 4.0

# RepViT has no norm behind its sums: with unit gains they grow a thousandfold through its blocks.
_BRANCH_GAIN = 0.5

_RANDOM_FOURIER = re.compile(r"(^|\.)positional_encoding_gaussian_matrix$")
_TABLE = re.compile(
    r"(^|\.)(pos_embed|pos_embed_window|rel_pos_[hw]|maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial"
    r"|latents|latents_2d|(point_embeddings\.\d+|not_a_point_embed|no_mask_embed|iou_token|mask_tokens|obj_score_token)\.weight)$"
)
_TRANSPOSED_CONV = re.compile(r"(^|\.)output_upscaling\.[03]\.weight$")
_MEMORY_QUERY = re.compile(r"(^|\.)cross_attn_image\.q_proj\.weight$")
_POINTER_TIME = re.compile(r"(^|\.)obj_ptr_tpos_proj\.weight$")
_HYPERNETWORK_OUT = re.compile(r"(^|\.)output_hypernetworks_mlps\.(\d+)\.layers\.2\.weight$")
_BRANCH = re.compile(r"(^|\.)(token_mixer\.conv1?\.c|(channel_mixer|ffn)\.conv2\.c|se\.fc2)\.weight$")
_OBJECT_SCORE_BIAS = re.compile(r"(^|\.)pred_obj_score_head\.(layers\.2\.)?bias$")


def lively_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0, *, object_score_bias: float | None = None
) -> dict[str, np.ndarray]:
    """Seeded float32 weights for tensors of a SAM or SAM 2 checkpoint, by Meta's names.

    Each tensor depends on `seed`, its own name and its own shape only: neither order nor company matters, so
    a part of a model gets the same values as the whole. `object_score_bias` replaces the bias of the object
    score's last layer: +5 makes an object present for every prompt, -5 absent.

    Raises `InputError` for a tensor whose role its name and shape do not tell.
    """
    weights = {}
    for name, shape in shapes.items():
        shape = tuple(shape)
        mean, std = _mean_and_std(name, shape)
        if object_score_bias is not None and _OBJECT_SCORE_BIAS.search(name):
            weights[name] = np.full(shape, object_score_bias, np.float32)
        else:
            weights[name] = np.float32(mean) + np.float32(std) * _normal(f"{seed}:{name}", shape)
    return weights


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """A checksum of float32 tensors and their names, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
        digest.update(np.ascontiguousarray(weights[name], "<f4").tobytes())
    return digest.hexdigest()


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The distribution of one tensor, from its role."""
    if _RANDOM_FOURIER.search(name):
        return 0.0, 1.0
    if _TABLE.search(name):
        return 0.0, 0.3
    if name.endswith(".gamma"):  # layer scale
        return 0.5, 0.1
    if name.endswith((".bias", ".bn.running_mean")):
        return 0.0, 0.1
    if name.endswith(".bn.running_var"):
        return 1.0, 0.15
    if name.endswith(".weight") and len(shape) == 1:  # normalisation
        return 1.0, 0.15
    if name.endswith(".weight") and len(shape) >= 2:
        # A transposed convolution whose stride is its kernel size sums over its input channels only, and has
        # them first.
        fan_in = shape[0] if _TRANSPOSED_CONV.search(name) else math.prod(shape[1:])
        return 0.0, _gain(name, shape[0]) / math.sqrt(fan_in)
    raise InputError(
        f"no lively fill is known for the tensor {name!r} of shape {shape}; use Meta's SAM 2 keys, such as"
        " 'image_encoder.trunk.blocks.0.attn.qkv.weight'"
    )


def _gain(name: str, channels: int) -> float:
    if _MEMORY_QUERY.search(name):
        return _MEMORY_QUERY_GAIN
    if _POINTER_TIME.search(name):
        return _POINTER_TIME_GAIN
    if _BRANCH.search(name):
        return _BRANCH_GAIN
    found = _HYPERNETWORK_OUT.search(name)
    if not found:
        return 1.0
    return (_SINGLE_MASK_GAIN if found[2] == "0" else _MULTIMASK_GAIN) * math.sqrt(_GAIN_CHANNELS / channels)


def _normal(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values of mean 0 and standard deviation 1, fixed by `key`."""
    words = raw_words(key, math.prod(shape)).view("<u2")
    total = np.add(words[0::4], words[1::4], dtype=np.uint32)
    total += words[2::4]
    total += words[3::4]
    return ((total.astype(np.float32) - _SUM_MEAN) / _SUM_STD).reshape(shape)


def sampled(array: np.ndarray, limit: int) -> np.ndarray:
    """`array` itself if it has at most `limit` elements, else `limit` of them, flat, at positions that its
    size fixes.

    Expected outputs of large intermediates are stored this way: the positions (multiples of the golden ratio,
    modulo the size) spread evenly over the tensor, and no short period of rows, windows or channels escapes
    them.
    """
    if array.size <= limit:
        return array
    fraction = (np.arange(limit, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return array.reshape(-1)[(fraction * np.uint64(array.size)) >> np.uint64(32)]


def tiny_config(version: str = "2.1", image_size: int = 128) -> Sam2Config:
    """A SAM 2 network small enough for tests: padded windows, global blocks and every kind of layer, 0.5 M
    parameters."""
    from masklet.families.sam2 import Sam2Config
    from masklet.model.config import HieraConfig

    trunk = HieraConfig(16, 1, (1, 2, 3, 1), (4,), (8, 4, 14, 7), (7, 7))
    return Sam2Config(version, trunk, 64, 16, 2048, 4, image_size)


def tiny_sam1_config(image_size: int = 128) -> Sam1Config:
    """A SAM network small enough for tests: padded windows and global blocks, 0.4 M parameters."""
    from masklet.families.sam1 import Sam1Config
    from masklet.model.config import VitConfig

    return Sam1Config(VitConfig(32, 4, 2, (1, 3), 3), 64, 256, image_size)


def tiny_edgetam_config(image_size: int = 128) -> EdgeTamConfig:
    """An EdgeTAM network small enough for tests: every kind of block, 16 + 16 latents, 0.3 M parameters."""
    from masklet.families.edgetam import EdgeTamConfig
    from masklet.model.config import RepVitConfig

    trunk = RepVitConfig((8, 16, 24, 32), (1, 2, 3, 1))
    return EdgeTamConfig(trunk, 64, 16, 256, 2, 2, 16, 16, image_size)


def stand_in_weights(config: Config, seed: int = 0, **fill: float | None) -> dict[str, np.ndarray]:
    """Lively weights for every tensor that a configuration's stages read."""
    from masklet.families.table import family_of
    from masklet.runtime.cache import load_stage

    names = (*family_of(config).image_stages, *family_of(config).video_stages)
    stages = [load_stage(config, name, config.image_size, "fused") for name in names]
    shapes = {key: shape for stage in stages for key, shape in stage.tensors.items()}
    return lively_weights(shapes, seed, **fill)


def write_stand_in(path: str | os.PathLike[str], config: Config, seed: int = 0, **fill: float | None) -> None:
    """Write a checkpoint with lively weights that `masklet.load` reads: real in form, but its masks mean
    nothing."""
    from masklet.families.family import CONFIG_KEY
    from masklet.io.safetensors import write_safetensors

    write_safetensors(path, stand_in_weights(config, seed, **fill), {CONFIG_KEY: config.to_json()})
