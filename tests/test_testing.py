"""Lively weights, synthetic scenes and clips: the same numbers everywhere, and worth testing with."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from masklet.errors import InputError
from masklet.testing import (
    Clip,
    lively_weights,
    sampled,
    stand_in_weights,
    synthetic_clip,
    synthetic_scene,
    tiny_config,
    weights_sha256,
)

SHAPES = {
    "image_encoder.trunk.pos_embed": (1, 96, 7, 7),
    "image_encoder.trunk.blocks.0.norm1.weight": (512,),
    "image_encoder.trunk.blocks.0.attn.qkv.weight": (288, 96),
    "image_encoder.trunk.blocks.0.attn.qkv.bias": (288,),
    "image_encoder.trunk.patch_embed.proj.weight": (96, 3, 7, 7),
    "memory_encoder.fuser.layers.0.dwconv.weight": (256, 1, 7, 7),
    "memory_encoder.fuser.layers.0.gamma": (256,),
    "sam_mask_decoder.output_upscaling.0.weight": (256, 64, 2, 2),
    "sam_mask_decoder.mask_tokens.weight": (4, 256),
    "sam_mask_decoder.pred_obj_score_head.layers.2.bias": (1,),
    "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 128),
}


# ---------------------------------------------------------------------------------------------------- weights


def test_weights_are_the_same_everywhere() -> None:
    """Golden files store only the seed: this sum may change only together with them."""
    assert (
        weights_sha256(lively_weights(SHAPES, 7))
        == "54ca9cf3edb3953b30c9f3f8ea90058708669f090708a22fc2c7812bae81ee21"
    )


def test_a_tensor_depends_on_seed_name_and_shape_only() -> None:
    whole = lively_weights(SHAPES, 3)
    for name in reversed(SHAPES):
        np.testing.assert_array_equal(lively_weights({name: SHAPES[name]}, 3)[name], whole[name])
    name = "image_encoder.trunk.blocks.0.attn.qkv.weight"
    other_name = name.replace("blocks.0", "blocks.1")
    assert not np.array_equal(lively_weights({other_name: SHAPES[name]}, 3)[other_name], whole[name])
    assert not np.array_equal(lively_weights({name: SHAPES[name]}, 4)[name], whole[name])


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("image_encoder.trunk.pos_embed", 0, 0.3),
        ("image_encoder.trunk.blocks.0.norm1.weight", 1, 0.15),
        ("image_encoder.trunk.blocks.0.attn.qkv.weight", 0, 96**-0.5),
        ("image_encoder.trunk.blocks.0.attn.qkv.bias", 0, 0.1),
        ("image_encoder.trunk.patch_embed.proj.weight", 0, 147**-0.5),
        ("memory_encoder.fuser.layers.0.dwconv.weight", 0, 49**-0.5),
        ("memory_encoder.fuser.layers.0.gamma", 0.5, 0.1),
        ("sam_mask_decoder.output_upscaling.0.weight", 0, 256**-0.5),  # transposed: inputs come first
        ("sam_mask_decoder.mask_tokens.weight", 0, 0.3),
        ("sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", 0, 1),
    ],
)
def test_each_role_has_its_distribution(name: str, mean: float, std: float) -> None:
    array = lively_weights({name: SHAPES[name]})[name]
    assert array.dtype == np.float32
    assert array.mean() == pytest.approx(mean, abs=4 * std / array.size**0.5)
    assert array.std() == pytest.approx(std, rel=3 / array.size**0.5)


@pytest.mark.parametrize(
    ("name", "shape", "gain"),
    [
        ("memory_attention.layers.0.cross_attn_image.q_proj.weight", (256, 256), 3),
        ("memory_attention.layers.0.cross_attn_image.k_proj.weight", (256, 64), 1),
        ("memory_attention.layers.0.self_attn.q_proj.weight", (256, 256), 1),
        ("obj_ptr_tpos_proj.weight", (64, 256), 4),
    ],
)
def test_memories_are_told_apart(name: str, shape: tuple[int, int], gain: float) -> None:
    """With unit gains, attention would mix all memories evenly."""
    array = lively_weights({name: shape})[name]
    assert array.std() == pytest.approx(gain * shape[1] ** -0.5, rel=0.05)


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_stand_ins_can_track(version: str) -> None:
    config = tiny_config(version, image_size=64)
    weights = stand_in_weights(config, object_score_bias=5.0)
    assert weights["sam_mask_decoder.pred_obj_score_head.layers.2.bias"].tolist() == [5.0]
    assert weights["maskmem_tpos_enc"].shape == (7, 1, 1, config.memory_dim)
    assert (
        ("no_obj_embed_spatial" in weights) == ("obj_ptr_tpos_proj.weight" in weights) == (version == "2.1")
    )
    assert any(name.startswith("memory_encoder.") for name in weights)
    assert all(array.std() > 0 for array in weights.values() if array.size > 1)


def test_object_score_bias_replaces_one_value() -> None:
    plain, biased = lively_weights(SHAPES), lively_weights(SHAPES, object_score_bias=-5)
    changed = [name for name in SHAPES if not np.array_equal(plain[name], biased[name])]
    assert changed == ["sam_mask_decoder.pred_obj_score_head.layers.2.bias"]
    assert biased[changed[0]].tolist() == [-5.0]


@pytest.mark.parametrize(
    ("name", "shape"), [("step", ()), ("image_encoder.trunk.mystery", (3, 4)), ("a.weight", ())]
)
def test_an_unknown_role_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=name):
        lively_weights({name: shape})


def test_checksum_sees_names_shapes_and_values() -> None:
    base = {"a": np.arange(4, dtype=np.float32), "b": np.zeros(2, np.float32)}
    sums = {
        weights_sha256(changed)
        for changed in (
            base,
            {"a": base["a"], "c": base["b"]},
            {"a": base["a"].reshape(2, 2), "b": base["b"]},
            {"a": base["a"] + np.float32(1e-6), "b": base["b"]},
        )
    }
    assert len(sums) == 4
    assert weights_sha256(dict(reversed(base.items()))) in sums


# ---------------------------------------------------------------------------------------------------- samples


def test_small_arrays_are_kept_whole() -> None:
    array = np.arange(12).reshape(3, 4)
    assert sampled(array, 12) is array
    assert sampled(array, 11).shape == (11,)


def test_samples_spread_evenly() -> None:
    """Every hundredth of the tensor, and every residue of common periods, is looked at."""
    positions = sampled(np.arange(1_000_000), 4096)
    assert np.bincount(positions // 10_000, minlength=100).min() > 30
    for period in (2, 4, 7, 14, 16, 32, 64):
        assert len(np.unique(positions % period)) == period
    assert len(np.unique(positions)) > 4000


# ----------------------------------------------------------------------------------------------------- scenes


@pytest.mark.parametrize(
    ("seed", "size_hw"), [(0, (720, 1280)), (1, (97, 64)), (2, (32, 32)), (3, (600, 33))]
)
def test_scene_holds_what_it_says(seed: int, size_hw: tuple[int, int]) -> None:
    scene = synthetic_scene(seed, size_hw)
    assert scene.image.shape == (*size_hw, 3)
    assert scene.image.dtype == np.uint8
    assert scene.masks.shape == (4, *size_hw)
    assert scene.masks.sum(0).max() == 1  # disjoint
    for mask, (x, y), (x0, y0, x1, y1) in zip(scene.masks, scene.points_xy, scene.boxes_xyxy, strict=True):
        assert mask[int(y), int(x)]
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max(), rows.max())
    assert scene.image.std() > 20


def test_scene_is_the_same_everywhere() -> None:
    """Golden files store only the seed: this sum may change only together with them."""
    scene = synthetic_scene(5, (144, 256))
    parts = (scene.image, scene.masks, scene.points_xy, scene.boxes_xyxy)
    assert (
        hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()
        == "6ca2a1c088e3dfe9e3b83433fa2cfb21fe00d184aa980d6a983cb80c46d0e887"
    )
    assert not np.array_equal(synthetic_scene(6, (144, 256)).image, scene.image)


def test_point_is_the_deepest() -> None:
    """Against the slow obvious way: for every pixel of a mask, the nearest pixel outside."""
    scene = synthetic_scene(4, (40, 48))
    for mask, (x, y) in zip(scene.masks, scene.points_xy, strict=True):
        outside = np.argwhere(~np.pad(mask, 1)) - 1
        inside = np.argwhere(mask)
        depth = np.abs(inside[:, None] - outside[None]).sum(2).min(1)
        point_depth = np.abs(np.array([y, x]) - outside).sum(1).min()
        assert point_depth == depth.max()


def test_a_tiny_scene_is_refused() -> None:
    with pytest.raises(InputError, match="31 x 200"):
        synthetic_scene(0, (31, 200))


# ------------------------------------------------------------------------------------------------------ clips


@pytest.fixture(scope="module")
def clip() -> Clip:
    return synthetic_clip(2, 24, (72, 96))


def test_clip_holds_what_it_says(clip: Clip) -> None:
    assert (clip.frames.shape, clip.frames.dtype) == ((24, 72, 96, 3), np.uint8)
    assert (clip.masks.shape, clip.masks.dtype) == ((24, 4, 72, 96), bool)
    assert clip.masks.sum(axis=1).max() == 1  # disjoint
    for frame in (0, 11, 23):
        for shape in range(4):
            mask = clip.masks[frame, shape]
            if mask.any():
                x, y = clip.point_xy(frame, shape)
                assert mask[int(y), int(x)]
                x0, y0, x1, y1 = clip.box_xyxy(frame, shape)
                rows, columns = np.nonzero(mask)
                assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max(), rows.max())


def test_everything_in_a_clip_moves(clip: Clip) -> None:
    """Shapes, background and noise; and shapes pass over each other."""
    for shape in range(4):
        assert len({mask.tobytes() for mask in clip.masks[:, shape]}) > 20
        areas = clip.masks[:, shape].sum(axis=(1, 2))
        assert areas.min() < 0.9 * areas.max()
    background = ~clip.masks.any(axis=1)
    always = background.all(axis=0)
    assert (clip.frames[0][always] != clip.frames[12][always]).mean() > 0.5


def test_a_frame_does_not_depend_on_the_clips_length(clip: Clip) -> None:
    shorter = synthetic_clip(2, 5, (72, 96))
    np.testing.assert_array_equal(shorter.frames, clip.frames[:5])
    np.testing.assert_array_equal(shorter.masks, clip.masks[:5])


def test_clip_is_the_same_everywhere(clip: Clip) -> None:
    """Golden files store only the seed: this sum may change only together with them."""
    digest = hashlib.sha256(clip.frames.tobytes() + clip.masks.tobytes()).hexdigest()
    assert digest == "6b37bc8eb5dfa9c47c4f1bf4bfd932087bd7f4a727423843b79796521b18196c"
    assert not np.array_equal(synthetic_clip(3, 1, (72, 96)).frames[0], clip.frames[0])


def test_a_hidden_shape_has_no_point() -> None:
    masks = np.zeros((2, 1, 40, 40), bool)
    masks[0, 0, 3, 4] = True
    clip = Clip(np.zeros((2, 40, 40, 3), np.uint8), masks)
    assert clip.point_xy(0, 0).tolist() == [4, 3]
    for ask in (clip.point_xy, clip.box_xyxy):
        with pytest.raises(InputError, match="shape 0 is hidden in frame 1"):
            ask(1, 0)


@pytest.mark.parametrize(("frames", "size_hw"), [(0, (72, 96)), (3, (31, 96))])
def test_a_clip_that_cannot_be_is_refused(frames: int, size_hw: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"0 frames|31 x 96"):
        synthetic_clip(0, frames, size_hw)
