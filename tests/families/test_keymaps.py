"""The compact table of the key map against the same map written out, for all published networks; and files
that are not as published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from masklet.errors import TensorMismatchError, UnknownFormatError
from masklet.families import sam2
from masklet.families.family import CONFIG_KEY
from masklet.families.keymaps import _TRANSFORMERS, Tensors, _rules, canonical
from masklet.families.sam2 import Sam2Config
from masklet.io.checkpoints import open_checkpoint
from masklet.io.safetensors import write_safetensors
from masklet.pipeline.model import load
from masklet.runtime.graph import write_stage
from masklet.testing import stand_in_weights, tiny_config

FOURIER = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
FOURIER_TWICE = (
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.shared_embedding.positional_embedding",
)


# ------------------------------------------------------------------------------------- the map, written out


class Entry(NamedTuple):
    """One canonical tensor, and where transformers has it."""

    key: str
    name: str
    shape: tuple[int, ...]
    row: int | None = None


def pair(key: str, name: str, *shape: int, bias: int = 0) -> list[Entry]:
    """A layer's weight, and its bias: as long as the weight's first side, if nothing else is said."""
    return [
        Entry(f"{key}.weight", f"{name}.weight", shape),
        Entry(f"{key}.bias", f"{name}.bias", (bias or shape[0],)),
    ]


def norm(key: str, name: str, width: int) -> list[Entry]:
    return pair(key, name, width)


def perceptron(key: str, name: str, *widths: int) -> list[Entry]:
    """Fully connected layers: transformers names the first and last apart, and counts the rest from 0."""
    count = len(widths) - 1
    names = ["proj_in", *(f"layers.{index}" for index in range(count - 2)), "proj_out"]
    return [
        entry
        for index in range(count)
        for entry in pair(f"{key}.layers.{index}", f"{name}.{names[index]}", widths[index + 1], widths[index])
    ]


def attention(key: str, name: str, width: int, inner: int, memory: int | None = None) -> list[Entry]:
    return [
        *pair(f"{key}.q_proj", f"{name}.q_proj", inner, width),
        *pair(f"{key}.k_proj", f"{name}.k_proj", inner, memory or width),
        *pair(f"{key}.v_proj", f"{name}.v_proj", inner, memory or width),
        *pair(f"{key}.out_proj", f"{name}.o_proj", width, inner),
    ]


def image_encoder(config: Sam2Config) -> Iterable[Entry]:
    trunk, key, name = config.trunk, "image_encoder.trunk", "vision_encoder.backbone"
    width, before = trunk.embed_dim, trunk.embed_dim
    table, window = trunk.window_pos_embed_bkg_spatial_size, trunk.window_spec[0]
    yield Entry(f"{key}.pos_embed", f"{name}.pos_embed", (1, width, *table))
    yield Entry(f"{key}.pos_embed_window", f"{name}.pos_embed_window", (1, width, window, window))
    yield from pair(f"{key}.patch_embed.proj", f"{name}.patch_embed.projection", width, 3, 7, 7)
    stages = [stage for stage, blocks in enumerate(trunk.stages) for _ in range(blocks)]
    for index, stage in enumerate(stages):
        width = trunk.embed_dim * 2**stage
        ours, theirs = f"{key}.blocks.{index}", f"{name}.blocks.{index}"
        yield from norm(f"{ours}.norm1", f"{theirs}.layer_norm1", before)
        yield from pair(f"{ours}.attn.qkv", f"{theirs}.attn.qkv", 3 * width, before)
        yield from pair(f"{ours}.attn.proj", f"{theirs}.attn.proj", width, width)
        yield from norm(f"{ours}.norm2", f"{theirs}.layer_norm2", width)
        yield from perceptron(f"{ours}.mlp", f"{theirs}.mlp", width, 4 * width, width)
        if width != before:
            yield from pair(f"{ours}.proj", f"{theirs}.proj", width, before)
        before = width
    for level in range(4):  # the coarsest first
        yield from pair(
            f"image_encoder.neck.convs.{level}.conv",
            f"vision_encoder.neck.convs.{level}",
            *(config.d_model, trunk.embed_dim * 2 ** (3 - level), 1, 1),
        )
    yield Entry("no_mem_embed", "no_memory_embedding", (1, 1, config.d_model))


def prompt_encoder(width: int) -> Iterable[Entry]:
    key, name = "sam_prompt_encoder", "prompt_encoder"
    yield Entry(FOURIER, f"{name}.shared_embedding.positional_embedding", (2, width // 2))
    for row in range(4):
        yield Entry(f"{key}.point_embeddings.{row}.weight", f"{name}.point_embed.weight", (1, width), row)
    for table in ("not_a_point_embed", "no_mask_embed"):
        yield Entry(f"{key}.{table}.weight", f"{name}.{table}.weight", (1, width))
    yield from pair(f"{key}.mask_downscaling.0", f"{name}.mask_embed.conv1", 4, 1, 2, 2)
    yield from norm(f"{key}.mask_downscaling.1", f"{name}.mask_embed.layer_norm1", 4)
    yield from pair(f"{key}.mask_downscaling.3", f"{name}.mask_embed.conv2", 16, 4, 2, 2)
    yield from norm(f"{key}.mask_downscaling.4", f"{name}.mask_embed.layer_norm2", 16)
    yield from pair(f"{key}.mask_downscaling.6", f"{name}.mask_embed.conv3", width, 16, 1, 1)


def mask_decoder(width: int) -> Iterable[Entry]:
    key, name = "sam_mask_decoder", "mask_decoder"
    for layer in range(2):
        ours, theirs = f"{key}.transformer.layers.{layer}", f"{name}.transformer.layers.{layer}"
        yield from attention(f"{ours}.self_attn", f"{theirs}.self_attn", width, width)
        for cross in ("cross_attn_token_to_image", "cross_attn_image_to_token"):
            yield from attention(f"{ours}.{cross}", f"{theirs}.{cross}", width, width // 2)
        for index in range(1, 5):
            yield from norm(f"{ours}.norm{index}", f"{theirs}.layer_norm{index}", width)
        yield from perceptron(f"{ours}.mlp", f"{theirs}.mlp", width, 2048, width)
    final = "transformer.final_attn_token_to_image"
    yield from attention(f"{key}.{final}", f"{name}.{final}", width, width // 2)
    yield from norm(f"{key}.transformer.norm_final_attn", f"{name}.transformer.layer_norm_final_attn", width)

    for token, count in (("iou_token", 1), ("mask_tokens", 4), ("obj_score_token", 1)):
        yield Entry(f"{key}.{token}.weight", f"{name}.{token}.weight", (count, width))
    quarter, eighth = width // 4, width // 8
    yield from pair(f"{key}.output_upscaling.0", f"{name}.upscale_conv1", width, quarter, 2, 2, bias=quarter)
    yield from norm(f"{key}.output_upscaling.1", f"{name}.upscale_layer_norm", quarter)
    yield from pair(f"{key}.output_upscaling.3", f"{name}.upscale_conv2", quarter, eighth, 2, 2, bias=eighth)
    yield from pair(f"{key}.conv_s0", f"{name}.conv_s0", eighth, width, 1, 1)
    yield from pair(f"{key}.conv_s1", f"{name}.conv_s1", quarter, width, 1, 1)
    for mask in range(4):
        mlp = f"output_hypernetworks_mlps.{mask}"
        yield from perceptron(f"{key}.{mlp}", f"{name}.{mlp}", width, width, width, eighth)
    yield from perceptron(f"{key}.iou_prediction_head", f"{name}.iou_prediction_head", width, 256, 256, 4)
    head = "pred_obj_score_head"
    yield from perceptron(f"{key}.{head}", f"{name}.{head}", width, width, width, 1)


def memory(width: int, memory_dim: int) -> Iterable[Entry]:
    for layer in range(4):
        here = f"memory_attention.layers.{layer}"
        yield from attention(f"{here}.self_attn", f"{here}.self_attn", width, width)
        cross = f"{here}.cross_attn_image"
        yield from attention(cross, cross, width, width, memory_dim)
        yield from pair(f"{here}.linear1", f"{here}.linear1", 2048, width)
        yield from pair(f"{here}.linear2", f"{here}.linear2", width, 2048)
        for index in range(1, 4):
            yield from norm(f"{here}.norm{index}", f"{here}.layer_norm{index}", width)
    yield from norm("memory_attention.norm", "memory_attention.layer_norm", width)

    key = name = "memory_encoder"
    channels = (1, 4, 16, 64, 256)
    for layer in range(4):
        ours, theirs = f"{key}.mask_downsampler.encoder", f"{name}.mask_downsampler.layers.{layer}"
        yield from pair(f"{ours}.{3 * layer}", f"{theirs}.conv", channels[layer + 1], channels[layer], 3, 3)
        yield from norm(f"{ours}.{3 * layer + 1}", f"{theirs}.layer_norm", channels[layer + 1])
    final = f"{key}.mask_downsampler.encoder.12"
    yield from pair(final, f"{name}.mask_downsampler.final_conv", width, 256, 1, 1)
    yield from pair(f"{key}.pix_feat_proj", f"{name}.feature_projection", width, width, 1, 1)
    for layer in range(2):
        ours, theirs = f"{key}.fuser.layers.{layer}", f"{name}.memory_fuser.layers.{layer}"
        yield Entry(f"{ours}.gamma", f"{theirs}.scale", (width,))
        yield from pair(f"{ours}.dwconv", f"{theirs}.depthwise_conv", width, 1, 7, 7)
        yield from norm(f"{ours}.norm", f"{theirs}.layer_norm", width)
        yield from pair(f"{ours}.pwconv1", f"{theirs}.pointwise_conv1", 4 * width, width)
        yield from pair(f"{ours}.pwconv2", f"{theirs}.pointwise_conv2", width, 4 * width)
    yield from pair(f"{key}.out_proj", f"{name}.projection", memory_dim, width, 1, 1)


def pointers(width: int, memory_dim: int, version: str) -> Iterable[Entry]:
    yield Entry("maskmem_tpos_enc", "memory_temporal_positional_encoding", (7, 1, 1, memory_dim))
    yield Entry("no_mem_pos_enc", "no_memory_positional_encoding", (1, 1, width))
    yield Entry("no_obj_ptr", "no_object_pointer", (1, width))
    yield from pair("mask_downsample", "mask_downsample", 1, 1, 4, 4)
    yield from perceptron("obj_ptr_proj", "object_pointer_proj", width, width, width, width)
    if version == "2.1":
        yield Entry("no_obj_embed_spatial", "occlusion_spatial_embedding_parameter", (1, memory_dim))
        projection = "temporal_positional_encoding_projection_layer"
        yield from pair("obj_ptr_tpos_proj", projection, memory_dim, width)


def image_entries(config: Sam2Config) -> list[Entry]:
    """What `Sam2Model` has."""
    width = config.d_model
    return [*image_encoder(config), *prompt_encoder(width), *mask_decoder(width)]


def video_entries(config: Sam2Config) -> list[Entry]:
    """What `Sam2VideoModel` has, and so the published files."""
    widths = config.d_model, config.memory_dim
    return [*image_entries(config), *memory(*widths), *pointers(*widths, config.version)]


def file_shapes(entries: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as transformers saves them."""
    shapes = {}
    for entry in entries:
        shapes[entry.name] = entry.shape if entry.row is None else (4, *entry.shape[1:])
    return {FOURIER_TWICE[0]: shapes[FOURIER_TWICE[1]], **shapes}


# -------------------------------------------------------------------------------------------------- the table


def opened(shapes: Mapping[str, tuple[int, ...]]) -> Any:
    """A checkpoint of these tensors, all zero."""
    return SimpleNamespace(
        format="safetensors",
        path=Path("model.safetensors"),
        tensors={name: SimpleNamespace(shape=shape, dtype="f32") for name, shape in shapes.items()},
        array=lambda name: np.zeros(shapes[name], np.float32),
    )


@pytest.mark.parametrize("preset", sam2.PRESETS)
def test_every_published_tensor_is_mapped(preset: str) -> None:
    config = sam2.PRESETS[preset]
    entries = video_entries(config)
    tensors = canonical(opened(file_shapes(entries)))
    assert tensors.layout == "transformers"
    assert dict(tensors.shapes) == {entry.key: entry.shape for entry in entries}
    sources = {key: (source.name, source.row) for key, source in tensors._sources.items()}
    assert sources == {entry.key: (entry.name, entry.row) for entry in entries}
    assert sam2.recognise(tensors.shapes) == config


@pytest.mark.parametrize("preset", sam2.PRESETS)
def test_the_map_is_one_to_one(preset: str) -> None:
    entries = video_entries(sam2.PRESETS[preset])
    shapes = file_shapes(entries)
    sources = canonical(opened(shapes))._sources
    assert len(set(sources.values())) == len(sources) == len(entries)
    assert {source.name for source in sources.values()} == shapes.keys() - {FOURIER_TWICE[0]}


def test_every_row_of_the_table_has_a_use() -> None:
    """And no tensor fits two rows."""
    names = file_shapes(video_entries(sam2.PRESETS["sam2.1_hiera_base_plus"]))
    rules = _rules(_TRANSFORMERS)
    fits = {name: [pattern.pattern for pattern, _ in rules if pattern.fullmatch(name)] for name in names}
    assert {name: rows for name, rows in fits.items() if len(rows) != 1} == {}
    assert {rows[0] for rows in fits.values()} == {pattern.pattern for pattern, _ in rules}


def test_an_image_model_has_no_memory() -> None:
    """`Sam2Model` saves what pictures need."""
    entries = image_entries(sam2.PRESETS["sam2.1_hiera_tiny"])
    assert canonical(opened(file_shapes(entries))).shapes.keys() == {entry.key for entry in entries}


# -------------------------------------------------------------------------------------------- other files


@pytest.mark.parametrize(
    "shapes",
    [
        {entry.key: entry.shape for entry in video_entries(sam2.PRESETS["sam2_hiera_tiny"])},
        # MobileSAM; transformers' EdgeTAM and SAM 3, whose decoders have the names of SAM 2's
        {"image_encoder.layers.0.blocks.0.conv1.c.weight": (6, 2), "mask_decoder.iou_token.weight": (1, 2)},
        {"vision_encoder.backbone.timm_model.stem.weight": (2,), "mask_decoder.iou_token.weight": (1, 2)},
        {"vision_encoder.backbone.layers.0.layer_norm1.weight": (2,), "no_memory_embedding": (1, 1, 2)},
        {},
    ],
    ids=["meta", "mobile", "edgetam", "sam3", "empty"],
)
def test_other_layouts_pass_unchanged(shapes: dict[str, tuple[int, ...]]) -> None:
    tensors = canonical(opened(shapes))
    assert tensors.layout == "meta"
    assert dict(tensors.shapes) == shapes
    assert all(tensors._sources[name] == (name, shapes[name], None, None) for name in shapes)


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.backbone.blocks.0.mlp.proj_mid.weight",
        "vision_encoder.backbone.blocks.0.attn.qkv.weight.scale",
        "vision_encoder.backbone.blocks.x.attn.qkv.weight",
        "vision_encoder.backbone.blocks.0.attn.qkvxweight",
        "mask_decoder.hf_token.weight",
        "mask_decoder.iou_prediction_head.layers.1.weight",
        "prompt_encoder.point_embed.0.weight",
        "memory_encoder.mask_downsampler.layers.4.conv.weight",
        "model.no_object_pointer",
    ],
)
def test_an_unknown_tensor_keeps_its_name(name: str) -> None:
    entries = image_entries(sam2.PRESETS["sam2_hiera_tiny"])
    expected = {entry.key: entry.shape for entry in entries}
    shapes = canonical(opened({**file_shapes(entries), name: (3, 5)})).shapes
    assert dict(shapes) == {**expected, name: (3, 5)}
    if not name.startswith("memory_"):
        with pytest.raises(TensorMismatchError, match=f"not known: {name}"):
            sam2.FAMILY.check_tensors(expected, shapes, "model.safetensors")


@pytest.mark.parametrize("shape", [(5, 256), (3, 256), (4,), (4, 16, 16), (10**12, 0), ()])
def test_a_table_of_other_rows_is_unknown(shape: tuple[int, ...]) -> None:
    name = "prompt_encoder.point_embed.weight"
    shapes = file_shapes(image_entries(sam2.PRESETS["sam2_hiera_tiny"]))
    found = canonical(opened({**shapes, name: shape})).shapes
    assert found[name] == shape
    assert not any("point_embeddings" in key for key in found)


# ----------------------------------------------------------------------------------------------------- values

BLOCK = {"vision_encoder.backbone.blocks.0.attn.proj.bias": np.arange(3, dtype=np.float32)}


def written(path: Path, arrays: Mapping[str, np.ndarray]) -> Tensors:
    """`canonical` of a file of these arrays, and of one block that tells the layout."""
    write_safetensors(path / "model.safetensors", {**BLOCK, **arrays})
    return canonical(open_checkpoint(path / "model.safetensors"))


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_rows_are_tensors_of_their_own(tmp_path: Path, dtype: type) -> None:
    table = np.arange(20, dtype=dtype).reshape(4, 5)
    tensors = written(tmp_path, {"prompt_encoder.point_embed.weight": table})
    for row in range(4):
        array = tensors.array(f"sam_prompt_encoder.point_embeddings.{row}.weight")
        assert array.dtype == np.float32
        assert not array.flags.writeable
        np.testing.assert_array_equal(array, table[row : row + 1])


def test_whole_tensors_share_the_file(tmp_path: Path) -> None:
    name, key = "no_memory_embedding", "no_mem_embed"
    tensors = written(tmp_path, {name: np.arange(4, dtype=np.float32).reshape(1, 1, 4)})
    first, second = tensors.array(key), tensors.array(key)
    assert np.shares_memory(first, second)
    assert not first.flags.writeable
    np.testing.assert_array_equal(first.reshape(-1), np.arange(4))


def test_stored_numbers_that_are_no_weights(tmp_path: Path) -> None:
    tensors = written(tmp_path, {"no_object_pointer": np.ones((1, 4), np.int8)})
    with pytest.raises(UnknownFormatError, match=r"'no_object_pointer' is stored as i8; .*f32"):
        tensors.array("no_obj_ptr")


def test_a_key_that_is_not_there_names_close_ones(tmp_path: Path) -> None:
    tensors = written(tmp_path, {"no_object_pointer": np.ones((1, 4), np.float32)})
    with pytest.raises(TensorMismatchError, match=r"no tensor 'no_obj_pt' among 2; close: 'no_obj_ptr'"):
        tensors.array("no_obj_pt")


@pytest.mark.parametrize("names", [FOURIER_TWICE, FOURIER_TWICE[::-1], FOURIER_TWICE[:1], FOURIER_TWICE[1:]])
def test_the_fourier_matrix_may_stand_once_or_twice(tmp_path: Path, names: tuple[str, ...]) -> None:
    """Some versions of transformers leave one of the two names out."""
    matrix = np.arange(8, dtype=np.float32).reshape(2, 4)
    matrix[0, 0] = np.nan
    tensors = written(tmp_path, dict.fromkeys(names, matrix))
    assert tensors.shapes[FOURIER] == (2, 4)
    np.testing.assert_array_equal(tensors.array(FOURIER), matrix)


def test_two_different_fourier_matrices(tmp_path: Path) -> None:
    matrices = {name: np.full((2, 4), index, np.float32) for index, name in enumerate(FOURIER_TWICE)}
    with pytest.raises(TensorMismatchError, match=r"shared_image_embedding.* differ"):
        written(tmp_path, matrices)


def test_two_names_for_one_tensor(tmp_path: Path) -> None:
    """A file that mixes layouts."""
    arrays = {"no_obj_ptr": np.zeros((1, 4), np.float32), "no_object_pointer": np.ones((1, 4), np.float32)}
    with pytest.raises(TensorMismatchError, match=r"'no_obj\w+' and 'no_obj\w+' both .* differ"):
        written(tmp_path, arrays)


# ------------------------------------------------------------------------------------------------ whole files


def transformers_arrays(config: Sam2Config) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A stand-in's weights under Meta's keys and as transformers would save them."""
    weights = stand_in_weights(config)
    weights |= {key: np.zeros((1, 1, config.d_model), np.float32) for key in sam2.UNUSED_TENSORS}
    arrays: dict[str, np.ndarray] = {}
    for entry in video_entries(config):
        rows = [arrays[entry.name]] if entry.row else []
        arrays[entry.name] = np.concatenate([*rows, weights[entry.key]])
    return weights, {**arrays, FOURIER_TWICE[0]: weights[FOURIER]}


def test_a_file_of_transformers_loads(tmp_path: Path) -> None:
    config = tiny_config()
    weights, arrays = transformers_arrays(config)
    write_safetensors(tmp_path / "model.safetensors", arrays, {CONFIG_KEY: config.to_json()})
    model = load(tmp_path / "model.safetensors")
    assert model.config == config
    for key, array in weights.items():
        np.testing.assert_array_equal(model.tensor(key), array, key)
    for name in (*sam2.IMAGE_STAGES, *sam2.VIDEO_STAGES):
        assert model.stage(name)  # checks that all tensors are there, and no others


@pytest.mark.parametrize("preset", ["sam2_hiera_tiny", "sam2.1_hiera_tiny", "sam2.1_hiera_base_plus"])
def test_the_stages_read_all_of_a_published_file(preset: str) -> None:
    """In the shapes that the map written out states, but for what is unused with a reason."""
    config = sam2.PRESETS[preset]
    stages = [write_stage(config, name, 256, "fused") for name in (*sam2.IMAGE_STAGES, *sam2.VIDEO_STAGES)]
    read = {key: shape for stage in stages for key, shape in stage.tensors.items()}
    published = {entry.key: entry.shape for entry in video_entries(config)}
    assert read == {key: shape for key, shape in published.items() if key not in sam2.UNUSED_TENSORS}
    assert published.keys() >= sam2.UNUSED_TENSORS.keys()


def test_loading_is_strict(tmp_path: Path) -> None:
    config = tiny_config()
    _, arrays = transformers_arrays(config)
    arrays["mask_decoder.hf_token.weight"] = arrays.pop("mask_decoder.iou_token.weight")
    write_safetensors(tmp_path / "model.safetensors", arrays, {CONFIG_KEY: config.to_json()})
    with pytest.raises(
        TensorMismatchError, match=r"missing: sam_mask_decoder\.iou_token.*not known: mask_decoder\.hf_token"
    ):
        load(tmp_path / "model.safetensors")
