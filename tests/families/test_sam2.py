"""Recognition from names and shapes, configuration as metadata, and whether a file has all tensors."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest

import masklet
from masklet.errors import TensorMismatchError, UnknownFormatError
from masklet.families import sam2
from masklet.families.family import CONFIG_KEY
from masklet.families.table import from_metadata, preset_name
from masklet.io.safetensors import write_safetensors
from masklet.testing import stand_in_weights, tiny_config

TRUNK = "image_encoder.trunk."


def trunk_shapes(config: sam2.Sam2Config) -> dict[str, tuple[int, ...]]:
    """The few tensors that recognition looks at."""
    shapes = {f"{TRUNK}patch_embed.proj.weight": (config.trunk.embed_dim, 3, 7, 7)}
    index = 0
    for stage, depth in enumerate(config.trunk.stages):
        for position in range(depth):
            shapes[f"{TRUNK}blocks.{index}.norm1.weight"] = (1,)
            if stage and position == 0:
                shapes[f"{TRUNK}blocks.{index}.proj.weight"] = (1, 1)
            index += 1
    if config.version == "2.1":
        shapes["no_obj_embed_spatial"] = (1, 64)
    return shapes


@pytest.mark.parametrize("name", sam2.PRESETS)
def test_all_eight_are_recognised(name):
    config = sam2.recognise(trunk_shapes(sam2.PRESETS[name]))
    assert config == sam2.PRESETS[name]
    assert preset_name(config) == name


def test_another_trunk_is_described():
    shapes = trunk_shapes(sam2.PRESETS["sam2_hiera_tiny"])
    shapes[f"{TRUNK}patch_embed.proj.weight"] = (64, 3, 7, 7)
    with pytest.raises(UnknownFormatError, match=r"width 64 and blocks \(1, 2, 7, 2\).*masklet\.config"):
        sam2.recognise(shapes)


def test_a_strange_block_name_is_our_error():
    shapes = trunk_shapes(sam2.PRESETS["sam2_hiera_tiny"]) | {f"{TRUNK}blocks.x.norm1.weight": (1,)}
    with pytest.raises(UnknownFormatError):
        sam2.recognise(shapes)


def test_metadata_round_trip():
    for config in (tiny_config(), *sam2.PRESETS.values()):
        assert from_metadata(config.to_json()) == config


@pytest.mark.parametrize(
    "change",
    [
        *({"memory_dim": value} for value in (24, 0, 1, None)),
        {"d_model": 48, "memory_dim": 32},
        {"mlp_dim": 0},
        {"memory_layers": 65},
    ],
)
def test_metadata_with_sizes_that_cannot_be(change):
    values = json.loads(tiny_config().to_json())
    with pytest.raises(UnknownFormatError, match=r"not a configuration that this version knows"):
        from_metadata(json.dumps({**values, **change}))
    del values["memory_dim"]
    with pytest.raises(UnknownFormatError, match=r"missing \['memory_dim'\]"):
        from_metadata(json.dumps(values))


def test_presets_differ_in_what_the_files_show():
    seen = {(c.version, c.trunk.embed_dim, c.trunk.stages) for c in sam2.PRESETS.values()}
    assert len(seen) == len(sam2.PRESETS)


# ----------------------------------------------------------------------------------------- pictures and video


@cache
def weights(version="2.1"):
    return stand_in_weights(tiny_config(version, image_size=64))


@pytest.fixture
def load(tmp_path):
    """A model from changed tensors of a stand-in: name -> array, None takes one away."""

    def load(changes, version="2.1", keep=lambda name: True):
        tensors = {name: array for name, array in weights(version).items() if keep(name)}
        tensors = {name: array for name, array in {**tensors, **changes}.items() if array is not None}
        config = tiny_config(version, image_size=64)
        write_safetensors(tmp_path / "model.safetensors", tensors, {CONFIG_KEY: config.to_json()})
        return masklet.load(tmp_path / "model.safetensors", threads=1)

    return load


def is_of_video(name):
    return name.startswith(sam2.VIDEO_TENSORS)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_a_whole_file_serves_both(load, version):
    model = load({"no_mem_pos_enc": np.zeros((1, 1, 64), np.float32)}, version)
    for name in (*sam2.IMAGE_STAGES, *sam2.VIDEO_STAGES):
        assert model.stage(name).name == name
    of_video = {name for name in weights(version) if is_of_video(name)}
    used = {key for name in sam2.VIDEO_STAGES for key in model.stage(name).tensors}
    assert used == of_video


def test_image_tensors_alone_segment_pictures_and_refuse_video(load):
    model = load({}, keep=lambda name: not is_of_video(name))
    assert model.stage("decode_masks")
    for _ in range(2):  # not only the first time
        with pytest.raises(TensorMismatchError, match=r"image part .*only; tracking needs .*published file"):
            model.stage("begin_frame")


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_a_missing_video_tensor_is_refused_when_video_is_used(load, version):
    model = load({"memory_attention.norm.weight": None, "maskmem_tpos_enc": None}, version)
    with pytest.raises(
        TensorMismatchError, match=r"missing: maskmem_tpos_enc, memory_attention\.norm\.weight"
    ):
        model.stage("attend_memory")


@pytest.mark.parametrize(
    "name", ["memory_attention.layers.4.norm1.weight", "memory_encoder.gate", "no_obj_ptr.extra"]
)
def test_an_extra_video_tensor_is_refused_when_video_is_used(load, name):
    model = load({name: np.zeros(4, np.float32)})
    with pytest.raises(TensorMismatchError, match=f"not known: {name}"):
        model.stage("attend_memory")


def test_video_tensors_of_2_1_in_a_file_of_2_0_are_extra(load):
    model = load({"no_obj_embed_spatial": np.zeros((1, 16), np.float32)}, "2.0")
    with pytest.raises(TensorMismatchError, match="not known: no_obj_embed_spatial"):
        model.stage("encode_memory")


def test_a_video_tensor_of_another_shape(load):
    model = load({"no_obj_ptr": np.zeros((2, 64), np.float32)})
    with pytest.raises(
        TensorMismatchError, match=r"of another shape: no_obj_ptr \(2, 64\) instead of \(1, 64\)"
    ):
        model.stage("point_to_object")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"no_mem_embed": None}, "missing: no_mem_embed"),
        ({"surprise": np.zeros(2, np.float32)}, "not known: surprise"),
        ({"no_mem_embed": np.zeros((1, 1, 8), np.float32)}, "of another shape: no_mem_embed"),
    ],
)
def test_image_tensors_are_checked_at_once(load, changes, message):
    with pytest.raises(TensorMismatchError, match=message):
        load(changes)
    with pytest.raises(TensorMismatchError, match=message):
        load(changes, keep=lambda name: not is_of_video(name))


def test_long_lists_are_cut():
    expected = {f"memory_encoder.{index:02}": (1,) for index in range(20)}
    with pytest.raises(
        TensorMismatchError, match=r"missing: memory_encoder\.01, .*memory_encoder\.08 and 11 more"
    ):
        sam2.FAMILY.check_tensors(expected, {"memory_encoder.00": (1,)}, "file", video=True)
