"""sam3.cpp's files: built from the format, read as the networks that they were made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

import masklet
from masklet.errors import TensorMismatchError, UnknownFormatError
from masklet.families import edgetam, sam2
from masklet.families.family import Config
from masklet.families.keymaps import canonical
from masklet.io.checkpoints import open_checkpoint
from masklet.model import derive
from masklet.testing import (
    stand_in_weights,
    synthetic_scene,
    tiny_config,
    tiny_edgetam_config,
    write_stand_in,
)

Weights = Mapping[str, np.ndarray]
SIZE = 64

# Their names, fragment by fragment, in order. Layers of an `mlp` are fc in the trunk and lin in the decoder.
FRAGMENTS = (
    ("image_encoder.trunk.patch_embed.proj.", "hiera.patch_embed."),
    ("image_encoder.trunk.", "hiera."),
    ("image_encoder.neck.", "fpn."),
    (".conv.", "."),
    ("sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", "sam_pe.pe_gaussian"),
    ("sam_prompt_encoder.mask_downscaling", "sam_pe.mask_ds"),
    ("sam_prompt_encoder", "sam_pe"),
    ("sam_mask_decoder.transformer.layers", "sam_dec.twoway"),
    ("sam_mask_decoder.transformer.final_attn_token_to_image", "sam_dec.final_attn"),
    ("sam_mask_decoder.transformer.norm_final_attn", "sam_dec.final_norm"),
    ("sam_mask_decoder.output_upscaling", "sam_dec.upscale"),
    ("sam_mask_decoder.output_hypernetworks_mlps", "sam_dec.hyper"),
    ("sam_mask_decoder", "sam_dec"),
    ("memory_attention", "mem_attn"),
    ("cross_attn_image.", "ca."),
    ("self_attn", "sa"),
    ("memory_encoder.mask_downsampler.encoder", "mem_enc.ds"),
    ("memory_encoder.fuser.layers", "mem_enc.fuser"),
    ("memory_encoder", "mem_enc"),
    ("maskmem_tpos_enc", "mem_enc.tpos_enc"),
    ("mask_downsample.", "trk_mask_ds."),
    ("spatial_perceiver", "perceiver"),
    (".attn.to_", ".ca."),
    (".attn.norm_", ".ca.norm_"),
    (".sa.to_", ".sa."),
    (".ff.0.", ".ff.norm."),
    (".ff.1.", ".ff.fc1."),
    (".ff.3.", ".ff.fc2."),
    (".self_ff.0.", ".sa_ff.norm."),
    (".self_ff.1.", ".sa_ff.fc1."),
    (".self_ff.3.", ".sa_ff.fc2."),
)
MERGED = (
    ("image_encoder.trunk.body.", "repvit."),
    ("stages_", "stages."),
    ("downsample.spatial_downsample", "ds.spatial"),
    ("downsample.channel_downsample", "ds.channel"),
    ("downsample.pre_block", "ds.pre"),
    ("downsample", "ds"),
    ("token_mixer", "tm"),
    ("channel_mixer", "cm"),
)


def replaced(name: str, fragments: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in fragments:
        name = name.replace(ours, theirs)
    return name


def their_name(key: str) -> str:
    name = replaced(key, FRAGMENTS)
    for index, number in (("0", "1"), ("1", "2")):
        kind = "fc" if name.startswith("hiera.") else "lin"
        name = name.replace(f".mlp.layers.{index}.", f".mlp.{kind}{number}.")
    return name


def merged(weights: Weights) -> Iterator[tuple[str, np.ndarray]]:
    """EdgeTAM's trunk as their converter stores it."""
    for key in weights:
        layer, end, _ = key.rpartition(".c.weight")
        if key.startswith("image_encoder.trunk.") and (end or ".se." in key):
            name = replaced(layer or key, MERGED)
            if not end:
                yield name, weights[key]
            elif not layer.endswith("token_mixer.conv1"):
                mixer = layer.endswith("token_mixer.conv")
                layers = [layer, f"{layer}1"] if mixer else [layer]
                kernels, norms = [], []
                for one in layers:
                    norm = [
                        weights[f"{one}.bn.{part}"]
                        for part in ("weight", "bias", "running_mean", "running_var")
                    ]
                    kernels += [weights[f"{one}.c.weight"], norm[0], norm[3]]
                    norms += norm
                name = name.removesuffix(".conv") if mixer else name
                yield f"{name}.weight", (derive.merged_weight if mixer else derive.normed_weight)(*kernels)
                yield f"{name}.bias", (derive.merged_bias if mixer else derive.normed_bias)(*norms)


def their_tensors(weights: Weights) -> dict[str, np.ndarray]:
    if edgetam.STEM not in weights:
        return {their_name(key): array for key, array in weights.items()}
    rest = {key: array for key, array in weights.items() if not key.startswith("image_encoder.trunk.")}
    return {**dict(merged(weights)), **{their_name(key): array for key, array in rest.items()}}


def stored(array: np.ndarray, dtype: str) -> tuple[tuple[int, ...], int, bytes]:
    """Matrices whose rows blocks fill in blocks, the rest in f32; f16 for all matrices."""
    if array.ndim < 2 or (dtype.startswith("q") and array.shape[-1] % 32):
        dtype = "f32"
    kind = GGMLQuantizationType[dtype.upper()]
    return array.shape, int(kind), quantize(array, kind).tobytes()


@pytest.fixture(params=["2.0", "2.1", "edgetam"])
def config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A small network that is recognised as if it were published: the files do not say what they hold."""
    if request.param == "edgetam":
        config = tiny_edgetam_config()
        monkeypatch.setitem(edgetam.PRESETS, "small", config)
        return config
    config = tiny_config(request.param)
    monkeypatch.setitem(sam2.PRESETS, "small", config)
    return config


@pytest.fixture
def write(tmp_path: Path, ggml_file: Callable[..., bytes]) -> Callable[..., Path]:
    def write(weights: Weights, dtype: str = "f32") -> Path:
        tensors = {name: stored(array, dtype) for name, array in their_tensors(weights).items()}
        trunk = 2 if edgetam.STEM in weights else 1
        path = tmp_path / f"{dtype}.ggml"
        path.write_bytes(ggml_file(tensors, trunk=trunk))
        return path

    return write


def masks(path: Path) -> np.ndarray:
    predictor = masklet.ImagePredictor(masklet.load(path, threads=1, image_size=SIZE))
    scene = synthetic_scene(seed=3, size_hw=(48, 64))
    predictor.set_image(scene.image)
    found = [predictor.predict(point_coords=[xy], point_labels=[1])[0] for xy in scene.points_xy]
    return np.concatenate(found)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one & other).sum() + 1) / ((one | other).sum() + 1))


def test_masks_are_those_of_the_checkpoint(
    config: Config, write: Callable[..., Path], tmp_path: Path
) -> None:
    write_stand_in(tmp_path / "reference", config)
    expected = masks(tmp_path / "reference")
    assert 0.05 < expected.mean() < 0.95
    assert iou(masks(write(stand_in_weights(config))), expected) >= 0.999


def test_every_tensor_is_there_again(config: Config, write: Callable[..., Path]) -> None:
    weights = stand_in_weights(config)
    with open_checkpoint(write(weights)) as checkpoint:
        tensors = canonical(checkpoint)
        assert tensors.layout == "sam3.cpp"
        assert dict(tensors.shapes) == {key: array.shape for key, array in weights.items()}
        same = [key for key, array in weights.items() if np.array_equal(tensors.array(key), array)]
        if config.family == "sam2":
            assert len(same) == len(weights)
            return
        trunk = {key for key in weights if key.startswith("image_encoder.trunk.") and ".se." not in key}
        assert weights.keys() - same <= trunk
        assert tensors.stored(f"{edgetam.STEM[: -len('c.weight')]}bn.weight") is None
        for recipe, keys in merged_recipes(trunk):
            read, told = ([source[key] for key in keys] for source in (Arrays(tensors), weights))
            np.testing.assert_allclose(recipe(*read), recipe(*told), rtol=2e-7, atol=2e-7)


class Arrays:
    def __init__(self, tensors: Any) -> None:
        self._tensors = tensors

    def __getitem__(self, key: str) -> np.ndarray:
        return self._tensors.array(key)


def merged_recipes(trunk: set[str]) -> Iterator[tuple[Callable[..., np.ndarray], list[str]]]:
    """What the network makes of the trunk's tensors."""
    for key in trunk:
        layer, end, _ = key.rpartition(".c.weight")
        if end and layer.endswith("token_mixer.conv"):
            pair = layer, f"{layer}1"
            parts = ("c.weight", "bn.weight", "bn.running_var")
            yield derive.merged_weight, [f"{one}.{part}" for one in pair for part in parts]
            parts = ("bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
            yield derive.merged_bias, [f"{one}.{part}" for one in pair for part in parts]
        elif end and not layer.endswith("token_mixer.conv1"):
            yield (
                derive.normed_weight,
                [f"{layer}.{part}" for part in ("c.weight", "bn.weight", "bn.running_var")],
            )


@pytest.mark.parametrize("dtype", ["f16", "q8_0", "q4_1", "q4_0"])
def test_quantised_tensors(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    config = tiny_config()
    monkeypatch.setitem(sam2.PRESETS, "small", config)
    weights = stand_in_weights(config)
    path = write(weights, dtype)
    kind = GGMLQuantizationType[dtype.upper()]
    with open_checkpoint(path) as checkpoint:
        tensors = canonical(checkpoint)
        for key, array in weights.items():
            if tensors.stored(key) == dtype:
                array = dequantize(quantize(array, kind), kind)
            np.testing.assert_array_equal(tensors.array(key), array)
        assert sum(tensors.stored(key) == dtype for key in weights) > 100
    assert 0.05 < masks(path).mean() < 0.95


def test_a_network_that_was_not_published(write: Callable[..., Path]) -> None:
    with pytest.raises(UnknownFormatError, match=r"f32\.ggml: SAM 2 with a trunk of width 16"):
        masklet.load(write(stand_in_weights(tiny_config())))


def test_tensors_that_are_not_known(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sam2.PRESETS, "small", tiny_config())
    weights = stand_in_weights(tiny_config())
    key = "sam_mask_decoder.iou_token.weight"
    with pytest.raises(TensorMismatchError, match=r"not known: image_encoder\.trunk\.blocks\.0\.other"):
        masklet.load(write({**weights, "hiera.blocks.0.other": weights[key]}))
    with pytest.raises(TensorMismatchError, match=r"stand for .* and differ"):
        masklet.load(write({**weights, "sam_pe.mask_downscaling.0.bias": weights[key][0, :4]}))
