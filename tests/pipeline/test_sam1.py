"""SAM through the pipeline: where `SamPredictor` differs from SAM 2; dumps, exports, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.errors import InputError
from masklet.pipeline.conventions import conventions_of
from masklet.pipeline.dump import dump, step_names
from masklet.pipeline.export import export
from masklet.pipeline.postprocess import resize_logits

POINT = {"point_coords": [[45, 30]], "point_labels": [1]}
SIZE_HW = (60, 90)
COVERED = 85  # of 128 rows: 60 * 128 / 90, rounded
RELATIVE = 2e-5  # of the largest value: the plain graph against the fused one


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_sam1_config())
    return masklet.load(path, threads=1)


@pytest.fixture(scope="module")
def image():
    return testing.synthetic_scene(3, SIZE_HW).image


@pytest.fixture
def predictor(model, image):
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(image)
    return predictor


def test_shapes(predictor):
    masks, scores, low_res = predictor.predict(**POINT)
    assert (masks.shape, masks.dtype) == ((3, *SIZE_HW), bool)
    assert (scores.shape, low_res.shape) == ((3,), (3, 32, 32))
    assert predictor.get_image_embedding().shape == (1, 64, 8, 8)
    boxes = np.array([[5, 5, 30, 30], [20, 10, 80, 50]])
    masks, scores, low_res = predictor.predict(box=boxes, multimask_output=False)
    assert (masks.shape, scores.shape, low_res.shape) == ((2, 1, *SIZE_HW), (2, 1), (2, 1, 32, 32))
    alone, *_ = predictor.predict(box=boxes[1], multimask_output=False)
    np.testing.assert_array_equal(masks[1], alone)
    assert 0 < masks.mean() < 1


def test_a_single_mask_is_the_first_tokens(model, predictor):
    steps = dump(model, testing.synthetic_scene(3, SIZE_HW).image, **POINT, multimask_output=False)
    _, score, low_res = predictor.predict(**POINT, multimask_output=False)
    np.testing.assert_allclose(low_res, steps["sam_mask_decoder.all_masks"][0, :1], atol=1e-4)
    np.testing.assert_allclose(score, steps["sam_mask_decoder.all_ious"][0, :1], atol=1e-4)


def test_logits_are_enlarged_in_two_steps_without_the_padding(predictor):
    logits, _, low_res = predictor.predict(**POINT, return_logits=True)
    square = resize_logits(low_res, (128, 128))
    np.testing.assert_array_equal(logits, resize_logits(square[:, :COVERED], SIZE_HW))
    masks, *_ = predictor.predict(**POINT)
    np.testing.assert_array_equal(masks, logits > 0)


def test_low_resolution_logits_are_not_clamped(model, predictor, monkeypatch):
    decode = model.decode

    def larger(*args, **options):
        candidates = decode(*args, **options)
        return type(candidates)(**{**vars(candidates), "logits": 100 * candidates.logits})

    monkeypatch.setattr(model, "decode", larger)
    _, _, low_res = predictor.predict(**POINT)
    assert np.abs(low_res).max() > 50


def test_what_lies_outside_the_picture_is_padding(model, image):
    """The same picture with black rows below is another input: padding comes after normalising."""
    square = np.zeros((90, 90, 3), np.uint8)
    square[:60] = image
    embeddings = []
    for picture in (image, square):
        predictor = masklet.ImagePredictor(model)
        predictor.set_image(picture)
        embeddings.append(predictor.get_image_embedding())
    assert np.abs(embeddings[0] - embeddings[1]).max() > 0.01


def test_a_mask_goes_in_again(predictor):
    _, _, low_res = predictor.predict(**POINT)
    alone, *_ = predictor.predict(mask_input=low_res[:1], return_logits=True)
    both, *_ = predictor.predict(**POINT, mask_input=low_res[:1], return_logits=True)
    assert np.abs(alone - both).max() > 0.01


@pytest.mark.parametrize("make", [testing.tiny_config, testing.tiny_sam1_config])
def test_image_format(tmp_path, image, make):
    """For SAM 2 as well."""
    testing.write_stand_in(tmp_path / "tiny.safetensors", make())
    predictor = masklet.ImagePredictor(masklet.load(tmp_path / "tiny.safetensors", threads=1))
    predictor.set_image(image)
    expected = predictor.get_image_embedding()
    predictor.set_image(image[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(predictor.get_image_embedding(), expected)
    predictor.set_image(image, "BGR")
    assert np.abs(predictor.get_image_embedding() - expected).max() > 0.01
    with pytest.raises(InputError, match=r"image_format is 'rgb'; give one of RGB, BGR"):
        predictor.set_image(image, image_format="rgb")
    with pytest.raises(InputError, match="'BGR' is for arrays, got str"):
        predictor.set_image("photo.jpg", image_format="BGR")


def test_another_input_size(tmp_path, image):
    """Tables of positions are resized; the mask covers the picture as before."""
    testing.write_stand_in(tmp_path / "tiny.safetensors", testing.tiny_sam1_config())
    model = masklet.load(tmp_path / "tiny.safetensors", threads=1, image_size=144)
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(image)
    masks, _, low_res = predictor.predict(**POINT)
    assert (masks.shape, low_res.shape) == ((3, *SIZE_HW), (3, 36, 36))
    assert predictor.get_image_embedding().shape == (1, 64, 9, 9)


# ---------------------------------------------------------------------------------------- dumps and exports


def test_a_dump_is_what_the_predictor_did(model, image, predictor):
    steps = dump(model, image, **POINT)
    names = step_names(model)
    assert list(steps) == [*names.image, *names.prompt]
    masks, ious, low_res = predictor.predict(**POINT)
    for name, value in {
        "image_embed": predictor.get_image_embedding(),
        "low_res_masks": low_res,
        "ious": ious,
        "masks": masks.astype(np.float32),
    }.items():
        got = steps[name].astype(np.float32)
        assert got.shape == value.shape
        np.testing.assert_allclose(got, value, rtol=0, atol=RELATIVE * np.abs(value).max(), err_msg=name)
    assert steps["image_encoder.blocks.0.attn.rel_h"].shape == (9 * 2, 3, 3, 3)  # windows and heads, h, w, h
    assert steps["image_encoder.blocks.3.attn.rel_w"].shape == (2, 8, 8, 8)
    assert steps["image_encoder.blocks.0"].shape == (1, 8, 8, 32)
    assert steps["image_encoder.neck.0"].shape == (1, 64, 8, 8)
    assert steps["sam_prompt_encoder.dense"].shape == (1, 64, 8, 8)


def test_one_block_alone(model, image):
    steps = dump(model, image, stages=["image_encoder.blocks.2.attn"])
    assert list(steps) == ["image_encoder.blocks.2.attn.rel_h", "image_encoder.blocks.2.attn.rel_w"]


def test_an_export_follows_its_manifest(model, image, tmp_path, predictor):
    """Run by ONNX Runtime alone, with what the manifest says about pictures, prompts and masks."""
    import onnxruntime
    from PIL import Image

    manifest = json.loads(export(model, tmp_path / "out").read_text())
    assert (manifest["family"], manifest["version"]) == ("sam1", "1")
    ports = {stage["name"]: stage for stage in manifest["stages"]}
    assert list(ports) == ["encode_image", "encode_points", "encode_mask", "decode_masks"]
    assert [port["name"] for port in ports["encode_image"]["outputs"]] == ["embedding"]
    assert [port["name"] for port in ports["decode_masks"]["outputs"]] == ["logits", "iou", "tokens"]
    for name, text in conventions_of(model.config).words.items():
        assert manifest[name] == text

    def run(name, **feeds):
        session = onnxruntime.InferenceSession(tmp_path / "out" / f"{name}.onnx")
        return dict(zip([port.name for port in session.get_outputs()], session.run(None, feeds), strict=True))

    pixels = np.zeros((1, 3, 128, 128), np.float32)
    resized = np.array(Image.fromarray(image).resize((128, COVERED), Image.Resampling.BILINEAR)) / 255
    mean, std = manifest["preprocessing"]["mean"], manifest["preprocessing"]["std"]
    pixels[0, :, :COVERED] = ((resized - mean) / std).transpose(2, 0, 1)
    embedding = run("encode_image", image=pixels)["embedding"]
    coords = np.array([[[45 * 128 / 90, 30 * COVERED / 60], [0, 0]]], np.float32)
    prompts = run("encode_points", coords=coords, labels=np.array([[1, -1]]))
    answer = run("decode_masks", embedding=embedding, **prompts)
    logits, iou, _ = predictor.predict(**POINT, return_logits=True)
    enlarged = resize_logits(resize_logits(answer["logits"][0, 1:], (128, 128))[:, :COVERED], SIZE_HW)
    np.testing.assert_allclose(enlarged, logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(answer["iou"][0, 1:], iou, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------- refusals


def test_it_does_not_track(model, image):
    with pytest.raises(InputError, match=r"SAM model, which is for pictures; give one of SAM 2"):
        model.stage("begin_frame")
    with pytest.raises(InputError, match="which is for pictures"):
        masklet.VideoPredictor(model).init_state([image, image])
    with pytest.raises(InputError, match="which is for pictures"):
        masklet.Tracker(model)
    with pytest.raises(InputError, match="without video"):
        export(model, "unused", video=True)
