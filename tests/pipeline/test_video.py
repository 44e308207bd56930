"""The predictor for videos: its calls, what passes yield, prompts that change, objects that come and go."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import masklet
from masklet.errors import Cancelled, InputError
from masklet.pipeline.postprocess import resize_logits
from masklet.pipeline.results import without_overlap
from masklet.pipeline.video import VideoPredictor

COUNT, LAST = 14, 13  # frames of the clip, where no more are needed


@pytest.fixture
def predict(tracking_model, clip):
    """A predictor and the state of a prompted clip; object 1 is prompted on frame `first`."""
    states = []

    def make(first=0, model=tracking_model, frames=clip.frames[:COUNT], **settings):
        predictor = VideoPredictor(model, **settings)
        state = predictor.init_state(list(frames))
        states.append(state)
        prompt(predictor, state, first, 1)
        return predictor, state

    def prompt(predictor, state, frame, object_id, shape=None):
        """A click on a shape."""
        point = clip.point_xy(frame, object_id - 1 if shape is None else shape)
        return predictor.add_new_points_or_box(state, frame, object_id, points=[point], labels=[1])

    make.prompt = prompt
    yield make
    for state in states:
        state.close()


def passed(predictor, state, *args, **options):
    """The logits of every frame of a pass."""
    return {frame: logits for frame, _, logits in predictor.propagate_in_video(state, *args, **options)}


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[frame], other[frame]) for frame in one)


# -------------------------------------------------------------------------------------- what the calls return


def test_a_prompt_returns_all_objects_on_its_frame(predict, clip):
    predictor, state = predict()
    frame, ids, logits = predict.prompt(predictor, state, 4, 7, shape=1)
    assert (frame, ids) == (4, [1, 7])
    assert (logits.shape, logits.dtype) == ((2, 1, 48, 64), np.float32)
    assert (logits[0] == -1024).all()  # object 1 has no mask there yet
    assert (logits[1] > 0).any()
    assert (state.num_frames, state.size_hw, state.object_ids) == (COUNT, (48, 64), [1, 7])
    assert [state[key] for key in ("num_frames", "video_height", "video_width", "obj_ids")] == [
        COUNT,
        48,
        64,
        [1, 7],
    ]
    with pytest.raises(KeyError, match=r"no 'images'; it has obj_ids"):
        state["images"]


def test_a_pass_yields_logits_and_track_yields_results(predict):
    predictor, state = predict()
    predict.prompt(predictor, state, 0, 2)
    yielded = list(predictor.propagate_in_video(state))
    assert [frame for frame, _, _ in yielded] == list(range(COUNT))
    assert all(ids == [1, 2] and logits.shape == (2, 1, 48, 64) for _, ids, logits in yielded)
    results = list(predictor.track(state))
    for result, (frame, ids, logits) in zip(results, yielded, strict=True):
        assert (result.index, [tracked.object_id for tracked in result.objects]) == (frame, ids)
        assert_array_equal(np.stack([tracked.mask for tracked in result.objects]), logits[:, 0] > 0)
        assert all(0 <= tracked.predicted_iou <= 1 for tracked in result.objects)


def test_the_prompted_frame_comes_out_as_it_was_shown(predict):
    predictor, state = predict()
    *_, shown = predict.prompt(predictor, state, 0, 2)
    (_, _, logits), *_ = predictor.propagate_in_video(state, max_frame_num_to_track=0)
    assert_array_equal(logits, shown)


def test_passing_twice_gives_the_same(predict):
    predictor, state = predict()
    assert same(passed(predictor, state), passed(predictor, state))


def test_coordinates_may_be_fractions(predict):
    predictor, state = predict()
    one = predictor.add_new_points_or_box(state, 0, 2, points=[[16, 12]], labels=[1])
    other = predictor.add_new_points_or_box(
        state, 0, 3, points=[[0.25, 0.25]], labels=[1], normalize_coords=False
    )
    assert_array_equal(one[2][-1], other[2][-1])


def test_a_box_and_points_go_together(predict, clip):
    predictor, state = predict()
    box = clip.box_xyxy(0, 1)
    *_, alone = predictor.add_new_points_or_box(state, 0, 2, box=box)
    *_, both = predictor.add_new_points_or_box(state, 0, 3, box=box, points=[[30, 20]], labels=[0])
    assert not np.array_equal(alone[1], both[2])
    # Points may be added to a box, not the other way round.
    *_, added = predictor.add_new_points_or_box(
        state, 0, 2, points=[[30, 20]], labels=[0], clear_old_points=False
    )
    assert state.tracks[2].points[0].labels.tolist() == [[2, 3, 0, -1]]
    assert not np.array_equal(alone[1], added[1])


def test_points_replace_or_extend_those_of_the_frame(predict):
    predictor, state = predict()
    for clear, labels in (
        (True, [[0, -1]]),
        (False, [[0, 1, -1]]),
        (False, [[0, 1, 1, -1]]),
        (True, [[1, -1]]),
    ):
        point = [20 + len(labels[0]), 20]
        label = labels[0][-2]
        predictor.add_new_points_or_box(state, 0, 1, [point], [label], clear_old_points=clear)
        assert state.tracks[1].points[0].labels.tolist() == labels
    predictor.add_new_points_or_box(state, 5, 1, [[9, 9]], [1], clear_old_points=False)  # another frame's own
    assert state.tracks[1].points[5].labels.tolist() == [[1, -1]]


def test_a_mask_replaces_points_and_points_a_mask(predict, clip):
    predictor, state = predict()
    *_, shown = predictor.add_new_mask(state, 0, 1, clip.masks[0, 2])
    expected = clip.masks[0, 2]
    overlap = (shown[0, 0] > 0) & expected
    assert overlap.sum() / ((shown[0, 0] > 0) | expected).sum() > 0.7  # an outline in steps of 4 pixels
    assert (list(state.tracks[1].points), list(state.tracks[1].masks)) == ([], [0])
    predict.prompt(predictor, state, 0, 1)
    assert (list(state.tracks[1].points), list(state.tracks[1].masks)) == ([0], [])


def test_a_folder_of_pictures_gives_the_numbers_of_its_frames(predict, clip, tmp_path):
    from PIL import Image

    for index, pixels in enumerate(clip.frames[:4]):
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    expected = passed(*predict(frames=clip.frames[:4]))
    predictor, _ = predict()
    with predictor.init_state(tmp_path, True, offload_state_to_cpu=True, async_loading_frames=True) as state:
        predict.prompt(predictor, state, 0, 1)
        assert same(passed(predictor, state), expected)


def test_both_versions_track(stand_in, predict):
    model = masklet.load(stand_in("2.0"), threads=1)
    predictor, state = predict(model=model)
    logits = passed(predictor, state, max_frame_num_to_track=3)
    assert list(logits) == [0, 1, 2, 3]
    assert all(np.isfinite(frame).all() for frame in logits.values())


# ----------------------------------------------------------------------------------------------- which frames


@pytest.mark.parametrize(
    ("first", "options", "frames"),
    [
        (0, {}, range(COUNT)),
        (6, {}, range(6, COUNT)),  # from the first conditioning frame
        (6, {"start_frame_idx": 8}, range(8, COUNT)),
        (6, {"start_frame_idx": 2}, range(2, COUNT)),
        (0, {"max_frame_num_to_track": 5}, range(6)),  # one more than the number, as in the reference
        (0, {"max_frame_num_to_track": 0}, [0]),
        (0, {"max_frame_num_to_track": 100}, range(COUNT)),
        (0, {"start_frame_idx": 11, "max_frame_num_to_track": 5}, [11, 12, 13]),
        (6, {"reverse": True}, range(6, -1, -1)),
        (6, {"reverse": True, "max_frame_num_to_track": 2}, [6, 5, 4]),
        (0, {"reverse": True, "start_frame_idx": LAST}, range(LAST, -1, -1)),
        (0, {"reverse": True, "start_frame_idx": 2, "max_frame_num_to_track": 9}, [2, 1, 0]),
        (0, {"reverse": True}, []),  # nothing lies before frame 0
        (6, {"reverse": True, "start_frame_idx": 0}, []),
    ],
)
def test_frames_of_propagate_in_video(predict, first, options, frames):
    predictor, state = predict(first)
    assert list(passed(predictor, state, **options)) == list(frames)


@pytest.mark.parametrize(
    ("first", "options", "frames"),
    [
        (0, {"num_frames": 5}, range(5)),
        (0, {"num_frames": 1}, [0]),
        (0, {"num_frames": 99}, range(COUNT)),
        (6, {"start_frame_idx": 8, "num_frames": 2}, [8, 9]),
        (6, {"reverse": True, "num_frames": 3}, [6, 5, 4]),
        (6, {"reverse": True, "num_frames": 99}, range(6, -1, -1)),
        (0, {"reverse": True}, [0]),
    ],
)
def test_frames_of_track(predict, first, options, frames):
    predictor, state = predict(first)
    assert [result.index for result in predictor.track(state, **options)] == list(frames)


@pytest.mark.parametrize("num_frames", [0, -3])
def test_a_number_of_frames_that_means_nothing(predict, num_frames):
    predictor, state = predict()
    with pytest.raises(InputError, match=rf"num_frames is {num_frames}; give 1 or more"):
        list(predictor.track(state, num_frames=num_frames))


def test_reverse_is_forward_in_a_mirrored_clip(predict, clip):
    """The rules are symmetric, except where a stride counts from frame 0."""
    forward = passed(*predict(), max_frame_num_to_track=8)
    mirrored = VideoPredictor(predict()[0].model)
    state = mirrored.init_state(list(clip.frames[COUNT - 1 :: -1]))
    predict_at = clip.point_xy(0, 0)
    mirrored.add_new_points_or_box(state, LAST, 1, points=[predict_at], labels=[1])
    backward = passed(mirrored, state, reverse=True, max_frame_num_to_track=8)
    assert same(forward, {LAST - frame: logits for frame, logits in backward.items()})


# ------------------------------------------------------------------------------------------------ corrections


def correct(predictor, state, frame=10):
    """A click that the tracked mask does not agree with."""
    return predictor.add_new_points_or_box(state, frame, 1, points=[[50, 40], [5, 5]], labels=[1, 0])[2]


def test_a_correction_is_shown_and_lost_when_a_pass_meets_its_frame(predict):
    """The default of the reference."""
    predictor, state = predict()
    before = passed(predictor, state)
    shown = correct(predictor, state)
    assert not np.array_equal(shown, before[10])
    assert same(passed(predictor, state, 10), {frame: before[frame] for frame in range(10, COUNT)})


def test_a_correction_is_seen_by_a_pass_that_starts_behind_it(predict):
    predictor, state = predict()
    before = passed(predictor, state)
    correct(predictor, state)
    after = passed(predictor, state, 11)
    assert not np.array_equal(after[11], before[11])


def test_a_correction_is_kept_where_it_conditions(predict):
    predictor, state = predict(add_all_frames_to_correct_as_cond=True)
    before = passed(predictor, state)
    shown = correct(predictor, state)
    after = passed(predictor, state)
    assert list(state.tracks[1].conditioning) == [0, 10]
    assert_array_equal(after[10], shown)
    assert not np.array_equal(after[11], before[11])
    assert not np.array_equal(after[5], before[5])  # conditioning frames ahead are looked at as well
    assert 10 not in state.tracks[1].tracked


def test_a_correction_of_one_object_leaves_the_others_alone(predict):
    predictor, state = predict(add_all_frames_to_correct_as_cond=True)
    predict.prompt(predictor, state, 0, 2)
    before = passed(predictor, state)
    correct(predictor, state)
    after = passed(predictor, state)
    assert not np.array_equal(after[12][0], before[12][0])
    # Now of different lengths, the objects are computed apart: sums of float32 in another order.
    np.testing.assert_allclose(after[12][1], before[12][1], atol=1e-3)


def test_a_prompt_on_an_untracked_frame_conditions(predict):
    predictor, state = predict()
    passed(predictor, state, max_frame_num_to_track=4)
    *_, shown = predict.prompt(predictor, state, 12, 1)
    after = passed(predictor, state)
    assert list(state.tracks[1].conditioning) == [0, 12]
    assert_array_equal(after[12], shown)


def test_a_second_click_on_a_conditioning_frame_that_was_passed_is_lost(predict):
    """As in the reference: the frame counts as tracked, so the click does not condition, and what conditions
    already wins."""
    predictor, state = predict()
    before = passed(predictor, state)
    shown = correct(predictor, state, frame=0)
    assert not np.array_equal(shown, before[0])
    assert same(passed(predictor, state), before)


@pytest.mark.parametrize("everything", [False, True])
def test_clearing_memories_around_a_prompt(predict, clip, everything):
    predictor, state = predict(
        frames=clip.frames,
        clear_non_cond_mem_around_input=True,
        add_all_frames_to_correct_as_cond=everything,
    )
    predict.prompt(predictor, state, 0, 2)
    passed(predictor, state)
    assert set(state.tracks[1].tracked) == set(range(1, 30))  # frame 0 cleared what was not there yet
    correct(predictor, state, 15)
    predictor.propagate_in_video_preflight(state)
    own = set() if everything else {15}
    assert set(state.tracks[1].tracked) == {*range(1, 8), *range(23, 30)} | own
    assert set(state.tracks[2].tracked) == set(range(1, 30))


def test_a_pass_clears_around_conditioning_frames(predict):
    predictor, state = predict(10, clear_non_cond_mem_around_input=True)
    passed(predictor, state, 4, max_frame_num_to_track=5)  # frames 4 .. 9
    assert set(state.tracks[1].tracked) == set(range(4, 10))
    passed(predictor, state, 10, max_frame_num_to_track=0)
    assert set(state.tracks[1].tracked) == set()


# ---------------------------------------------------------------------------------------- objects come and go


def test_an_object_added_late(predict):
    """The others are not disturbed, and it is tracked from its own frame, also back from there."""
    predictor, state = predict()
    before = passed(predictor, state)
    *_, shown = predict.prompt(predictor, state, 8, 2)
    assert_array_equal(shown[0], before[8][0])
    after = passed(predictor, state)
    assert all(len(logits) == 2 for logits in after.values())
    assert_array_equal(after[8][1], shown[1])
    for frame in range(COUNT):
        np.testing.assert_allclose(after[frame][0], before[frame][0], atol=1e-3)  # other batches
    backward = passed(predictor, state, 8, reverse=True)
    assert list(backward) == list(range(8, -1, -1))


def test_removing_an_object_frees_its_memories(predict):
    predictor, state = predict()
    predict.prompt(predictor, state, 0, 2)
    predict.prompt(predictor, state, 5, 2)
    before = passed(predictor, state)
    assert len(state.store) == 2 * COUNT
    ids, shown = predictor.remove_object(state, 1)
    assert (ids, state.object_ids, len(state.store)) == ([2], [2], COUNT)
    assert [frame for frame, _ in shown] == [0]
    assert_array_equal(shown[0][1], before[0][1:])
    assert predictor.remove_object(state, 1) == ([2], [])
    assert predictor.remove_object(state, 2) == ([], [])
    assert len(state.store) == 0


def test_removing_shows_the_frames_where_the_object_was_prompted(predict, clip):
    predictor, state = predict()
    predict.prompt(predictor, state, 0, 2)
    predict.prompt(predictor, state, 7, 1)
    predictor.add_new_mask(state, 3, 1, clip.masks[3, 0])
    _, shown = predictor.remove_object(state, 1)
    assert [frame for frame, _ in shown] == [0, 3, 7]
    assert all(logits.shape == (1, 1, 48, 64) for _, logits in shown)
    assert (shown[0][1] > 0).any()
    assert (shown[1][1] == -1024).all()
    assert predictor.remove_object(state, 2, need_output=False) == ([], [])


def test_a_removed_object_may_come_back_as_new(predict):
    predictor, state = predict()
    before = passed(predictor, state)
    predictor.remove_object(state, 1)
    predict.prompt(predictor, state, 0, 1)
    assert same(passed(predictor, state), before)


def test_reset_forgets_objects_and_keeps_the_video(predict):
    predictor, state = predict()
    before = passed(predictor, state)
    predictor.reset_state(state)
    assert (state.object_ids, len(state.store)) == ([], 0)
    with pytest.raises(InputError, match="no prompts for any object"):
        list(predictor.propagate_in_video(state))
    predict.prompt(predictor, state, 0, 1)
    assert same(passed(predictor, state), before)


def test_taking_prompts_back(predict):
    predictor, state = predict()
    predict.prompt(predictor, state, 5, 1)
    frame, ids, logits = predictor.clear_all_prompts_in_frame(state, 5, 1)
    assert (frame, ids) == (5, [1])
    assert (logits == -1024).all()
    before = passed(predictor, state)
    predict.prompt(predictor, state, LAST, 2)
    predictor.propagate_in_video_preflight(state)
    assert predictor.clear_all_prompts_in_frame(state, LAST, 2, need_output=False) is None
    with pytest.raises(InputError, match=r"Object 2 has no prompts .*remove the object"):
        list(predictor.propagate_in_video(state))
    predictor.remove_object(state, 2)
    assert same(passed(predictor, state), before)


# ------------------------------------------------------------------------------------------ holes and overlap


def test_holes_are_filled_by_default(predict):
    assert VideoPredictor(predict()[0].model).fill_hole_area == 8
    _, state = predict(fill_hole_area=200)
    plain, unfilled = predict(fill_hole_area=0)
    low_res = unfilled.tracks[1].pending_conditioning[0].logits
    filled = state.tracks[1].pending_conditioning[0].logits
    assert not np.array_equal(low_res, filled)
    assert_array_equal(filled[filled != low_res], np.float32(0.1))
    *_, shown = plain.add_new_points_or_box(unfilled, 1, 1, points=[[1, 1]], labels=[1])
    assert_array_equal(
        shown, resize_logits(unfilled.tracks[1].pending_conditioning[1].logits[None], (48, 64))
    )


def test_masks_without_overlap(predict):
    """Only what is shown: memories are those of the default."""
    runs = []
    for non_overlap_masks in (False, True):
        predictor, state = predict(non_overlap_masks=non_overlap_masks)
        *_, shown = predict.prompt(predictor, state, 0, 2)
        runs.append((shown, passed(predictor, state), list(predictor.track(state, num_frames=4))))
    (shown, plain, results), (shown_apart, apart, results_apart) = runs
    assert_array_equal(shown_apart, without_overlap(shown))
    assert same(apart, {frame: without_overlap(logits) for frame, logits in plain.items()})
    assert any((logits > 0).sum(axis=0).max() > 1 for logits in plain.values())
    for result, expected in zip(results_apart, results, strict=True):
        masks = np.stack([tracked.mask for tracked in result.objects])
        assert_array_equal(masks, apart[result.index][:, 0] > 0)
        assert [tracked.object_score for tracked in result.objects] == [
            tracked.object_score for tracked in expected.objects
        ]


# --------------------------------------------------------------------------------------------------- stopping


def test_cancelling_ends_a_pass_and_keeps_what_is_done(predict):
    predictor, state = predict()
    done = []
    with pytest.raises(Cancelled, match="before frame 4; the frames before it are done"):
        done.extend(result.index for result in predictor.track(state, cancel=lambda: len(done) == 4))
    assert done == [0, 1, 2, 3]
    assert len(state.store) == 4
    expected = passed(*predict())
    assert same(passed(predictor, state, 4), {frame: expected[frame] for frame in range(4, COUNT)})


def test_a_pass_that_is_left_early_goes_on_where_it_was(predict):
    expected = passed(*predict())
    predictor, state = predict()
    for frame, _, _ in predictor.propagate_in_video(state):
        if frame == 9:
            break
    assert same(passed(predictor, state, 10), {frame: expected[frame] for frame in range(10, COUNT)})


def test_leaving_a_pass_closes_its_frames(predict, monkeypatch):
    """Behind them a thread may be decoding ahead."""
    predictor, state = predict()
    frames, ended = state.source.frames, []

    def watched(*arguments):
        try:
            yield from frames(*arguments)
        finally:
            ended.append(True)

    monkeypatch.setattr(state.source, "frames", watched)
    results = predictor.track(state)
    next(results)
    assert not ended
    results.close()
    assert ended
