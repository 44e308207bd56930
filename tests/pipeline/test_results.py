"""What callers get: states over time, boxes, areas, and pixels that two objects claim."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from masklet.errors import InputError
from masklet.pipeline.memory import FrameMemory
from masklet.pipeline.postprocess import resize_logits
from masklet.pipeline.results import Sightings, frame_result, video_logits, without_overlap
from masklet.rle import decode_rle


def memory(logits, score=4.0, iou=0.75, stability=0.5):
    return FrameMemory(logits, np.zeros(8, np.float32), None, score, iou, stability)


def random_logits(count, seed=0, side=16):
    return np.random.default_rng(seed).normal(0, 5, (count, 1, side, side)).astype(np.float32)


# ----------------------------------------------------------------------------------------------------- states


def states(scores, lost_after):
    sightings = Sightings(lost_after)
    return [sightings.state(1, score) for score in scores]


T, A, L, F = "tracked", "occluded", "lost", "found"


@pytest.mark.parametrize(
    ("scores", "lost_after", "expected"),
    [
        ([5, 0.001, 5], 3, [T, T, T]),
        ([0], 3, [A]),  # a score of zero is an absence
        ([1, -1, -1, 1], 3, [T, A, A, T]),  # one frame short of lost: not found, just tracked
        ([1, -1, -1, -1, 1, 1], 3, [T, A, A, L, F, T]),
        ([-1, -1, -1, -1, -1, 1], 3, [A, A, L, L, L, F]),  # never seen before
        ([-1, -1, 1, -1, -1, 1], 3, [A, A, T, A, A, T]),  # counting begins anew
        ([-1, -1, -1, 1, -1, -1, -1, 1], 3, [A, A, L, F, A, A, L, F]),
        ([1, -1, 1, -1, 1], 1, [T, L, F, L, F]),
        ([-1] * 29 + [1], 30, [A] * 29 + [T]),
        ([-1] * 30 + [1], 30, [A] * 29 + [L, F]),
    ],
)
def test_states_over_time(scores, lost_after, expected):
    assert states(scores, lost_after) == expected


def test_thirty_frames_by_default():
    sightings = Sightings()
    assert [sightings.state(1, -1.0) for _ in range(31)] == [A] * 29 + [L] * 2


def test_objects_are_counted_apart():
    sightings = Sightings(2)
    assert [(sightings.state(1, -1.0), sightings.state(2, score)) for score in (1, -1, -1)] == [
        (A, T),
        (L, A),
        (L, L),
    ]
    sightings.drop(2)
    sightings.drop(3)  # not there: nothing to forget
    assert (sightings.state(1, 1.0), sightings.state(2, 1.0)) == (F, T)


def test_a_copy_goes_its_own_way():
    one = Sightings(2)
    one.state(1, -1.0)
    other = one.copy()
    assert other.state(1, -1.0) == L
    assert one.state(1, 1.0) == T
    assert other.state(1, 1.0) == F


@pytest.mark.parametrize("lost_after", [0, -1, 2.5, "3", None])
def test_lost_after_must_be_a_number_of_frames(lost_after):
    with pytest.raises(InputError, match=r"lost_after is .*1 or more"):
        Sightings(lost_after)


# ---------------------------------------------------------------------------------------------------- results


def result(made, size_hw=(24, 40), *, non_overlap_masks=False, sightings=None):
    return frame_result(
        7, 0.25, size_hw, made, sightings or Sightings(2), non_overlap_masks=non_overlap_masks
    )


def test_fields_of_a_frame():
    logits = random_logits(2)
    got = result({9: memory(logits[0]), 4: memory(logits[1], score=-2.0, iou=0.5, stability=0.25)})
    assert (got.index, got.time) == (7, 0.25)
    assert [tracked.object_id for tracked in got.objects] == [9, 4]  # in the order in which they were added
    for tracked, low_res in zip(got.objects, logits, strict=True):
        assert tracked.mask.dtype == bool
        assert_array_equal(tracked.mask, resize_logits(low_res, (24, 40))[0] > 0)
        assert tracked.area == tracked.mask.sum()
        assert_array_equal(decode_rle(tracked.rle()), tracked.mask)
    four = got[4]
    assert (four.object_score, four.predicted_iou, four.stability, four.state) == (-2.0, 0.5, 0.25, A)
    assert got[9].state == T
    with pytest.raises(KeyError, match=r"no object 5; there are \[9, 4\]"):
        got[5]


def test_boxes_are_at_pixel_edges():
    logits = np.full((1, 10, 10), -1, np.float32)
    logits[0, 2:5, 3] = 1
    tracked = result({1: memory(logits)}, (10, 10))[1]
    assert tracked.box_xyxy == (3, 2, 4, 5)
    assert tracked.area == 3
    assert all(type(side) is int for side in (*tracked.box_xyxy, tracked.area))


@pytest.mark.parametrize("value", [0.0, -1024.0])
def test_an_empty_mask_has_no_box(value):
    tracked = result({1: memory(np.full((1, 16, 16), value, np.float32))})[1]
    assert (tracked.box_xyxy, tracked.area) == (None, 0)
    assert not tracked.mask.any()


def test_a_full_mask_has_the_whole_frame():
    tracked = result({1: memory(np.ones((1, 16, 16), np.float32))})[1]
    assert (tracked.box_xyxy, tracked.area) == ((0, 0, 40, 24), 24 * 40)


def test_no_objects():
    assert result({}).objects == ()


# ---------------------------------------------------------------------------------------------------- overlap


def test_only_the_strongest_keeps_a_pixel():
    logits = np.array([[5, 1, -3, -20], [4, 2, -4, -15]], np.float32).reshape(2, 1, 1, 4)
    expected = [[5, -10, -3, -20], [-10, 2, -10, -15]]
    assert without_overlap(logits).reshape(2, 4).tolist() == expected


def test_the_first_of_equals_keeps_the_pixel():
    assert without_overlap(np.ones((3, 1, 1), np.float32)).ravel().tolist() == [1, -10, -10]


def test_one_object_has_no_rival():
    logits = random_logits(1)
    assert without_overlap(logits) is logits


def test_overlap_against_a_loop():
    logits = random_logits(4, seed=3)
    expected = np.minimum(logits, -10)
    for y in range(16):
        for x in range(16):
            best = max(range(4), key=lambda index: logits[index, 0, y, x])
            expected[best, 0, y, x] = logits[best, 0, y, x]
    assert_array_equal(without_overlap(logits), expected)


def test_results_without_overlap_are_disjoint():
    """Strength is compared at the video's size, after resizing."""
    logits = random_logits(3, seed=1)
    made = {index: memory(low_res) for index, low_res in enumerate(logits)}
    masks = np.stack([tracked.mask for tracked in result(made, non_overlap_masks=True).objects])
    assert masks.sum(axis=0).max() == 1
    assert_array_equal(masks, without_overlap(resize_logits(logits, (24, 40)))[:, 0] > 0)
    assert_array_equal(masks.any(axis=0), (resize_logits(logits, (24, 40)) > 0).any(axis=0)[0])
    overlapping = np.stack([tracked.mask for tracked in result(made).objects])
    assert overlapping.sum(axis=0).max() > 1
    alone = result({0: made[0]}, non_overlap_masks=True)
    assert_array_equal(alone[0].mask, overlapping[0])


@pytest.mark.parametrize("non_overlap_masks", [False, True])
def test_logits_at_the_size_of_the_video(non_overlap_masks):
    low_res = random_logits(2, seed=2)
    got = video_logits(list(low_res), (24, 40), non_overlap_masks=non_overlap_masks)
    assert (got.shape, got.dtype) == ((2, 1, 24, 40), np.float32)
    expected = resize_logits(low_res, (24, 40))
    assert_array_equal(got, without_overlap(expected) if non_overlap_masks else expected)
