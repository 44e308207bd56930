"""EdgeTAM: recognition, configuration as metadata, strict tensors, and a model through all predictors."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import masklet
from masklet.errors import InputError, TensorMismatchError, UnknownFormatError
from masklet.families import edgetam
from masklet.families.family import CONFIG_KEY
from masklet.families.table import family_of, from_metadata, preset_name, recognise
from masklet.io.safetensors import write_safetensors
from masklet.testing import stand_in_weights, synthetic_clip, tiny_edgetam_config, write_stand_in

PUBLISHED = edgetam.PRESETS["edgetam"]
BODY = "image_encoder.trunk.body."
SIZE = 64


def told(config: edgetam.EdgeTamConfig) -> dict[str, tuple[int, ...]]:
    """The few tensors that recognition looks at."""
    shapes = {edgetam.STEM: (config.width // 2, 3, 3, 3), "sam_mask_decoder.iou_token.weight": (1, 256)}
    for stage, depth in enumerate(config.blocks):
        for block in range(depth):
            shapes[f"{BODY}stages_{stage}.blocks.{block}.token_mixer.conv.bn.bias"] = (1,)
    shapes[edgetam.LATENTS] = (config.latents, config.memory_dim)
    shapes[edgetam.LATENTS_2D] = (config.latents_2d, config.memory_dim)
    return shapes


def test_the_published_model_is_recognised():
    config = recognise(told(PUBLISHED), {})
    assert config == PUBLISHED
    assert preset_name(config) == "edgetam"
    assert family_of(config) is edgetam.FAMILY
    places = config.memory_places(1024)
    assert (places.grid_hw, places.placeless, places.count) == ((16, 16), 256, 512)


def test_its_image_part_is_recognised():
    shapes = {name: shape for name, shape in told(PUBLISHED).items() if "perceiver" not in name}
    assert recognise(shapes, {}) == PUBLISHED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": 128}, r"latents \(128, 256\)"),
        ({"trunk": dataclasses.replace(PUBLISHED.trunk, depths=(2, 2, 12, 2))}, r"blocks \(2, 2, 12, 2\)"),
        ({"trunk": dataclasses.replace(PUBLISHED.trunk, embed_dims=(64, 128, 256, 512))}, "width 64"),
    ],
    ids=str,
)
def test_another_network_is_described(changes, message):
    with pytest.raises(UnknownFormatError, match=message):
        recognise(told(dataclasses.replace(PUBLISHED, **changes)), {})


def test_a_strange_name_is_our_error():
    with pytest.raises(UnknownFormatError):
        recognise({**told(PUBLISHED), f"{BODY}stages_0.blocks.": (1,), f"{BODY}stages_1.blocks.x": (1,)}, {})


def test_metadata_round_trip():
    for config in (PUBLISHED, tiny_edgetam_config()):
        assert from_metadata(config.to_json()) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"latents_2d": 15},
        {"latents": 0},
        {"latents": None},
        {"image_size": 100},
        {"memory_dim": 48},
        {"perceiver_layers": 65},
        {"trunk": {"embed_dims": [48, 96, 192], "depths": [2, 2, 14, 2]}},
        {"trunk": {"embed_dims": [47, 96, 192, 384], "depths": [2, 2, 14, 2]}},
        {"trunk": {"embed_dims": [48, 96, 192, 384], "depths": [2, 2, 999, 2]}},
        {"trunk": {"embed_dims": [48, 96, 192, 384]}},
    ],
    ids=str,
)
def test_metadata_that_makes_no_network(changes):
    values = json.loads(PUBLISHED.to_json()) | changes
    with pytest.raises(UnknownFormatError):
        from_metadata(json.dumps(values))


# ---------------------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def weights():
    return stand_in_weights(tiny_edgetam_config(SIZE), 2, object_score_bias=3.0)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    write_stand_in(path, tiny_edgetam_config(SIZE), 2, object_score_bias=3.0)
    return masklet.load(path)


def saved(folder, tensors):
    path = folder / "tiny.safetensors"
    write_safetensors(path, tensors, {CONFIG_KEY: tiny_edgetam_config(SIZE).to_json()})
    return path


def test_counters_of_batch_norms_are_left_alone(tmp_path, weights):
    masklet.load(saved(tmp_path, {**weights, f"{BODY}stem.conv1.bn.num_batches_tracked": np.zeros(1)}))


def test_tensors_are_strict(tmp_path, weights):
    name = f"{BODY}stages_0.blocks.0.token_mixer.conv1.bn.running_mean"
    with pytest.raises(TensorMismatchError, match=f"missing: {name}"):
        masklet.load(saved(tmp_path, {key: x for key, x in weights.items() if key != name}))
    with pytest.raises(TensorMismatchError, match=r"not known: .*bn1\.weight"):
        masklet.load(saved(tmp_path, {**weights, f"{BODY}stem.bn1.weight": np.zeros(1, np.float32)}))


def test_the_image_part_alone_does_not_track(tmp_path, weights):
    prefixes = edgetam.FAMILY.video_tensors
    part = {name: array for name, array in weights.items() if not name.startswith(prefixes)}
    model = masklet.load(saved(tmp_path, part))
    with pytest.raises(TensorMismatchError, match="EdgeTAM model only"):
        model.stage("encode_memory")


def test_a_picture(model):
    clip = synthetic_clip(0, 1, (64, 96))
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(clip.frames[0])
    masks, scores, low_res = predictor.predict(clip.point_xy(0, 0)[None], [1])
    assert masks.shape == (3, 64, 96)
    assert low_res.shape == (3, SIZE // 4, SIZE // 4)
    assert scores.shape == (3,)


@pytest.mark.parametrize("state", ["disk", "memory"])
def test_a_clip(model, state):
    """Memories have as many tokens as the perceiver has latents, wherever they are kept."""
    clip = synthetic_clip(0, 4, (64, 96))
    predictor = masklet.VideoPredictor(model, state=state)
    with predictor.init_state(list(clip.frames)) as video:
        predictor.add_new_points_or_box(video, 0, 1, points=clip.point_xy(0, 0)[None], labels=[1])
        predictor.add_new_mask(video, 0, 2, clip.masks[0, 1])
        yielded = [(frame, ids, logits.shape) for frame, ids, logits in predictor.propagate_in_video(video)]
        assert yielded == [(frame, [1, 2], (2, 1, 64, 96)) for frame in range(4)]
        for track in video.tracks.values():
            memory = track.recall(2).memory
            assert memory.shape == (16 + 16, 16)


def test_a_stream(model):
    """Frame by frame, the masks of a clip whose length is known."""
    clip = synthetic_clip(0, 3, (64, 96))
    tracker, results = masklet.Tracker(model, fill_hole_area=0), []
    tracker.push(clip.frames[0])
    results.append(tracker.add_points_or_box(1, points=[clip.point_xy(0, 0)], labels=[1]))
    results += [tracker.push(frame) for frame in clip.frames[1:]]
    predictor = masklet.VideoPredictor(model, fill_hole_area=0)
    with predictor.init_state(list(clip.frames)) as state:
        predictor.add_new_points_or_box(state, 0, 1, points=[clip.point_xy(0, 0)], labels=[1])
        masks = [logits[0, 0] > 0 for _, _, logits in predictor.propagate_in_video(state)]
    for result, mask in zip(results, masks, strict=True):
        np.testing.assert_array_equal(result.objects[0].mask, mask)
        assert 0.02 < mask.mean() < 0.98  # else it says nothing


def test_a_size_that_tracking_cannot_have(tmp_path, weights):
    """Pictures may have it; the perceiver's windows do not divide a grid of 6 x 6."""
    model = masklet.load(saved(tmp_path, weights), image_size=96)
    with pytest.raises(InputError, match="image_size"):
        model.stage("encode_memory")
