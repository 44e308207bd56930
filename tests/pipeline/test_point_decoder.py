"""Points rated and drawn apart, or decoded on what they share, equal points decoded at once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.pipeline.conventions import conventions_of
from masklet.pipeline.point_decoder import PointDecoder

RELATIVE = 2e-5  # of the largest value: float32 sums in another order, through a whole decoder
SIZE_HW = (90, 120)
CONFIGS = (testing.tiny_config(), testing.tiny_sam1_config(), testing.tiny_edgetam_config())


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda config: config.family)
def model(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    testing.write_stand_in(path, request.param)
    return masklet.load(path, threads=1)


@pytest.fixture
def features(model):
    image = testing.synthetic_scene(3, SIZE_HW).image
    return model.encode_image(conventions_of(model.config).picture(image, model.image_size), SIZE_HW)


def points(model, count):
    xy = np.random.default_rng(count).uniform(0, 1, (count, 1, 2)) * [SIZE_HW[1], SIZE_HW[0]]
    make = conventions_of(model.config).prompts
    return make(xy, np.ones((count, 1)), None, None, size_hw=SIZE_HW, image_size=model.image_size)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (5, [0, 3, 4]), (8, [6])])
def test_the_same_as_decoding_at_once(model, features, count, kept, fused, monkeypatch):
    monkeypatch.setattr(model, "dialect", "fused" if fused else "portable")
    prompts, decoder = points(model, count), PointDecoder(model).on(features)
    expected = model.decode(features, prompts)
    rated = decoder.rate(prompts)
    limit = RELATIVE * max(1, np.abs(expected.iou).max())
    np.testing.assert_allclose(rated.iou, expected.iou, rtol=0, atol=limit)
    drawn = decoder.draw(rated, np.array(kept))
    limit = RELATIVE * np.abs(expected.logits).max()
    np.testing.assert_allclose(drawn, expected.logits[kept], rtol=0, atol=limit)


@pytest.mark.parametrize("dialect", ["fused", "portable"])
@pytest.mark.parametrize("count", [1, 5])
def test_decoding_on_what_prompts_share(model, count, dialect):
    own = masklet.load(model.source, threads=1, dialect=dialect)
    image = testing.synthetic_scene(3, SIZE_HW).image
    picture = conventions_of(own.config).picture(image, own.image_size)
    features, prompts = own.encode_image(picture, SIZE_HW), points(own, count)
    plain, shared = own.decode(features, prompts), own.decode(own.share(features), prompts)
    assert set(own._sessions) >= {"decode_masks", "decode_shared"}
    for name, expected in vars(plain).items():
        limit = RELATIVE * max(1, np.abs(expected[np.isfinite(expected)]).max(initial=0))
        np.testing.assert_allclose(getattr(shared, name), expected, rtol=0, atol=limit, err_msg=name)


def test_a_mask_or_another_embedding_is_not_what_prompts_share(model, features):
    shared, prompts = model.share(features), points(model, 1)
    side = model.image_size // 4
    mask = np.random.default_rng(0).normal(0, 5, (1, 1, side, side)).astype(np.float32)
    masked = dataclasses.replace(prompts, mask=mask)
    other = features.values["embedding"].numpy() + 1
    for given, embedding in ((masked, None), (prompts, other)):
        expected = model.decode(features, given, embedding)
        np.testing.assert_array_equal(model.decode(shared, given, embedding).logits, expected.logits)
        assert np.abs(expected.logits - model.decode(features, prompts).logits).max() > 1e-3


def test_points_of_one_call_do_not_see_each_other(model, features):
    prompts, decoder = points(model, 3), PointDecoder(model).on(features)
    together = decoder.rate(prompts).iou
    for index in range(3):
        alone = type(prompts)(prompts.coords[index : index + 1], prompts.labels[index : index + 1], None)
        np.testing.assert_allclose(decoder.rate(alone).iou[0], together[index], rtol=0, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 1e-3
