"""Prompts: the reference's order of points, clear refusals, and the choice among candidates."""

from __future__ import annotations

import numpy as np
import pytest

from masklet.errors import InputError
from masklet.pipeline.prompts import (
    choose_by_token,
    choose_masks,
    make_padded_prompts,
    make_prompts,
    stability,
)
from masklet.types import Candidates

SIZE = {"size_hw": (100, 200), "image_size": 1024}


def prompts(points=None, labels=None, box=None, mask=None, **options):
    return make_prompts(points, labels, box, mask, **{**SIZE, **options})


def test_points_are_scaled_and_padded():
    made = prompts([[50, 25]], [1])
    np.testing.assert_allclose(made.coords, [[[256, 256], [0, 0]]])
    assert made.labels.tolist() == [[1, -1]]
    assert made.mask is None


def test_a_box_comes_before_the_points():
    made = prompts([[50, 25]], [0], box=[0, 0, 200, 100])
    np.testing.assert_allclose(made.coords, [[[0, 0], [1024, 1024], [256, 256], [0, 0]]])
    assert made.labels.tolist() == [[2, 3, 0, -1]]


def test_several_objects():
    made = prompts(box=np.array([[0, 0, 10, 10], [5, 5, 20, 20]]))
    assert made.coords.shape == (2, 3, 2)
    made = prompts(np.ones((3, 2, 2)), np.ones((3, 2)))
    assert made.coords.shape == (3, 3, 2)


def test_a_mask_alone_has_no_points_at_all():
    made = prompts(mask=np.zeros((1, 256, 256)))
    assert made.coords.shape == (1, 0, 2)
    assert made.mask is not None
    assert made.mask.shape == (1, 1, 256, 256)


def test_no_prompt_at_all_is_one_object_without_points():
    assert prompts().coords.shape == (1, 0, 2)


def test_fractions_of_the_picture():
    np.testing.assert_allclose(prompts([[0.5, 0.25]], [1], normalize_coords=False).coords[0, 0], [512, 256])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [[1, 2]]}, "without point_labels"),
        ({"labels": [1]}, "without point_coords"),
        ({"points": [[1, 2]], "labels": [1, 0]}, "one label per point"),
        ({"points": [[1, 2, 3]], "labels": [1]}, r"\(N, 2\)"),
        ({"points": [[1, 2]], "labels": [7]}, "allowed are"),
        ({"points": [[float("nan"), 2]], "labels": [1]}, "NaN"),
        ({"points": [["a", 2]], "labels": [1]}, "not an array of numbers"),
        ({"points": [[201, 2]], "labels": [1]}, "200 wide and 100 high"),
        ({"points": [[-1, 2]], "labels": [1]}, "outside the picture"),
        ({"box": [9, 0, 5, 5]}, r"swapped.*\[5.0, 0.0, 9.0, 5.0\]"),
        ({"box": [0, 0, 5]}, r"\(4,\)"),
        ({"box": [0, 0, 5, float("inf")]}, "infinite"),
        ({"box": [0, 0, 5, 101]}, "box corner"),
        ({"points": np.ones((2, 1, 2)), "labels": np.ones((2, 1)), "box": [0, 0, 5, 5]}, "as many of each"),
        ({"mask": np.zeros((1, 64, 64))}, r"\(1, 256, 256\)"),
        ({"mask": np.full((1, 256, 256), np.nan)}, "NaN"),
        ({"points": [[1, 2]], "labels": [1], "mask": np.zeros((2, 1, 256, 256))}, "mask inputs"),
        ({"points": np.zeros((0, 2)), "labels": []}, "shape"),
    ],
)
def test_refusals_say_what_is_allowed(arguments, message):
    with pytest.raises(InputError, match=message):
        prompts(**arguments)


def candidates(first: np.ndarray, iou) -> Candidates:
    logits = np.stack([first, *(np.full_like(first, index) for index in (1, 2, 3))])[None]
    return Candidates(logits, np.array([iou], np.float32), np.zeros((1, 1)), np.zeros((1, 4, 8)))


def test_multimask_gives_the_last_three():
    logits, iou = choose_masks(candidates(np.zeros((2, 2), np.float32), [0.9, 0.1, 0.2, 0.3]), True)
    assert logits[0, :, 0, 0].tolist() == [1, 2, 3]
    np.testing.assert_allclose(iou, [[0.1, 0.2, 0.3]])


def test_a_stable_single_mask_stays():
    logits, iou = choose_masks(candidates(np.full((2, 2), 5, np.float32), [0.1, 0.2, 0.9, 0.3]), False)
    assert logits.shape == (1, 1, 2, 2)
    assert logits[0, 0, 0, 0] == 5
    np.testing.assert_allclose(iou, [[0.1]])


def test_an_unstable_single_mask_gives_way_to_the_best_of_three():
    wavering = np.array([[5, 0.01], [-0.01, -5]], np.float32)
    logits, iou = choose_masks(candidates(wavering, [0.99, 0.2, 0.9, 0.3]), False)
    assert logits[0, 0, 0, 0] == 2
    np.testing.assert_allclose(iou, [[0.9]])


def test_stability_of_nothing_is_one():
    assert stability(np.full((1, 4, 4), -3, np.float32)).tolist() == [1.0]
    assert stability(np.array([[1.0, 0.0], [-1.0, -1.0]], np.float32)[None]).tolist() == [0.5]


# ------------------------------------------------------------------------------------------------------- SAM


def padded(points=None, labels=None, box=None, mask=None, **options):
    return make_padded_prompts(points, labels, box, mask, **{**SIZE, **options})


def test_sam_scales_by_the_longer_side():
    made = padded([[50, 25]], [1])
    np.testing.assert_allclose(made.coords, [[[256, 128], [0, 0]]])
    assert made.labels.tolist() == [[1, -1]]


def test_sam_rounds_the_shorter_side():
    """Its scale is that of whole pixels: 1024 x 511.5 becomes 1024 x 512."""
    made = padded([[2048, 1023]], [1], size_hw=(1023, 2048))
    np.testing.assert_allclose(made.coords[0, 0], [1024, 512])


def test_sam_has_the_box_behind_the_points_and_pads_only_without_one():
    made = padded([[50, 25]], [0], box=[0, 0, 200, 100])
    np.testing.assert_allclose(made.coords, [[[256, 128], [0, 0], [1024, 512]]])
    assert made.labels.tolist() == [[0, 2, 3]]
    assert padded(box=[0, 0, 200, 100]).labels.tolist() == [[2, 3]]


def test_sam_takes_fractions_masks_and_several_objects():
    np.testing.assert_allclose(padded([[0.5, 0.25]], [1], normalize_coords=False).coords[0, 0], [512, 128])
    assert padded(mask=np.zeros((1, 256, 256))).coords.shape == (1, 0, 2)
    assert padded(np.ones((3, 2, 2)), np.ones((3, 2))).labels.tolist() == [[1, 1, -1]] * 3
    assert padded().coords.shape == (1, 0, 2)


def test_sam_refuses_what_sam_2_refuses():
    with pytest.raises(InputError, match="outside the picture"):
        padded([[201, 5]], [1])
    with pytest.raises(InputError, match="as many of each"):
        padded(np.ones((2, 1, 2)), np.ones((2, 1)), box=np.array([[0, 0, 9, 9]] * 3))


def test_sam_keeps_an_unstable_single_mask():
    logits = np.zeros((1, 4, 8, 8), np.float32)
    logits[0, 0] += np.linspace(-0.04, 0.04, 64).reshape(8, 8)  # unstable
    iou = np.array([[0.1, 0.2, 0.9, 0.3]], np.float32)
    candidates = Candidates(logits, iou, np.ones((1, 1), np.float32), np.zeros((1, 4, 8), np.float32))
    chosen, scores = choose_by_token(candidates, False)
    np.testing.assert_array_equal(chosen, logits[:, :1])
    assert scores.tolist() == iou[:, :1].tolist()
    assert choose_masks(candidates, False)[1].tolist() == iou[:, 2:3].tolist()
    assert choose_by_token(candidates, True)[0].shape == (1, 3, 8, 8)
