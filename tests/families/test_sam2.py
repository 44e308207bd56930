"""Recognition from names and shapes, configuration as metadata."""

from __future__ import annotations

import pytest

from masklet.errors import UnknownFormatError
from masklet.families import sam2
from masklet.testing import tiny_config

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
    assert sam2.preset_name(config) == name


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
        assert sam2.from_metadata(config.to_json()) == config


def test_presets_differ_in_what_the_files_show():
    seen = {(c.version, c.trunk.embed_dim, c.trunk.stages) for c in sam2.PRESETS.values()}
    assert len(seen) == len(sam2.PRESETS)
