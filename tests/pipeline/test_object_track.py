"""One object's step: what is fed back, what is filled, what a mask prompt makes, and many objects at once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from masklet.pipeline.memory import Choice, FrameMemory, ReferencePolicy, Selection
from masklet.pipeline.object_track import (
    ABSENT_LOGIT,
    OBJECTS_AT_ONCE,
    Moment,
    ObjectTrack,
    step_together,
)
from masklet.pipeline.postprocess import fill_holes
from masklet.pipeline.preprocess import frame_input
from masklet.pipeline.prompts import make_prompts, object_mask

SIZE_HW = (48, 64)


def new_track(object_id=1, policy=None, fill_hole_area=0.0) -> ObjectTrack:
    return ObjectTrack(object_id, policy or ReferencePolicy(), {}, {}, fill_hole_area)


@pytest.fixture(scope="module")
def features(tracking_model, clip):
    """Encoded frames by number."""
    return [
        tracking_model.encode_frame(frame_input(pixels, tracking_model.image_size), SIZE_HW)
        for pixels in clip.frames[:12]
    ]


@pytest.fixture
def moment(features):
    return lambda index, reverse=False: Moment(index, features[index], 12, reverse)


def click(*points_xy, labels=None):
    count = len(points_xy)
    return make_prompts(
        np.array(points_xy), labels or [1] * count, None, None, size_hw=SIZE_HW, image_size=64
    )


def tracked_to(model, moment, features, track, frames):
    track.settle(model, features.__getitem__, clear_around=False)
    for index in frames:
        made = track.step(model, moment(index))
        track.remember(index, made)
        track.directions[index] = False
    return track


class Spy:
    """Stands for the model and notes what it is asked."""

    def __init__(self, model):
        self._model, self.decoded, self.attended, self.encoded = model, [], [], []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def decode(self, features, prompts, embedding=None):
        self.decoded.append((prompts, embedding))
        return self._model.decode(features, prompts, embedding)

    def attend(self, frame, remembered):
        self.attended.append(remembered)
        return self._model.attend(frame, remembered)

    def encode_memory(self, frame, logits, object_score, *, binary):
        self.encoded.append((logits, object_score, binary))
        return self._model.encode_memory(frame, logits, object_score, binary=binary)


@pytest.fixture
def spy(tracking_model):
    return Spy(tracking_model)


# ------------------------------------------------------------------------------------------- what is fed back


def test_a_first_click_sees_no_memory_and_no_mask(spy, moment):
    new_track().prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    (prompts, embedding), *more = spy.decoded
    assert (prompts.mask, embedding, more, spy.attended) == (None, None, [], [])


def test_a_second_click_is_fed_the_first_ones_mask(spy, moment):
    track = new_track()
    first = track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    strong = replace(first, logits=first.logits * 100)
    track.pending_conditioning[0] = strong
    track.prompt_points(spy, moment(0), click((20, 20), (40, 30)), conditions=True)
    fed = spy.decoded[1][0].mask
    assert_array_equal(fed, np.clip(strong.logits, -32, 32)[None])
    assert fed.min() == -32
    assert fed.max() == 32


def test_a_click_after_a_mask_is_fed_the_mask(spy, moment, clip):
    track = new_track()
    made = track.prompt_mask(spy, moment(0), object_mask(clip.masks[0, 0], 64), conditions=True)
    track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    assert_array_equal(spy.decoded[1][0].mask, made.logits[None])
    assert (set(track.points), set(track.masks)) == ({0}, set())
    track.prompt_mask(spy, moment(0), object_mask(clip.masks[0, 0], 64), conditions=True)
    assert (set(track.points), set(track.masks)) == (set(), {0})


def test_a_correction_looks_at_memories_and_at_the_tracked_mask(spy, moment, features):
    track = new_track()
    track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    tracked_to(spy, moment, features, track, range(1, 6))
    spy.decoded.clear()
    spy.attended.clear()
    track.prompt_points(spy, moment(3), click((40, 30)), conditions=False)
    (prompts, embedding), *more = spy.decoded
    assert embedding is not None
    assert not more
    assert_array_equal(prompts.mask, np.clip(track.tracked[3].logits, -32, 32)[None])
    assert spy.attended[0].slots.tolist() == [[6, 1, 0]]  # frames 0, 1, 2: not what came later
    assert set(track.pending_tracked) == {3}


def test_a_correction_looks_the_way_its_frame_was_tracked(spy, moment, features):
    track = new_track()
    track.prompt_points(spy, moment(6), click((20, 20)), conditions=True)
    track.settle(spy, features.__getitem__, clear_around=False)
    for index in (5, 4, 3):
        track.remember(index, track.step(spy, moment(index, reverse=True)))
        track.directions[index] = True
    spy.attended.clear()
    track.prompt_points(spy, moment(3), click((40, 30)), conditions=False)
    assert spy.attended[0].slots.tolist() == [[6, 1, 0]]  # frames 6, 5, 4
    np.testing.assert_allclose(spy.attended[0].distances, [[3 / 11, 1 / 11, 2 / 11]], rtol=1e-6)


def test_the_latest_pending_mask_wins_over_the_final_one(spy, moment, features):
    track = new_track()
    track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    tracked_to(spy, moment, features, track, range(1, 4))
    made = track.prompt_points(spy, moment(2), click((40, 30)), conditions=False)
    track.prompt_points(spy, moment(2), click((41, 30)), conditions=False)
    assert_array_equal(spy.decoded[-1][0].mask, np.clip(made.logits, -32, 32)[None])


def test_a_failing_prompt_changes_nothing(spy, moment, clip, monkeypatch):
    track = new_track()
    track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    before = dict(track.points), dict(track.pending_conditioning)

    def fail(*_: object):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(spy._model, "point", fail)
    with pytest.raises(RuntimeError):
        track.prompt_points(spy, moment(0), click((30, 20)), conditions=True)
    with pytest.raises(RuntimeError):
        track.prompt_mask(spy, moment(0), object_mask(clip.masks[0, 0], 64), conditions=True)
    assert (track.points, track.pending_conditioning) == before
    assert not track.masks


# ----------------------------------------------------------------------------------------------- mask prompts


def test_a_mask_prompt_is_the_mask(spy, moment, clip):
    mask = clip.masks[0, 1]
    made = new_track().prompt_mask(spy, moment(0), object_mask(mask, 64), conditions=True)
    assert (made.logits.min(), made.logits.max()) == (-10, 10)
    assert (made.object_score, made.predicted_iou, made.memory) == (10.0, 1.0, None)
    prompts, embedding = spy.decoded[0]
    assert prompts.labels.tolist() == [[-1, -1]]
    assert embedding is moment(0).features.stride16  # without what says "no memory"


def test_an_empty_mask_says_that_the_object_is_absent(spy, moment):
    made = new_track().prompt_mask(spy, moment(0), np.zeros((1, 1, 64, 64), np.float32), conditions=True)
    assert made.object_score == -10.0
    assert made.logits.max() == -10
    assert_array_equal(made.pointer, spy.tensor("no_obj_ptr")[0])


def test_the_pointer_of_a_mask_needs_the_decoders_word_too(stand_in, clip):
    """Where the decoder sees nothing in the mask, the pointer says "absent" although the score does not."""
    import masklet

    model = masklet.load(stand_in(object_score_bias=-5.0), threads=1)
    features = model.encode_frame(frame_input(clip.frames[0], 64), SIZE_HW)
    made = new_track().prompt_mask(
        model, Moment(0, features, 12), object_mask(clip.masks[0, 0], 64), conditions=True
    )
    assert made.object_score == 10.0
    assert_array_equal(made.pointer, model.tensor("no_obj_ptr")[0])


def test_an_absent_object_has_an_empty_mask_and_a_pointer_of_its_own(stand_in, clip):
    import masklet

    model = masklet.load(stand_in(object_score_bias=-5.0), threads=1)
    features = model.encode_frame(frame_input(clip.frames[0], 64), SIZE_HW)
    made = new_track().prompt_points(model, Moment(0, features, 12), click((20, 20)), conditions=True)
    assert made.object_score < 0
    assert (made.logits == ABSENT_LOGIT).all()
    assert_array_equal(made.pointer, model.tensor("no_obj_ptr")[0])


# ------------------------------------------------------------------------------------------------------ holes


def test_holes_are_filled_in_what_is_shown_and_not_in_memories_of_tracked_frames(spy, moment, features):
    """With a mask without holes as prompt, filling changes nothing that later frames see."""
    # Of 256 low-resolution pixels: the background of most tracked masks counts as one large hole.
    area, mask = 235, np.zeros(SIZE_HW, bool)
    mask[12:20, 16:28] = True
    runs = []
    for fill_hole_area in (0, area):
        track = new_track(fill_hole_area=fill_hole_area)
        track.prompt_mask(spy, moment(0), object_mask(mask, 64), conditions=True)
        runs.append(tracked_to(spy, moment, features, track, range(1, 8)))
    plain, filled = runs
    changed = 0
    for index in range(1, 8):
        assert_array_equal(plain.tracked[index].memory, filled.tracked[index].memory)
        assert_array_equal(plain.tracked[index].pointer, filled.tracked[index].pointer)
        assert_array_equal(filled.tracked[index].logits, fill_holes(plain.tracked[index].logits, area))
        changed += not np.array_equal(filled.tracked[index].logits, plain.tracked[index].logits)
    assert changed  # or nothing was tested


def test_the_memory_of_a_prompted_frame_has_its_holes_filled(spy, moment, features):
    area = 40
    made = []
    for fill_hole_area in (0, area):
        track = new_track(fill_hole_area=fill_hole_area)
        track.prompt_points(spy, moment(0), click((20, 20), (50, 30), labels=[1, 0]), conditions=True)
        track.settle(spy, features.__getitem__, clear_around=False)
        made.append(track.conditioning[0])
    plain, filled = made
    assert_array_equal(filled.logits, fill_holes(plain.logits, area))
    assert not np.array_equal(filled.logits, plain.logits)
    assert not np.array_equal(filled.memory, plain.memory)
    for logits, _, binary in spy.encoded:
        assert binary
        assert logits.shape == (1, 1, 16, 16)


def test_tracked_masks_are_softened_and_prompted_ones_cut(spy, moment, features):
    track = new_track()
    track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    tracked_to(spy, moment, features, track, range(1, 3))
    assert [binary for _, _, binary in spy.encoded] == [True, False, False]


# ------------------------------------------------------------------------------------------------ bookkeeping


def a_memory(value=0.0) -> FrameMemory:
    return FrameMemory(
        np.full((1, 16, 16), value, np.float32),
        np.zeros(64, np.float32),
        np.zeros((16, 16), np.uint16),
        1.0,
        1.0,
        1.0,
    )


def with_tracked(frames, conditioning=(0,), **settings) -> ObjectTrack:
    track = new_track(**settings)
    track.conditioning.update({index: a_memory() for index in conditioning})
    track.tracked.update({index: a_memory() for index in frames})
    return track


def test_settling_moves_what_is_pending_and_clears_doubles(spy, features):
    track = with_tracked([3, 5])
    track.pending_conditioning[3] = replace(a_memory(1), memory=None)
    track.pending_tracked[5] = replace(a_memory(2), memory=None)
    track.pending_tracked[0] = replace(a_memory(3), memory=None)
    track.settle(spy, features.__getitem__, clear_around=False)
    assert (list(track.conditioning), list(track.tracked)) == ([0, 3], [5])
    assert track.conditioning[0].logits[0, 0, 0] == 0  # a correction that does not condition is lost here
    assert track.tracked[5].logits[0, 0, 0] == 2
    assert track.tracked[5].memory is not None
    assert not track.pending_tracked
    assert not track.pending_conditioning


@pytest.mark.parametrize(("stride", "first", "last"), [(1, 13, 27), (2, 6, 34)])
def test_clearing_around_a_prompt(stride, first, last):
    """Seven memories to both sides, the prompted frame itself excepted; what conditions stays."""
    policy = ReferencePolicy(stride=stride)
    track = with_tracked([index for index in range(1, 40) if index != 22], (0, 22), policy=policy)
    track.clear_around(20)
    assert list(track.tracked) == [*range(1, first), 20, *range(last + 1, 40)]
    assert list(track.conditioning) == [0, 22]


def test_forgetting_keeps_what_the_next_frame_can_reach():
    track = with_tracked(range(1, 31))
    track.forget(30, reverse=False)
    assert set(range(31 - 15, 31)) <= set(track.tracked)
    assert len(track.tracked) <= 16
    assert track.forgotten == set(range(1, 31)) - set(track.tracked)
    assert list(track.conditioning) == [0]
    assert track.forgotten_before(31, reverse=False) is None
    assert track.forgotten_before(20, reverse=False) is not None
    assert track.forgotten_before(30, reverse=True) is None

    track = with_tracked(range(1, 31))
    track.forget(1, reverse=True)
    assert set(range(1, 16)) <= set(track.tracked)
    assert len(track.tracked) <= 16
    assert track.forgotten_before(0, reverse=True) is None
    assert track.forgotten_before(9, reverse=True) is not None


class Unlimited(ReferencePolicy):
    def reach(self):
        return None


def test_a_policy_without_reach_forgets_nothing():
    track = with_tracked(range(1, 40), policy=Unlimited())
    track.forget(39, reverse=False)
    assert len(track.tracked) == 39
    assert track.forgotten_before(39, reverse=False) is None


class EverySecond(ReferencePolicy):
    """Remembers even frames only, and keeps the single mask."""

    def commit(self, frame, memory):
        return frame % 2 == 0

    def choose(self, candidates, points):
        return Choice(0, 0)


def test_another_policy_decides_what_is_kept(spy, moment, features):
    track = new_track(policy=EverySecond())
    track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    tracked_to(spy, moment, features, track, range(1, 8))
    assert list(track.tracked) == [2, 4, 6]
    assert track._select(moment(8)) == Selection(
        ((0, 6), (2, 5), (4, 3), (6, 1)), ((0, 8 / 11), (6, 2 / 11), (4, 4 / 11), (2, 6 / 11))
    )


def test_taking_a_prompt_back_leaves_an_ordinary_memory(spy, moment, features):
    track = new_track()
    track.prompt_points(spy, moment(0), click((20, 20)), conditions=True)
    track.prompt_points(spy, moment(2), click((20, 20)), conditions=True)
    tracked_to(spy, moment, features, track, [1])
    track.directions[2] = False
    track.unprompt(2)
    assert (list(track.conditioning), sorted(track.tracked), set(track.points)) == ([0], [1, 2], {0})
    assert 2 not in track.directions  # the next prompt there conditions again
    track.unprompt(2)  # nothing left to take back
    assert sorted(track.tracked) == [1, 2]


# ------------------------------------------------------------------------------------------- objects together


@pytest.fixture
def many(spy, moment, features, clip):
    """Seven objects that remember different numbers of frames: five from frame 0 on, one from 2, one from
    4."""
    tracks = []
    for object_id, start in enumerate((0, 0, 2, 0, 0, 4, 0)):
        track = new_track(object_id)
        point = clip.point_xy(start, object_id % 4) + object_id
        track.prompt_points(spy, moment(start), click(point), conditions=True)
        tracks.append(tracked_to(spy, moment, features, track, range(start + 1, 6)))
    return tracks


def test_many_objects_at_once_equal_each_alone(spy, moment, many):
    """The tolerance is that of float32 sums whose order depends on the number of rows."""
    spy.attended.clear()
    together = step_together(spy, many, moment(6))
    sizes = [len(remembered.memories) for remembered in spy.attended]
    assert sorted(sizes) == [1, 1, 1, OBJECTS_AT_ONCE]  # five of one length, in two goes
    for track, made in zip(many, together, strict=True):
        alone = track.step(spy, moment(6))
        np.testing.assert_allclose(made.logits, alone.logits, atol=1e-4)
        np.testing.assert_allclose(made.pointer, alone.pointer, atol=1e-5)
        np.testing.assert_allclose(made.object_score, alone.object_score, atol=1e-5)
        np.testing.assert_allclose(made.predicted_iou, alone.predicted_iou, atol=1e-5)
        # Stored as bfloat16: a difference in the last bit of float32 may round to the next of 8 bits.
        ours, theirs = (np.asarray(m.memory, np.int64) for m in (made, alone))
        assert np.abs(ours - theirs).max() <= 1
        assert (ours != theirs).mean() < 1e-2
    different = [made.logits for made in together]
    assert all(not np.allclose(different[0], other, atol=1e-3) for other in different[1:])


def test_order_of_objects_does_not_matter(spy, moment, many):
    forward = step_together(spy, many, moment(6))
    backward = step_together(spy, many[::-1], moment(6))[::-1]
    for one, other in zip(forward, backward, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


def test_pointers_may_be_missing(spy, moment, features):
    """All conditioning frames lie ahead and nothing was tracked yet."""
    tracks = []
    for object_id in range(2):
        track = new_track(object_id)
        track.prompt_points(spy, moment(9), click((20 + 9 * object_id, 20)), conditions=True)
        track.settle(spy, features.__getitem__, clear_around=False)
        tracks.append(track)
    made = step_together(spy, tracks, moment(4))
    assert spy.attended[-1].pointers.shape == (2, 0, 64)
    assert all(np.isfinite(memory.logits).all() for memory in made)
