"""SAM's recognition from names and shapes, its configuration as metadata, the names of its files' tensors."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import masklet
from masklet.errors import InputError, TensorMismatchError, UnknownFormatError
from masklet.families import sam1, table
from masklet.families.family import CONFIG_KEY
from masklet.families.keymaps import Tensors, canonical
from masklet.io.safetensors import write_safetensors
from masklet.runtime.cache import load_stage
from masklet.testing import stand_in_weights, tiny_config, tiny_sam1_config

Shapes = dict[str, tuple[int, ...]]
ENCODER, DECODER, PROMPTS = "image_encoder.", "mask_decoder.", "prompt_encoder."


def pair(name: str, *shape: int) -> Shapes:
    """A layer's weight and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0],)}


def published(config: sam1.Sam1Config) -> Shapes:
    """Names and shapes of a published file, written out from `segment-anything` 1.0."""
    trunk, width, grid = config.trunk, config.trunk.embed_dim, config.image_size // 16
    head = width // trunk.num_heads
    shapes: Shapes = {f"{ENCODER}pos_embed": (1, grid, grid, width)}
    shapes |= pair(f"{ENCODER}patch_embed.proj", width, 3, 16, 16)
    for index in range(trunk.depth):
        block = f"{ENCODER}blocks.{index}."
        side = grid if index in trunk.global_attn_indexes else trunk.window
        shapes |= {f"{block}attn.rel_pos_{axis}": (2 * side - 1, head) for axis in "hw"}
        shapes |= pair(f"{block}norm1", width) | pair(f"{block}norm2", width)
        shapes |= pair(f"{block}attn.qkv", 3 * width, width) | pair(f"{block}attn.proj", width, width)
        shapes |= pair(f"{block}mlp.lin1", 4 * width, width) | pair(f"{block}mlp.lin2", width, 4 * width)
    channels = config.d_model
    shapes |= {f"{ENCODER}neck.0.weight": (channels, width, 1, 1)} | pair(f"{ENCODER}neck.1", channels)
    shapes |= {f"{ENCODER}neck.2.weight": (channels, channels, 3, 3)} | pair(f"{ENCODER}neck.3", channels)
    return shapes | prompt_encoder(channels) | mask_decoder(channels, config.mlp_dim)


def prompt_encoder(channels: int) -> Shapes:
    shapes: Shapes = {f"{PROMPTS}pe_layer.positional_encoding_gaussian_matrix": (2, channels // 2)}
    shapes |= {f"{PROMPTS}point_embeddings.{kind}.weight": (1, channels) for kind in range(4)}
    shapes |= {f"{PROMPTS}{name}.weight": (1, channels) for name in ("not_a_point_embed", "no_mask_embed")}
    shapes |= pair(f"{PROMPTS}mask_downscaling.0", 4, 1, 2, 2) | pair(f"{PROMPTS}mask_downscaling.1", 4)
    shapes |= pair(f"{PROMPTS}mask_downscaling.3", 16, 4, 2, 2) | pair(f"{PROMPTS}mask_downscaling.4", 16)
    return shapes | pair(f"{PROMPTS}mask_downscaling.6", channels, 16, 1, 1)


def mask_decoder(channels: int, mlp_dim: int) -> Shapes:
    def attention(name: str, inner: int) -> Shapes:
        made = pair(f"{name}.out_proj", channels, inner)
        for part in "qkv":
            made |= pair(f"{name}.{part}_proj", inner, channels)
        return made

    shapes: Shapes = {
        f"{DECODER}iou_token.weight": (1, channels),
        f"{DECODER}mask_tokens.weight": (4, channels),
    }
    for layer in (f"{DECODER}transformer.layers.{index}" for index in range(2)):
        shapes |= attention(f"{layer}.self_attn", channels)
        shapes |= attention(f"{layer}.cross_attn_token_to_image", channels // 2)
        shapes |= attention(f"{layer}.cross_attn_image_to_token", channels // 2)
        shapes |= pair(f"{layer}.mlp.lin1", mlp_dim, channels) | pair(f"{layer}.mlp.lin2", channels, mlp_dim)
        for norm in range(1, 5):
            shapes |= pair(f"{layer}.norm{norm}", channels)
    shapes |= attention(f"{DECODER}transformer.final_attn_token_to_image", channels // 2)
    shapes |= pair(f"{DECODER}transformer.norm_final_attn", channels)

    quarter, eighth = channels // 4, channels // 8
    shapes |= {f"{DECODER}output_upscaling.0.weight": (channels, quarter, 2, 2)}
    shapes |= {f"{DECODER}output_upscaling.0.bias": (quarter,)} | pair(
        f"{DECODER}output_upscaling.1", quarter
    )
    shapes |= {f"{DECODER}output_upscaling.3.weight": (quarter, eighth, 2, 2)}
    shapes |= {f"{DECODER}output_upscaling.3.bias": (eighth,)}
    for mlp, inner, out in (
        *((f"{DECODER}output_hypernetworks_mlps.{mask}", channels, eighth) for mask in range(4)),
        (f"{DECODER}iou_prediction_head", 256, 4),
    ):
        shapes |= pair(f"{mlp}.layers.0", inner, channels)
        shapes |= pair(f"{mlp}.layers.1", inner, inner) | pair(f"{mlp}.layers.2", out, inner)
    return shapes


def opened(shapes: Shapes) -> Tensors:
    """`canonical` of a file of these tensors, all zero."""
    checkpoint: Any = SimpleNamespace(
        format="torch",
        path=Path("model.pth"),
        tensors={name: SimpleNamespace(shape=shape, dtype="f32") for name, shape in shapes.items()},
        array=lambda name: np.zeros(shapes[name], np.float32),
    )
    return canonical(checkpoint)


# ------------------------------------------------------------------------------------------------ recognition


@pytest.mark.parametrize("name", sam1.PRESETS)
def test_all_three_are_recognised_and_read_whole(name: str) -> None:
    config = sam1.PRESETS[name]
    tensors = opened(published(config))
    assert tensors.layout == "meta"
    assert table.recognise(tensors.shapes, {}) == config
    assert table.preset_name(config) == name
    stages = [load_stage(config, stage, 1024, "fused") for stage in sam1.IMAGE_STAGES]
    assert {key: shape for stage in stages for key, shape in stage.tensors.items()} == tensors.shapes


def test_a_published_network_fine_tuned_at_another_size() -> None:
    trunk = sam1.TRUNKS["vit_b"]
    config = sam1.Sam1Config(trunk, 256, 2048, 256)
    assert table.recognise(opened(published(config)).shapes, {}) == config
    assert table.preset_name(config) is None


def test_another_encoder_is_described() -> None:
    shapes = published(sam1.PRESETS["sam_vit_b"])
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(f"{ENCODER}blocks.11.")}
    with pytest.raises(
        UnknownFormatError, match=r"width 768 and 11 blocks; published: vit_b 768 and 12.*masklet\.config"
    ):
        table.recognise(opened(shapes).shapes, {})


@pytest.mark.parametrize("shape", [(1, 0, 0, 768), (1, 4096, 4096, 768)])
def test_a_table_of_an_impossible_size_is_our_error(shape: tuple[int, ...]) -> None:
    shapes = {**published(sam1.PRESETS["sam_vit_b"]), f"{ENCODER}pos_embed": shape}
    with pytest.raises(UnknownFormatError):
        table.recognise(opened(shapes).shapes, {})


@pytest.mark.parametrize("name", [f"{ENCODER}pos_embed", f"{ENCODER}neck.0.weight"])
def test_a_table_without_sides_is_our_error(name: str) -> None:
    shapes = {**published(sam1.PRESETS["sam_vit_b"]), name: ()}
    with pytest.raises(UnknownFormatError):
        table.recognise(opened(shapes).shapes, {})


def test_another_family_is_named_for_what_it_is() -> None:
    shapes = {
        "image_encoder.layers.0.blocks.0.conv1.c.weight": (6, 2),
        "mask_decoder.iou_token.weight": (1, 2),
    }
    with pytest.raises(UnknownFormatError, match=r"not of a family that .* knows \(SAM 2, SAM, EdgeTAM\)"):
        table.recognise(opened(shapes).shapes, {})


# --------------------------------------------------------------------------------------------------- metadata


def test_metadata_round_trip() -> None:
    for config in (tiny_sam1_config(), *sam1.PRESETS.values()):
        assert table.from_metadata(config.to_json()) == config


@pytest.mark.parametrize(
    "change",
    [
        {"d_model": 24},
        {"mlp_dim": 0},
        {"image_size": 100},
        {"family": "sam0"},
        {"surprise": 1},
        {"trunk": None},
        {"trunk": [1, 2]},
        {"trunk": {"embed_dim": 32}},
        {"trunk": {"num_heads": 3}},
        {"trunk": {"depth": 300}},
        {"trunk": {"global_attn_indexes": [4]}},
        {"trunk": {"global_attn_indexes": 1}},
        {"trunk": {"window": 0}},
    ],
    ids=str,
)
def test_metadata_that_cannot_be(change: dict[str, Any]) -> None:
    values = json.loads(tiny_sam1_config().to_json())
    if isinstance(change.get("trunk"), dict) and "embed_dim" not in change["trunk"]:
        change = {"trunk": values["trunk"] | change["trunk"]}
    with pytest.raises(UnknownFormatError, match=r"not a configuration that this version knows"):
        table.from_metadata(json.dumps({**values, **change}))


# ------------------------------------------------------------------------------------------------ other names


TRANSFORMERS = {
    "image_encoder.pos_embed": "vision_encoder.pos_embed",
    "image_encoder.patch_embed.proj.bias": "vision_encoder.patch_embed.projection.bias",
    "image_encoder.blocks.7.norm2.weight": "vision_encoder.layers.7.layer_norm2.weight",
    "image_encoder.blocks.7.attn.rel_pos_w": "vision_encoder.layers.7.attn.rel_pos_w",
    "image_encoder.blocks.7.attn.qkv.weight": "vision_encoder.layers.7.attn.qkv.weight",
    "image_encoder.blocks.7.attn.proj.bias": "vision_encoder.layers.7.attn.proj.bias",
    "image_encoder.blocks.7.mlp.layers.0.weight": "vision_encoder.layers.7.mlp.lin1.weight",
    "image_encoder.blocks.7.mlp.layers.1.bias": "vision_encoder.layers.7.mlp.lin2.bias",
    "image_encoder.neck.0.weight": "vision_encoder.neck.conv1.weight",
    "image_encoder.neck.1.bias": "vision_encoder.neck.layer_norm1.bias",
    "image_encoder.neck.2.weight": "vision_encoder.neck.conv2.weight",
    "image_encoder.neck.3.weight": "vision_encoder.neck.layer_norm2.weight",
    "sam_prompt_encoder.point_embeddings.3.weight": "prompt_encoder.point_embed.3.weight",
    "sam_prompt_encoder.mask_downscaling.4.bias": "prompt_encoder.mask_embed.layer_norm2.bias",
    "sam_mask_decoder.iou_token.weight": "mask_decoder.iou_token.weight",
    "sam_mask_decoder.transformer.layers.1.self_attn.out_proj.weight": (
        "mask_decoder.transformer.layers.1.self_attn.out_proj.weight"
    ),
    "sam_mask_decoder.transformer.layers.0.cross_attn_image_to_token.q_proj.bias": (
        "mask_decoder.transformer.layers.0.cross_attn_image_to_token.q_proj.bias"
    ),
    "sam_mask_decoder.transformer.layers.0.cross_attn_image_to_token.out_proj.bias": (
        "mask_decoder.transformer.layers.0.cross_attn_image_to_token.out_proj.bias"
    ),
    "sam_mask_decoder.transformer.layers.0.norm4.bias": "mask_decoder.transformer.layers.0.layer_norm4.bias",
    "sam_mask_decoder.transformer.layers.0.mlp.layers.1.weight": (
        "mask_decoder.transformer.layers.0.mlp.lin2.weight"
    ),
    "sam_mask_decoder.transformer.final_attn_token_to_image.out_proj.weight": (
        "mask_decoder.transformer.final_attn_token_to_image.out_proj.weight"
    ),
    "sam_mask_decoder.output_upscaling.3.bias": "mask_decoder.upscale_conv2.bias",
    "sam_mask_decoder.output_hypernetworks_mlps.2.layers.1.bias": (
        "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias"
    ),
    "sam_mask_decoder.iou_prediction_head.layers.2.bias": "mask_decoder.iou_prediction_head.proj_out.bias",
}


def test_names_of_transformers() -> None:
    """The parity tests compare all names; these are one of each kind."""
    tensors = opened({theirs: (1, index + 1) for index, theirs in enumerate(TRANSFORMERS.values())})
    assert tensors.layout == "transformers"
    assert dict(tensors.shapes) == {ours: (1, index + 1) for index, ours in enumerate(TRANSFORMERS)}


@pytest.mark.parametrize("name", ["image_encoder.blocks.0.attn.gate", "mask_decoder.hf_token.weight", "ema"])
def test_what_is_not_known_is_refused(name: str) -> None:
    config = sam1.PRESETS["sam_vit_b"]
    expected = opened(published(config)).shapes
    found = opened({**published(config), name: (2,)}).shapes
    with pytest.raises(TensorMismatchError, match=f"not known: (sam_)?{name}"):
        sam1.FAMILY.check_tensors(expected, found, "model.pth")


# ------------------------------------------------------------------------------------------------------ files


def as_meta(key: str) -> str:
    """A canonical key as a file of Meta's has it."""
    key = key.removeprefix("sam_") if key.startswith("sam_") else key
    return key.replace(".mlp.layers.0.", ".mlp.lin1.").replace(".mlp.layers.1.", ".mlp.lin2.")


def test_meta_names_give_the_model_of_canonical_ones(tmp_path: Path) -> None:
    config = tiny_sam1_config()
    weights = stand_in_weights(config)
    assert published(config) == {as_meta(key): array.shape for key, array in weights.items()}
    write_safetensors(
        tmp_path / "meta.safetensors",
        {as_meta(key): array for key, array in weights.items()},
        {CONFIG_KEY: config.to_json()},
    )
    model = masklet.load(tmp_path / "meta.safetensors", threads=1)
    assert (model.config, model.config.family, model.config.version) == (config, "sam1", "1")
    for key, array in weights.items():
        np.testing.assert_array_equal(model.tensor(key), array)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image_encoder.blocks.1.attn.rel_pos_h": None},
            r"missing: image_encoder\.blocks\.1\.attn\.rel_pos_h",
        ),
        ({"surprise": np.zeros(2, np.float32)}, "not known: surprise"),
        ({"obj_ptr_proj.layers.0.bias": np.zeros(2, np.float32)}, "not known: obj_ptr_proj"),
        (
            {"image_encoder.blocks.0.attn.rel_pos_w": np.zeros((7, 16), np.float32)},
            r"of another shape: image_encoder\.blocks\.0\.attn\.rel_pos_w \(7, 16\) instead of \(5, 16\)",
        ),
    ],
)
def test_tensors_are_checked_at_once(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = tiny_sam1_config()
    arrays = {k: array for k, array in {**stand_in_weights(config), **changes}.items() if array is not None}
    write_safetensors(tmp_path / "model.safetensors", arrays, {CONFIG_KEY: config.to_json()})
    with pytest.raises(TensorMismatchError, match=message):
        masklet.load(tmp_path / "model.safetensors", threads=1)


def test_weights_of_one_family_under_the_name_of_another(tmp_path: Path) -> None:
    config = tiny_config(image_size=64)
    metadata = {CONFIG_KEY: tiny_sam1_config(64).to_json()}
    write_safetensors(tmp_path / "model.safetensors", stand_in_weights(config), metadata)
    with pytest.raises(TensorMismatchError, match="missing: image_encoder"):
        masklet.load(tmp_path / "model.safetensors", threads=1)


@pytest.mark.parametrize("size", [0, 8, 100, True, "128"])
def test_sizes_that_cannot_be(tmp_path: Path, size: Any) -> None:
    config = tiny_sam1_config()
    write_safetensors(
        tmp_path / "model.safetensors", stand_in_weights(config), {CONFIG_KEY: config.to_json()}
    )
    with pytest.raises(InputError, match="a multiple of 16 pixels"):
        masklet.load(tmp_path / "model.safetensors", image_size=size)
