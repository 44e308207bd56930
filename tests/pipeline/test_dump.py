"""Named steps of the plain graph: complete, in order, the predictor's own, no more computed than needed."""

from __future__ import annotations

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.errors import InputError
from masklet.pipeline import dump as dump_module
from masklet.pipeline.dump import StepNames, dump, listed, select_steps, step_names

POINT = {"point_coords": [[45, 30]], "point_labels": [1]}
RELATIVE = 2e-5  # of the largest value: the plain graph against the fused one


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config())
    return masklet.load(path, threads=1)


@pytest.fixture(scope="module")
def image():
    return testing.synthetic_scene(3, (60, 90)).image


@pytest.fixture(scope="module")
def steps(model, image):
    return dump(model, image, **POINT)


def close(got, wanted):
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=0, atol=RELATIVE * np.abs(wanted).max())


def test_everything_is_there_in_the_order_of_the_data(model, steps):
    names = step_names(model)
    assert list(steps) == [*names.image, *names.prompt]
    for earlier, later in (
        ("pixels", "image_encoder.trunk.patch_embed"),
        ("image_encoder.trunk.blocks.6", "image_encoder.neck.0"),
        ("image_embed", "sam_prompt_encoder.sparse"),
        ("sam_mask_decoder.transformer.layers.0.keys", "sam_mask_decoder.transformer.layers.1.queries"),
        ("sam_mask_decoder.all_masks", "masks"),
    ):
        assert list(steps).index(earlier) < list(steps).index(later)


def test_layouts_are_the_references(steps):
    shapes = {
        "pixels": (1, 3, 128, 128),
        "image_encoder.trunk.patch_embed": (1, 32, 32, 16),
        "image_encoder.trunk.blocks.1": (1, 16, 16, 32),
        "image_encoder.neck.0": (1, 64, 32, 32),
        "image_encoder.neck.3": (1, 64, 4, 4),
        "sam_mask_decoder.conv_s0": (1, 8, 32, 32),
        "image_embed": (1, 64, 8, 8),
        "sam_prompt_encoder.sparse": (1, 2, 64),
        "sam_prompt_encoder.dense": (1, 64, 8, 8),
        "sam_mask_decoder.transformer.layers.1.keys": (1, 64, 64),
        "sam_mask_decoder.transformer.hs": (1, 8, 64),
        "sam_mask_decoder.output_upscaling.4": (1, 8, 32, 32),
        "sam_mask_decoder.output_hypernetworks_mlps.3": (1, 8),
        "sam_mask_decoder.all_masks": (1, 4, 32, 32),
        "sam_mask_decoder.stability": (1, 4),
        "masks": (3, 60, 90),
    }
    assert {name: steps[name].shape for name in shapes} == shapes


def test_steps_lead_to_what_the_predictor_returns(model, image, steps):
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(image)
    masks, ious, low_res = predictor.predict(**POINT)
    close(steps["image_embed"], predictor.get_image_embedding())
    close(steps["low_res_masks"], low_res)
    close(steps["ious"], ious)
    assert (steps["masks"] == masks).mean() > 0.999
    products = np.stack(
        [
            np.einsum(
                "bchw,bc->bhw",
                steps["sam_mask_decoder.output_upscaling.4"],
                steps[f"sam_mask_decoder.output_hypernetworks_mlps.{index}"],
            )
            for index in range(4)
        ],
        axis=1,
    )
    close(products, steps["sam_mask_decoder.all_masks"])


def test_a_mask_prompt_and_several_objects(model, image, steps):
    mask = steps["low_res_masks"][:1]
    masked = dump(model, image, mask_input=mask, stages=["sam_prompt_encoder", "masks"])
    assert masked["sam_prompt_encoder.sparse"].shape == (1, 0, 64)
    assert masked["sam_prompt_encoder.dense"].std(axis=(2, 3)).max() > 0
    boxes = np.array([[5, 5, 30, 30], [20, 10, 80, 50]])
    two = dump(model, image, box=boxes, multimask_output=False, stages=["sam_prompt_encoder", "masks"])
    assert two["sam_prompt_encoder.sparse"].shape == (2, 3, 64)
    assert two["sam_prompt_encoder.dense"].shape == (2, 64, 8, 8)
    assert two["masks"].shape == (2, 1, 60, 90)


def test_without_a_prompt_it_ends_with_the_encoder(model, image):
    assert list(dump(model, image)) == list(step_names(model).image)


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (["image_encoder.trunk.blocks.1"], ["image_encoder.trunk.blocks.1"]),
        (["image_embed", "pixels"], ["pixels", "image_embed"]),
        (["image_encoder.neck"], [f"image_encoder.neck.{level}" for level in range(4)]),
        (["*.blocks.[01]"], ["image_encoder.trunk.blocks.0", "image_encoder.trunk.blocks.1"]),
        (
            ["sam_mask_decoder.transformer.*.keys"],
            [f"sam_mask_decoder.transformer.layers.{i}.keys" for i in (0, 1)],
        ),
    ],
)
def test_selected_steps_are_the_same_numbers(model, image, steps, stages, expected):
    got = dump(model, image, **POINT, stages=stages)
    assert list(got) == expected
    for name, value in got.items():
        np.testing.assert_allclose(value, steps[name], rtol=1e-5, atol=1e-5)


def test_only_what_a_selection_needs_is_built(model, image, monkeypatch):
    built = []

    class Watched(dump_module.Session):
        def __init__(self, stage, *arguments):
            built.append((stage.name, stage.outputs, len(stage.weights)))
            super().__init__(stage, *arguments)

    monkeypatch.setattr(dump_module, "Session", Watched)
    dump(model, image, **POINT, stages=["pixels"])
    assert built == []
    dump(model, image, **POINT, stages=["image_encoder.trunk.patch_embed"])
    assert built == [("encode_image", ("image_encoder.trunk.patch_embed",), 2)]


def test_an_unknown_step_lists_what_exists(model, image):
    with pytest.raises(InputError, match=r"'image_embedd'. Did you mean 'image_embed'.*blocks\.\{0\.\.6\}"):
        dump(model, image, stages=["image_embedd"])


def test_a_leading_part_ends_at_a_dot():
    names = StepNames(("a.blocks.1", "a.blocks.10"), ())
    assert select_steps(names, ["a.blocks.1"], False) == {"a.blocks.1"}


def test_steps_behind_a_prompt_need_one(model, image):
    with pytest.raises(InputError, match=r"sam_mask_decoder\.transformer\.hs.*add a point, a box or a mask"):
        dump(model, image, stages=["image_embed", "sam_mask_decoder.transformer.hs"])


def test_names_for_people():
    assert listed(["a.0", "a.1", "a.2", "b", "c.0.d", "e.7"]) == ["a.{0..2}", "b", "c.0.d", "e.7"]
