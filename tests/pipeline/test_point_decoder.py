"""Points rated and drawn apart equal points decoded at once, in every family."""

from __future__ import annotations

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


def test_points_of_one_call_do_not_see_each_other(model, features):
    prompts, decoder = points(model, 3), PointDecoder(model).on(features)
    together = decoder.rate(prompts).iou
    for index in range(3):
        alone = type(prompts)(prompts.coords[index : index + 1], prompts.labels[index : index + 1], None)
        np.testing.assert_allclose(decoder.rate(alone).iou[0], together[index], rtol=0, atol=1e-4)
    assert np.abs(together[0] - together[1]).max() > 1e-3
