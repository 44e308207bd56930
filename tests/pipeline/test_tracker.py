"""Streams: the numbers of the predictor, memory that does not grow, and errors that leave the tracker as it
was."""

from __future__ import annotations

import gc
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from masklet.errors import EngineError, InputError, OutputError
from masklet.pipeline import object_track
from masklet.pipeline.memory import FrameMemory, ReferencePolicy
from masklet.pipeline.tracker import Tracker
from masklet.pipeline.video import VideoPredictor


def click(clip, frame, shape):
    return {"points": [clip.point_xy(frame, shape)], "labels": [1]}


def same(one, other):
    """The same objects, in numbers as in masks."""
    assert (one.index, len(one.objects)) == (other.index, len(other.objects))
    for ours, theirs in zip(one.objects, other.objects, strict=True):
        assert_array_equal(ours.mask, theirs.mask)
        for name in ("object_id", "box_xyxy", "area", "predicted_iou", "object_score", "stability"):
            assert getattr(ours, name) == getattr(theirs, name), (one.index, name)
    return True


@pytest.fixture
def tracker(tracking_model):
    return Tracker(tracking_model)


# ------------------------------------------------------------------------------------------- the same numbers


def run_tracker(model, clip, frames, prompts, **settings):
    """Results of every frame; `prompts` are (frame, object, shape)."""
    tracker, results = Tracker(model, **settings), []
    for index, pixels in enumerate(clip.frames[:frames]):
        result = tracker.push(pixels)
        for frame, object_id, shape in prompts:
            if frame == index:
                result = tracker.add_points_or_box(object_id, **click(clip, frame, shape))
        results.append(result)
    return results


def run_predictor(model, clip, frames, prompts, **settings):
    """The same with a predictor that keeps everything, in as many passes as there are frames with prompts:
    each goes on to the next such frame."""
    predictor = VideoPredictor(model, state="memory", add_all_frames_to_correct_as_cond=True, **settings)
    results, starts = {}, sorted({frame for frame, _, _ in prompts})
    with predictor.init_state(list(clip.frames[:frames])) as state:
        for start, end in pairwise([*starts, frames - 1]):
            for frame, object_id, shape in prompts:
                if frame == start:
                    predictor.add_new_points_or_box(state, frame, object_id, **click(clip, frame, shape))
            count = end - start + 1
            results |= {result.index: result for result in predictor.track(state, start, count)}
    return [results[index] for index in sorted(results)]


STORY = [(0, 1, 0), (0, 2, 1), (5, 3, 2), (9, 1, 3)]


@pytest.mark.parametrize("policy", [ReferencePolicy, partial(ReferencePolicy, stride=2, max_cond_frames=2)])
def test_the_numbers_of_the_predictor(wavering_model, clip, policy, monkeypatch):
    """A late object and a correction; what the tracker forgot is never missed. Objects are computed one at a
    time: passes that begin anew have other batches, in which float32 sums differ in the last bit."""
    monkeypatch.setattr(object_track, "OBJECTS_AT_ONCE", 1)
    ours = run_tracker(wavering_model, clip, 28, STORY, memory_policy=policy)
    theirs = run_predictor(wavering_model, clip, 28, STORY, memory_policy=policy)
    assert all(same(one, other) for one, other in zip(ours, theirs, strict=True))
    scores = [tracked.object_score for result in ours for tracked in result.objects]
    assert min(scores) < 0 < max(scores)  # both branches were taken


def test_the_numbers_of_the_predictor_after_a_late_correction(tracking_model, clip):
    story = [(0, 1, 0), (20, 1, 3)]
    ours = run_tracker(tracking_model, clip, 24, story)
    theirs = run_predictor(tracking_model, clip, 24, story)
    assert all(same(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_short_clip_needs_its_length(tracking_model, clip):
    theirs = run_predictor(tracking_model, clip, 8, STORY[:2])
    told = run_tracker(tracking_model, clip, 8, STORY[:2], num_frames=8)
    assert all(same(one, other) for one, other in zip(told, theirs, strict=True))
    untold = run_tracker(tracking_model, clip, 8, STORY[:2])
    assert untold[3][1].object_score != theirs[3][1].object_score


def test_masks_and_boxes_as_prompts(tracker, tracking_model, clip):
    predictor = VideoPredictor(tracking_model)
    box = clip.box_xyxy(0, 1)
    tracker.push(clip.frames[0])
    tracker.add_mask(1, clip.masks[0, 0])
    first = tracker.add_points_or_box(2, box=box)
    with predictor.init_state(list(clip.frames)) as state:
        predictor.add_new_mask(state, 0, 1, clip.masks[0, 0])
        predictor.add_new_points_or_box(state, 0, 2, box=box)
        expected = list(predictor.track(state, num_frames=5))
    results = [first, *(tracker.push(pixels) for pixels in clip.frames[1:5])]
    assert all(same(one, other) for one, other in zip(results, expected, strict=True))


def test_settings_reach_the_numbers(tracking_model, clip):
    settings = {"fill_hole_area": 120, "non_overlap_masks": True}
    ours = run_tracker(tracking_model, clip, 6, STORY[:2], num_frames=6, **settings)
    theirs = run_predictor(tracking_model, clip, 6, STORY[:2], **settings)
    assert all(same(one, other) for one, other in zip(ours, theirs, strict=True))
    for name, value in (("fill_hole_area", 0), ("non_overlap_masks", False)):
        other = run_tracker(tracking_model, clip, 6, STORY[:2], num_frames=6, **{**settings, name: value})
        masks = [[tracked.mask for result in run for tracked in result.objects] for run in (ours, other)]
        assert not np.array_equal(*masks), name


# -------------------------------------------------------------------------------------------------- streaming


def test_frames_without_objects(tracker, clip):
    for index in range(3):
        result = tracker.push(clip.frames[index], time=index / 10)
        assert (result.index, result.time, result.objects) == (index, index / 10, ())
    result = tracker.add_points_or_box(5, **click(clip, 2, 0))
    assert (result.index, result.time, tracker.object_ids) == (2, 0.2, [5])
    assert tracker.push(clip.frames[3])[5].mask.shape == (48, 64)


def test_prompts_of_one_frame_replace_or_extend_each_other(tracker, clip):
    tracker.push(clip.frames[0])
    first = tracker.add_points_or_box(1, [[20, 20]], [1])
    second = tracker.add_points_or_box(1, [[50, 40]], [0], clear_old_points=False)
    track = tracker._tracks[1]
    assert track.points[0].labels.tolist() == [[1, 0, -1]]
    assert (
        not np.array_equal(first[1].mask, second[1].mask) or first[1].object_score != second[1].object_score
    )
    tracker.add_points_or_box(1, [[50, 40]], [1])
    assert track.points[0].labels.tolist() == [[1, -1]]
    tracker.push(clip.frames[1])
    tracker.add_points_or_box(1, [[50, 40]], [0], clear_old_points=False)  # the other frame's are gone
    assert track.points[1].labels.tolist() == [[0, -1]]


def test_objects_removed_and_added_again(tracking_model, clip):
    tracker = Tracker(tracking_model)
    tracker.push(clip.frames[0])
    for object_id in (1, 2):
        tracker.add_points_or_box(object_id, **click(clip, 0, object_id))
    tracker.remove_object(1)
    assert tracker.object_ids == [2]
    shown = tracker.add_points_or_box(2, **click(clip, 0, 3))
    assert [tracked.object_id for tracked in shown.objects] == [2]
    assert [tracked.object_id for tracked in tracker.push(clip.frames[1]).objects] == [2]
    result = tracker.add_points_or_box(1, **click(clip, 1, 0))
    assert [tracked.object_id for tracked in result.objects] == [2, 1]
    assert list(tracker._tracks[1].pending_conditioning) == [1]
    with pytest.raises(InputError, match=r"There is no object 9; there are \[2, 1\]"):
        tracker.remove_object(9)
    for object_id in (1, 2):
        tracker.remove_object(object_id)
    with pytest.raises(InputError, match="There is no object 1; there are none yet"):
        tracker.remove_object(1)
    assert tracker.push(clip.frames[2]).objects == ()


def test_states_of_a_wavering_object(wavering_model, clip):
    tracker, expected, absent = Tracker(wavering_model, lost_after=3), [], 0
    tracker.push(clip.frames[0])
    tracker.add_points_or_box(1, **click(clip, 0, 1))
    results = [tracker.push(pixels)[1] for pixels in clip.frames[1:]]
    for tracked in results:
        before, absent = absent, absent + 1 if tracked.object_score <= 0 else 0
        present = "found" if before >= 3 else "tracked"
        expected.append(present if not absent else "lost" if absent >= 3 else "occluded")
    assert [tracked.state for tracked in results] == expected
    assert {"tracked", "occluded"} <= set(expected)
    assert all((tracked.box_xyxy is None) == (tracked.object_score <= 0) for tracked in results)


def test_a_prompt_does_not_count_its_frame_twice(stand_in, clip):
    import masklet

    tracker = Tracker(masklet.load(stand_in(object_score_bias=-5.0), threads=1), lost_after=3)
    tracker.push(clip.frames[0])
    states = [tracker.add_points_or_box(1, **click(clip, 0, 0))[1].state for _ in range(3)]
    for pixels in clip.frames[1:3]:
        states.append(tracker.push(pixels)[1].state)
        states.append(tracker.add_points_or_box(2, **click(clip, 1, 1))[1].state)
    assert states == ["occluded"] * 5 + ["lost"] * 2
    tracker.push(clip.frames[3])
    shown = tracker.add_mask(1, clip.masks[3, 0])
    assert (shown[1].state, shown[2].state) == ("found", "lost")
    assert tracker.add_mask(1, clip.masks[3, 0])[1].state == "found"


def memories() -> int:
    """How many frames' memories there are in this process."""
    gc.collect()
    return sum(isinstance(thing, FrameMemory) for thing in gc.get_objects())


@pytest.mark.parametrize("policy", [ReferencePolicy, partial(ReferencePolicy, stride=4)])
def test_memory_does_not_grow(tracking_model, clip, policy):
    """Of each object its last frames within reach, and every frame that conditions it."""
    before = memories()
    tracker = Tracker(tracking_model, memory_policy=policy)
    counts = []
    for index in range(50):
        tracker.push(clip.frames[index % 30])
        if index in (0, 10):  # the second time, a correction
            for object_id in (1, 2):
                tracker.add_points_or_box(object_id, [[10 * object_id, 20]], [1])
        if index in (35, 49):
            counts.append(memories() - before)
    assert counts[-1] == counts[-2]
    assert 2 * (2 + policy().reach()) <= counts[-1] <= 2 * (2 + policy().reach() + 1)
    track = tracker._tracks[1]
    assert list(track.conditioning) == [0, 10]
    assert (track.forgotten, list(track.directions)) == (set(), [49])
    assert not track.points
    assert not track.masks
    del tracker, track
    assert memories() == before


# -------------------------------------------------------------------------------------------------- bad input


def test_prompts_need_a_frame(tracker, clip):
    with pytest.raises(InputError, match="No frame was pushed yet"):
        tracker.add_points_or_box(1, [[5, 5]], [1])
    with pytest.raises(InputError, match="No frame was pushed yet"):
        tracker.add_mask(1, clip.masks[0, 0])
    assert tracker.object_ids == []


def test_a_frame_of_another_size_is_refused_and_the_next_one_is_not(tracker, tracking_model, clip):
    expected = run_tracker(tracking_model, clip, 3, STORY[:1])
    tracker.push(clip.frames[0])
    results = [tracker.add_points_or_box(1, **click(clip, 0, 0))]
    for pixels in clip.frames[1:3]:
        with pytest.raises(InputError, match="64 wide and 40 high, the ones before were 64 and 48"):
            tracker.push(pixels[:40])
        results.append(tracker.push(pixels))
    assert all(same(one, other) for one, other in zip(results, expected, strict=True))


@pytest.mark.parametrize("frame", [None, np.zeros((4, 4)), "missing.png", np.zeros((4, 4, 5), np.uint8)])
def test_what_is_no_frame(tracker, frame):
    with pytest.raises(InputError):
        tracker.push(frame)


def test_more_frames_than_were_announced(tracking_model, clip):
    tracker = Tracker(tracking_model, num_frames=2)
    tracker.push(clip.frames[0])
    tracker.push(clip.frames[1])
    with pytest.raises(InputError, match=r"All 2 frames were pushed; leave num_frames out"):
        tracker.push(clip.frames[2])
    assert tracker.add_points_or_box(1, [[5, 5]], [1]).index == 1


@pytest.mark.parametrize("settings", [{"num_frames": 0}, {"num_frames": "9"}, {"lost_after": 0}])
def test_settings_that_mean_nothing(tracking_model, settings):
    with pytest.raises(InputError, match=rf"{next(iter(settings))} is .*1 or more"):
        Tracker(tracking_model, **settings)


@pytest.mark.parametrize("object_id", [None, "1", 1.5, True, [1]])
def test_object_ids_are_whole_numbers(tracker, clip, object_id):
    tracker.push(clip.frames[0])
    with pytest.raises(InputError, match=r"object_id is .*; give a whole number"):
        tracker.add_points_or_box(object_id, [[5, 5]], [1])
    with pytest.raises(InputError, match="There is no object"):
        tracker.remove_object(object_id)
    tracker.add_points_or_box(np.int64(3), [[5, 5]], [1])
    assert tracker.object_ids == [3]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "neither points nor a box"),
        ({"points": [[5, 5]]}, "without point_labels"),
        (
            {"points": [[5, 5]], "labels": [1], "box": [1, 1, 5, 5], "clear_old_points": False},
            "box comes before",
        ),
        ({"points": [[64.5, 5]], "labels": [1]}, "outside the picture, 64 wide and 48 high"),
        ({"box": [[1, 1, 5, 5], [2, 2, 6, 6]]}, r"2 objects; add one at a time"),
    ],
)
def test_prompts_that_cannot_be_meant(tracker, clip, prompt, message):
    tracker.push(clip.frames[0])
    with pytest.raises(InputError, match=message):
        tracker.add_points_or_box(9, **prompt)
    assert (tracker.object_ids, tracker.push(clip.frames[1]).objects) == ([], ())


@pytest.mark.parametrize("stage", ["encode_frame", "attend", "decode", "encode_memory"])
def test_a_frame_that_failed_can_be_pushed_again(tracking_model, clip, monkeypatch, stage):
    """Wherever it failed, with prompts waiting and with none."""
    expected = run_tracker(tracking_model, clip, 5, STORY[:2])
    tracker = Tracker(tracking_model)
    tracker.push(clip.frames[0])
    results = [
        tracker.add_points_or_box(object_id, **click(clip, 0, shape)) for _, object_id, shape in STORY[:2]
    ][-1:]

    def fail(*_: object, **__: object) -> None:
        raise EngineError("out of memory")

    for pixels in clip.frames[1:5]:
        with monkeypatch.context() as patch:
            patch.setattr(tracking_model, stage, fail)
            with pytest.raises(EngineError):
                tracker.push(pixels)
        results.append(tracker.push(pixels))
    assert all(same(one, other) for one, other in zip(results, expected, strict=True))


def test_a_prompt_after_a_frame_that_failed_to_encode(tracking_model, clip, monkeypatch):
    """It belongs to the last frame that worked, whose earlier prompts are as they were."""
    runs = []
    for failing in (False, True):
        tracker = Tracker(tracking_model)
        tracker.push(clip.frames[0])
        tracker.add_points_or_box(1, **click(clip, 0, 0))
        tracker.push(clip.frames[1])
        tracker.add_points_or_box(1, [[50, 40]], [1])
        if failing:
            with monkeypatch.context() as patch:
                patch.setattr(tracking_model, "encode_frame", lambda *_: (_ for _ in ()).throw(OutputError()))
                with pytest.raises(OutputError):
                    tracker.push(clip.frames[2])
        shown = tracker.add_points_or_box(1, [[9, 9]], [0], clear_old_points=False)
        runs.append([shown, tracker.push(clip.frames[2])])
    assert all(same(one, other) for one, other in zip(*runs, strict=True))


def test_a_prompt_that_failed_leaves_the_object_as_it_was(tracking_model, clip, monkeypatch):
    expected = run_tracker(tracking_model, clip, 4, STORY[:1])
    tracker = Tracker(tracking_model)
    tracker.push(clip.frames[0])
    results = [tracker.add_points_or_box(1, **click(clip, 0, 0))]

    def fail(*_: object) -> None:
        raise EngineError("out of memory")

    for pixels in clip.frames[1:4]:
        with monkeypatch.context() as patch:
            patch.setattr(tracking_model, "decode", fail)
            for object_id in (1, 2):
                with pytest.raises(EngineError):
                    tracker.add_points_or_box(object_id, [[9, 9]], [1])
                with pytest.raises(EngineError):
                    tracker.add_mask(object_id, clip.masks[0, 0])
        results.append(tracker.push(pixels))
    assert all(same(one, other) for one, other in zip(results, expected, strict=True))
