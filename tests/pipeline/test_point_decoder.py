"""Points rated and drawn apart equal points decoded at once."""

from __future__ import annotations

import numpy as np
import pytest

from masklet import testing
from masklet.pipeline import point_decoder
from masklet.pipeline.point_decoder import PointDecoder
from masklet.pipeline.preprocess import image_input
from masklet.pipeline.prompts import make_prompts

RELATIVE = 2e-5  # of the largest value: float32 sums in another order, through a whole decoder
SIZE_HW = (90, 120)


@pytest.fixture(scope="module")
def features(searching_model):
    image = testing.synthetic_scene(3, SIZE_HW).image
    return searching_model.encode_image(image_input(image, 128), SIZE_HW)


def points(count):
    xy = np.random.default_rng(count).uniform(0, 1, (count, 1, 2)) * [SIZE_HW[1], SIZE_HW[0]]
    return make_prompts(xy, np.ones((count, 1)), None, None, size_hw=SIZE_HW, image_size=128)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("count", "kept"), [(1, [0]), (5, [0, 3, 4]), (8, [6])])
def test_the_same_as_decoding_at_once(searching_model, features, count, kept, fused, monkeypatch):
    monkeypatch.setattr(point_decoder, "FUSED_DEVICES", ("cpu",) if fused else ())
    prompts, decoder = points(count), PointDecoder(searching_model).on(features)
    expected = searching_model.decode(features, prompts)
    rated = decoder.rate(prompts)
    np.testing.assert_allclose(rated.iou, expected.iou, rtol=0, atol=RELATIVE)
    drawn = decoder.draw(rated, np.array(kept))
    limit = RELATIVE * np.abs(expected.logits).max()
    np.testing.assert_allclose(drawn, expected.logits[kept], rtol=0, atol=limit)


def test_points_of_one_call_do_not_see_each_other(searching_model, features):
    prompts, decoder = points(3), PointDecoder(searching_model).on(features)
    together = decoder.rate(prompts).iou
    for index in range(3):
        alone = type(prompts)(prompts.coords[index : index + 1], prompts.labels[index : index + 1], None)
        np.testing.assert_allclose(decoder.rate(alone).iou[0], together[index], rtol=0, atol=RELATIVE)
    assert np.abs(together[0] - together[1]).max() > 1e-3
