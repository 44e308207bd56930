"""The image predictor on a small network: shapes, state and refusals of `SAM2ImagePredictor`."""

from __future__ import annotations

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.errors import InputError, ModelNotFoundError, TensorMismatchError, UnknownFormatError
from masklet.io.safetensors import write_safetensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config())
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return masklet.load(checkpoint, threads=1)


@pytest.fixture
def predictor(model):
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(testing.synthetic_scene(3, (60, 90)).image)
    return predictor


def test_shapes_of_one_object(predictor):
    masks, scores, low_res = predictor.predict([[45, 30]], [1])
    assert masks.shape == (3, 60, 90)
    assert masks.dtype == bool
    assert scores.shape == (3,)
    assert low_res.shape == (3, 32, 32)
    assert low_res.dtype == scores.dtype == np.float32
    assert np.abs(low_res).max() <= 32


def test_shapes_of_several_objects(predictor):
    boxes = np.array([[5, 5, 30, 30], [20, 10, 80, 50]])
    masks, scores, low_res = predictor.predict(box=boxes, multimask_output=False)
    assert masks.shape == (2, 1, 60, 90)
    assert scores.shape == (2, 1)
    assert low_res.shape == (2, 1, 32, 32)
    alone, *_ = predictor.predict(box=boxes[1], multimask_output=False)
    np.testing.assert_array_equal(masks[1], alone)


def test_logits_on_request_cut_at_the_threshold_give_the_masks(predictor):
    logits, *_ = predictor.predict([[45, 30]], [1], return_logits=True)
    masks, *_ = predictor.predict([[45, 30]], [1])
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits > 0, masks)
    assert 0 < masks.mean() < 1


def test_a_mask_input_changes_the_answer_alone_and_with_a_point(predictor):
    _, _, low_res = predictor.predict([[45, 30]], [1])
    alone, *_ = predictor.predict(mask_input=low_res[:1], return_logits=True)
    both, *_ = predictor.predict([[45, 30]], [1], mask_input=low_res[:1], return_logits=True)
    point, *_ = predictor.predict([[45, 30]], [1], return_logits=True)
    assert np.abs(alone - both).max() > 0.01
    assert np.abs(point - both).max() > 0.01


def test_fractions_equal_pixels(predictor):
    pixels, *_ = predictor.predict([[45, 30]], [1], return_logits=True)
    fractions, *_ = predictor.predict([[0.5, 0.5]], [1], return_logits=True, normalize_coords=False)
    np.testing.assert_allclose(fractions, pixels, atol=1e-4)


def test_batch_equals_one_by_one(model):
    pictures = [testing.synthetic_scene(seed, size).image for seed, size in ((1, (60, 90)), (2, (64, 48)))]
    points = [np.array([[10, 10]]), np.array([[20, 30]])]
    batch = masklet.ImagePredictor(model)
    batch.set_image_batch(pictures)
    masks, scores, low_res = batch.predict_batch(points, [np.array([1])] * 2)
    assert batch.get_image_embedding().shape == (2, 64, 8, 8)
    for index, picture in enumerate(pictures):
        single = masklet.ImagePredictor(model)
        single.set_image(picture)
        expected = single.predict(points[index], np.array([1]))
        for got, want in zip((masks[index], scores[index], low_res[index]), expected, strict=True):
            np.testing.assert_array_equal(got, want)


def test_state(model, predictor):
    assert predictor.get_image_embedding().shape == (1, 64, 8, 8)
    predictor.reset_predictor()
    with pytest.raises(InputError, match="set_image"):
        predictor.predict([[1, 1]], [1])
    with pytest.raises(InputError, match="set_image"):
        predictor.get_image_embedding()
    with pytest.raises(InputError, match="set_image_batch"):
        predictor.predict_batch()
    with pytest.raises(InputError, match="list"):
        predictor.set_image_batch(np.zeros((2, 8, 8, 3), np.uint8))


def test_holes_are_filled_on_the_cpu(model, predictor):
    plain, *_ = predictor.predict([[45, 30]], [1], multimask_output=False)
    cleaning = masklet.ImagePredictor(model, max_hole_area=10_000, max_sprinkle_area=0)
    cleaning.set_image(testing.synthetic_scene(3, (60, 90)).image)
    filled, *_ = cleaning.predict([[45, 30]], [1], multimask_output=False)
    assert filled.sum() > plain.sum()


def test_a_picture_of_one_pixel(model):
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(np.zeros((1, 1, 3), np.uint8))
    masks, *_ = predictor.predict([[0, 0]], [1])
    assert masks.shape == (3, 1, 1)


def test_the_input_size_is_a_setting(checkpoint):
    model = masklet.load(checkpoint, image_size=160, threads=1)
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(testing.synthetic_scene(3, (60, 90)).image)
    masks, _, low_res = predictor.predict([[45, 30]], [1])
    assert masks.shape == (3, 60, 90)
    assert low_res.shape == (3, 40, 40)


@pytest.mark.parametrize("size", [100, 0, -32, "large", 33])
def test_refused_input_sizes(checkpoint, size):
    with pytest.raises(InputError, match="multiple of 32"):
        masklet.load(checkpoint, image_size=size)


def test_refused_precision(checkpoint):
    with pytest.raises(InputError, match="f32"):
        masklet.load(checkpoint, precision="f8")


def test_missing_and_extra_tensors_are_named(tmp_path):
    config = testing.tiny_config()
    weights = testing.stand_in_weights(config)
    del weights["no_mem_embed"]
    weights["sam_mask_decoder.surprise"] = np.zeros(3, np.float32)
    weights["sam_mask_decoder.conv_s0.bias"] = np.zeros(9, np.float32)
    path = tmp_path / "odd.safetensors"
    write_safetensors(path, weights, {"masklet.config": config.to_json()})
    with pytest.raises(TensorMismatchError) as caught:
        masklet.load(path)
    for part in (
        "missing: no_mem_embed",
        "not known: sam_mask_decoder.surprise",
        r"conv_s0.bias (9,) instead of (8,)",
    ):
        assert part in str(caught.value)


def test_a_checkpoint_of_another_family(tmp_path):
    path = tmp_path / "other.safetensors"
    write_safetensors(path, {"encoder.layer.0.weight": np.zeros((2, 2), np.float32)}, {})
    with pytest.raises(UnknownFormatError, match=r"SAM 2.*encoder.layer.0.weight"):
        masklet.load(path)


@pytest.mark.parametrize(
    "text", ["{}", "nonsense", '{"family": "sam2", "trunk": {}}', "[1]", '{"family": "sam9"}']
)
def test_unreadable_configuration(tmp_path, text):
    path = tmp_path / "config.safetensors"
    write_safetensors(path, {"a": np.zeros(1, np.float32)}, {"masklet.config": text})
    with pytest.raises(UnknownFormatError, match=r"masklet\.config"):
        masklet.load(path)


def test_neither_file_nor_name():
    with pytest.raises(ModelNotFoundError, match="no file"):
        masklet.load("missing.pt")
    with pytest.raises(ModelNotFoundError, match=r"sam2\.1_hiera_tiny"):
        masklet.load("sam2.1_hiera_tini")
