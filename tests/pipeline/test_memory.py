"""The rules of memory without a network: tables by hand, the rules told a second time, bfloat16."""

from __future__ import annotations

import random
from functools import partial

import numpy as np
import pytest

from masklet.errors import InputError
from masklet.pipeline.memory import (
    Choice,
    FrameMemory,
    ReferencePolicy,
    Selection,
    from_bfloat16,
    to_bfloat16,
)
from masklet.types import Candidates


def select(policy, frame, conditioning, tracked, num_frames=None, reverse=False):
    return policy.select(
        frame,
        dict.fromkeys(conditioning, "memory"),
        dict.fromkeys(tracked, "memory"),
        num_frames=num_frames,
        reverse=reverse,
    )


def distances(selection, farthest):
    """Pointers as (frame, whole distance)."""
    return [(index, round(distance * farthest, 6)) for index, distance in selection.pointers]


# --------------------------------------------------------------------------------------------- tables by hand

# frame, reverse, conditioning, tracked -> memories as (frame, slot), pointers as (frame, distance).
# Slot 6 is for conditioning frames, slot k for a memory that is k + 1 frames (memories) old.
STRIDE_1 = {
    "first step": (1, False, [0], [], [(0, 6)], [(0, 1)]),
    "window not yet full": (3, False, [0], [1, 2], [(0, 6), (1, 1), (2, 0)], [(0, 3), (2, 1), (1, 2)]),
    "full": (
        20,
        False,
        [0],
        range(1, 20),
        [(0, 6), (14, 5), (15, 4), (16, 3), (17, 2), (18, 1), (19, 0)],
        [(0, 20), *((20 - d, d) for d in range(1, 16))],
    ),
    "the frame behind is not remembered": (
        10, False, [0], [1, 8], [(0, 6), (8, 1)], [(0, 10), (8, 2), (1, 9)],
    ),
    "later tracked frames do not count": (
        3, False, [0], [1, 2, 3, 4, 5], [(0, 6), (1, 1), (2, 0)], [(0, 3), (2, 1), (1, 2)],
    ),
    "a later conditioning frame has a memory and no pointer": (
        2, False, [0, 5], [1], [(0, 6), (5, 6), (1, 0)], [(0, 2), (1, 1)],
    ),
    "all conditioning frames later": (2, False, [5, 9], [1], [(5, 6), (9, 6), (1, 0)], [(1, 1)]),
    "nothing but a later conditioning frame": (0, False, [7], [], [(7, 6)], []),
    "conditioning frames in the order they were added": (
        4, False, [3, 0], [1, 2], [(3, 6), (0, 6), (1, 2), (2, 1)], [(3, 1), (0, 4), (2, 2), (1, 3)],
    ),
    "a conditioning frame inside the window leaves its slot empty": (
        10, False, [0, 7], [1, 2, 3, 4, 5, 6, 8, 9],
        [(0, 6), (7, 6), (4, 5), (5, 4), (6, 3), (8, 1), (9, 0)],
        [(0, 10), (7, 3), (9, 1), (8, 2), (6, 4), (5, 5), (4, 6), (3, 7), (2, 8), (1, 9)],
    ),
    "a correction attends to its own conditioning memory": (
        4, False, [0, 4], [1, 2, 3], [(0, 6), (4, 6), (1, 2), (2, 1), (3, 0)],
        [(0, 4), (4, 0), (3, 1), (2, 2), (1, 3)],
    ),
    "frame 0": (0, False, [0], [], [(0, 6)], [(0, 0)]),
    "reverse": (5, True, [9], [6, 7, 8], [(9, 6), (8, 2), (7, 1), (6, 0)], [(9, 4), (6, 1), (7, 2), (8, 3)]),
    "reverse, full": (
        3, True, [23], range(4, 23), [(23, 6), (9, 5), (8, 4), (7, 3), (6, 2), (5, 1), (4, 0)],
        [(23, 20), *((3 + d, d) for d in range(1, 16))],
    ),
    "reverse to frame 0": (0, True, [2], [1], [(2, 6), (1, 0)], [(2, 2), (1, 1)]),
    "reverse with an earlier conditioning frame": (
        5, True, [2, 9], [3, 4, 6, 7, 8], [(2, 6), (9, 6), (8, 2), (7, 1), (6, 0)],
        [(9, 4), (6, 1), (7, 2), (8, 3)],
    ),
    "the last frame, in reverse": (29, True, [29], range(29), [(29, 6)], [(29, 0)]),
}  # fmt: skip


@pytest.mark.parametrize("case", STRIDE_1)
def test_all_conditioning_frames(case):
    frame, reverse, conditioning, tracked, memories, pointers = STRIDE_1[case]
    for num_frames in (None, 30, 16):
        if num_frames and max([frame, *conditioning, *tracked]) >= num_frames:
            continue
        selection = select(ReferencePolicy(), frame, conditioning, tracked, num_frames, reverse)
        assert list(selection.memories) == memories
        assert distances(selection, 15) == pointers


# Strides: which frames fill the window of frame -> (frame, slot), all frames before (behind) are tracked.
STRIDES = [
    (2, 11, False, [(2, 4), (4, 3), (6, 2), (8, 1), (10, 0)]),  # and 0, which conditions
    (2, 12, False, [(2, 5), (4, 4), (6, 3), (8, 2), (10, 1), (11, 0)]),
    (2, 13, False, [(2, 5), (4, 4), (6, 3), (8, 2), (10, 1), (12, 0)]),
    (3, 19, False, [(3, 5), (6, 4), (9, 3), (12, 2), (15, 1), (18, 0)]),
    (3, 20, False, [(6, 5), (9, 4), (12, 3), (15, 2), (18, 1), (19, 0)]),
    (3, 21, False, [(6, 5), (9, 4), (12, 3), (15, 2), (18, 1), (20, 0)]),
    (3, 2, False, [(1, 0)]),  # and 0, which conditions
    (2, 4, True, [(14, 5), (12, 4), (10, 3), (8, 2), (6, 1), (5, 0)]),
    (2, 3, True, [(14, 5), (12, 4), (10, 3), (8, 2), (6, 1), (4, 0)]),
    (3, 5, True, [(21, 5), (18, 4), (15, 3), (12, 2), (9, 1), (6, 0)]),
    (3, 6, True, [(21, 5), (18, 4), (15, 3), (12, 2), (9, 1), (7, 0)]),
    (3, 7, True, [(21, 5), (18, 4), (15, 3), (12, 2), (9, 1), (8, 0)]),
    (3, 17, True, [(21, 1), (18, 0)]),  # 19 is no multiple; 24, 27, 30 do not exist
]


@pytest.mark.parametrize(("stride", "frame", "reverse", "window"), STRIDES)
def test_stride(stride, frame, reverse, window):
    first, tracked = (22, range(frame + 1, 22)) if reverse else (0, range(1, frame))
    selection = select(ReferencePolicy(stride=stride), frame, [first], tracked, 23, reverse)
    assert list(selection.memories) == [(first, 6), *window]
    # Pointers know no stride.
    expected = [(first, abs(frame - first))]
    expected += [(frame + d if reverse else frame - d, d) for d in range(1, min(len(tracked), 15) + 1)]
    assert distances(selection, 15) == expected


# max_cond_frames, frame, conditioning -> those selected, in order.
CLOSEST = [
    (2, 10, [0, 4], [0, 4]),
    (2, 10, [0, 4, 8, 20], [8, 20]),
    (3, 10, [0, 4, 8, 20], [8, 20, 4]),
    (3, 10, [20, 8, 4, 0], [8, 20, 4]),
    (4, 10, [20, 8, 4, 0], [20, 8, 4, 0]),
    (2, 30, [0, 10, 20], [20, 10]),
    (2, 5, [40, 10, 20], [10, 20]),
    (3, 10, [6, 14, 9, 11], [9, 11, 6]),  # 6 and 14 are equally far: the one added first
    (3, 10, [14, 6, 9, 11], [9, 11, 14]),
    (2, 10, [10, 12, 3], [3, 10]),  # the frame itself counts as one that follows
    (-1, 10, [0, 4, 8, 20], [0, 4, 8, 20]),
]


@pytest.mark.parametrize(("limit", "frame", "conditioning", "selected"), CLOSEST)
@pytest.mark.parametrize("reverse", [False, True])
def test_closest_conditioning_frames(limit, frame, conditioning, selected, reverse):
    selection = select(ReferencePolicy(max_cond_frames=limit), frame, conditioning, [], 50, reverse)
    assert [index for index, slot in selection.memories if slot == 6] == selected


def test_unselected_conditioning_frames_count_as_tracked():
    policy = ReferencePolicy(max_cond_frames=2)
    selection = select(policy, 10, [0, 4, 8, 20], [1, 2, 3, 5, 6, 7, 9], 30)
    assert list(selection.memories) == [(8, 6), (20, 6), (4, 5), (5, 4), (6, 3), (7, 2), (9, 0)]
    assert distances(selection, 15) == [
        (8, 2), (9, 1), (7, 3), (6, 4), (5, 5), (4, 6), (3, 7), (2, 8), (1, 9), (0, 10),
    ]  # fmt: skip
    assert select(policy, 40, [0, 4, 8, 20], []).memories == ((20, 6), (8, 6))  # the others are out of reach


@pytest.mark.parametrize(
    ("num_frames", "expected"),
    [
        # All of frames 0 (conditioning) .. f - 1 were tracked; the frame is the clip's last, at most 20.
        (2, [(0, 1 / 1)]),
        (4, [(0, 3 / 3), (2, 1 / 3), (1, 2 / 3)]),
        (5, [(0, 4 / 4), (3, 1 / 4), (2, 2 / 4), (1, 3 / 4)]),
        (15, [(0, 14 / 14), *((14 - d, d / 14) for d in range(1, 14))]),
        (16, [(0, 15 / 15), *((15 - d, d / 15) for d in range(1, 15))]),
        (17, [(0, 16 / 15), *((16 - d, d / 15) for d in range(1, 16))]),
        (18, [(0, 17 / 15), *((17 - d, d / 15) for d in range(1, 16))]),
    ],
)
def test_short_clips_bound_and_scale_the_pointers(num_frames, expected):
    frame = num_frames - 1
    selection = select(ReferencePolicy(), frame, [0], range(1, frame), num_frames)
    assert list(selection.pointers) == expected
    if num_frames >= 16:  # a stream is a clip that is long enough
        assert selection == select(ReferencePolicy(), frame, [0], range(1, frame), None)


def test_a_clip_of_one_frame_has_no_infinite_distance():
    """The reference divides zero by zero here."""
    assert select(ReferencePolicy(), 0, [0], [], 1) == Selection(((0, 6),), ((0, 0.0),))


# ------------------------------------------------------------------------------------ the rules a second time


def slowly(frame, conditioning, tracked, num_frames, reverse, stride, limit):
    """All known frames, each asked for its place."""
    sign = -1 if reverse else 1
    if limit == -1 or len(conditioning) <= limit:
        selected = list(conditioning)
    else:
        earlier, later = [c for c in conditioning if c < frame], [c for c in conditioning if c >= frame]
        selected = sorted(earlier)[-1:] + sorted(later)[:1]
        while len(selected) < limit:
            rest = [c for c in conditioning if c not in selected]
            selected.append(min(rest, key=lambda c: abs(c - frame)))  # the first of equals

    # The window: the neighbour, and the five nearest multiples of the stride from two frames away on.
    away = (frame - 2 * sign - step * sign for step in range(10 * stride))
    window = [frame - sign, *[index for index in away if index % stride == 0][:5]]
    memories = [(index, 6) for index in selected]
    pointers = []
    for index in sorted({*conditioning, *tracked} - {*selected}):
        if index in window:
            memories.append((index, window.index(index)))
        behind = (frame - index) * sign
        if 1 <= behind < min(num_frames or 16, 16):
            pointers.append((index, behind))
    first = len(selected)
    memories[first:] = sorted(memories[first:], key=lambda entry: -entry[1])
    past = [(index, (frame - index) * sign) for index in selected if (frame - index) * sign >= 0]
    scale = max(min(num_frames or 16, 16) - 1, 1)
    everything = past + sorted(pointers, key=lambda entry: entry[1])
    return Selection(tuple(memories), tuple((index, distance / scale) for index, distance in everything))


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_random_states_against_the_slow_telling(stride, reverse):
    rng = random.Random(f"{stride} {reverse}")
    seen = set()
    for _ in range(1500):
        num_frames = rng.choice([2, 5, 15, 16, 17, 40])
        known = rng.sample(range(num_frames), rng.randint(1, num_frames))
        count = rng.randint(1, min(4, len(known)))
        conditioning, tracked = known[:count], known[count:]
        frame, limit = rng.randrange(num_frames), rng.choice([-1, 2, 3])
        told = rng.choice([num_frames, None]) if num_frames >= 16 else num_frames
        policy = ReferencePolicy(max_cond_frames=limit, stride=stride)
        got = select(policy, frame, conditioning, tracked, told, reverse)
        assert got == slowly(frame, conditioning, tracked, told, reverse, stride, limit)
        seen.add((len(got.memories), len(got.pointers) == 0))
    assert {size for size, _ in seen} >= set(range(1, 9))  # the cases are as varied as they should be
    assert {empty for _, empty in seen} == {True, False}


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("reverse", [False, True])
def test_reach_is_exactly_as_far_as_a_frame_looks(stride, reverse):
    policy, length = ReferencePolicy(stride=stride), 120
    farthest = 0
    for frame in range(40, 80):
        first, tracked = (119, range(frame + 1, 119)) if reverse else (0, range(1, frame))
        found = select(policy, frame, [first], tracked, length, reverse)
        named = {index for index, _ in (*found.memories, *found.pointers)} - {first}
        farthest = max(farthest, *(abs(frame - index) for index in named))
    assert policy.reach() == farthest
    assert policy.reach() == max(15, 5 * stride + 1)


@pytest.mark.parametrize(
    "settings", [{"stride": 0}, {"stride": -1}, {"max_cond_frames": 1}, {"max_cond_frames": 0}]
)
def test_settings_that_mean_nothing(settings):
    with pytest.raises(InputError, match=r"stride is .*max_cond_frames"):
        ReferencePolicy(**settings)


# ------------------------------------------------------------------------------------ which mask, which frame


def candidates(iou, single_above=50, single_below=50):
    """Four masks; the single one has `single_below` pixels over -0.05, of them `single_above` over 0.05."""
    logits = np.full((1, 4, 10, 10), -1, np.float32)
    single = logits[0, 0].reshape(-1)
    single[:single_below] = 0
    single[:single_above] = 1
    return Candidates(
        logits, np.array([iou], np.float32), np.ones((1, 1), np.float32), np.zeros((1, 4, 8), np.float32)
    )


@pytest.mark.parametrize(
    ("iou", "points", "above", "choice"),
    [
        ([0.9, 0.1, 0.3, 0.2], 0, 50, Choice(2, 2)),  # no prompt: the single mask does not take part
        ([0.9, 0.1, 0.2, 0.3], 1, 50, Choice(3, 3)),
        ([0.0, 0.3, 0.3, 0.1], 1, 50, Choice(1, 1)),  # the first of equals
        ([0.0, 0.1, 0.2, 0.3], 2, 50, Choice(0, 0)),
        ([0.0, 0.1, 0.2, 0.3], 7, 49, Choice(0, 0)),  # 49 / 50 is exactly the threshold
        ([0.0, 0.1, 0.2, 0.3], 2, 48, Choice(3, 0)),  # not stable: another mask, the same pointer
        ([0.0, 0.1, 0.2, 0.3], 1, 0, Choice(3, 3)),
    ],
)
def test_choice(iou, points, above, choice):
    assert ReferencePolicy().choose(candidates(iou, above), points) == choice


def test_an_empty_single_mask_is_stable():
    assert ReferencePolicy().choose(candidates([0, 0.1, 0.2, 0.3], 0, 0), 2) == Choice(0, 0)


def test_every_frame_is_remembered():
    array = np.zeros((1, 2, 2), np.float32)
    memory = FrameMemory(array, array, None, object_score=-3.0, predicted_iou=0.0, stability=0.0)
    assert ReferencePolicy().commit(5, memory)


def test_a_policy_is_a_value():
    make = partial(ReferencePolicy, stride=2)
    assert make() == make() != ReferencePolicy()


# --------------------------------------------------------------------------------------------------- bfloat16


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (0.0, 0x0000),
        (-0.0, 0x8000),
        (1.0, 0x3F80),
        (-2.0, 0xC000),
        (1 + 2**-8, 0x3F80),  # halfway: to the even neighbour, below
        (1 + 3 * 2**-8, 0x3F82),  # halfway: to the even neighbour, above
        (-(1 + 3 * 2**-8), 0xBF82),
        (1 + 2**-8 + 2**-23, 0x3F81),  # just over halfway
        (1 + 3 * 2**-8 - 2**-23, 0x3F81),  # just under halfway
        (2 - 2**-8, 0x4000),  # the next power of two
        (2.0**-133, 0x0001),  # the smallest that there is
        (2.0**-134, 0x0000),  # halfway to it
        (3 * 2.0**-134, 0x0002),
        (3.3895313892515355e38, 0x7F7F),  # the largest that there is
        (3.4028234663852886e38, 0x7F80),  # float32's largest is beyond: infinite
        (np.inf, 0x7F80),
        (-np.inf, 0xFF80),
    ],
)  # fmt: skip
def test_rounding_by_hand(value, bits):
    assert to_bfloat16(np.array([value], np.float32)).tolist() == [bits]


def test_rounding_against_float64():
    values = np.random.default_rng(0).normal(0, 1, 20000).astype(np.float32)
    values *= np.float32(10) ** np.random.default_rng(1).integers(-30, 30, 20000).astype(np.float32)
    values[:4000] = from_bfloat16(to_bfloat16(values[:4000])) * np.float32(1 + 2**-8)  # many ties
    unit = np.exp2(np.floor(np.log2(np.abs(values.astype(np.float64)))) - 7)
    expected = np.rint(values / unit) * unit  # ties to even
    np.testing.assert_array_equal(from_bfloat16(to_bfloat16(values)), expected.astype(np.float32))


def test_nan_stays_nan():
    quiet = np.array([0x7FC00000, 0xFFC00000], np.uint32).view(np.float32)
    assert np.isnan(from_bfloat16(to_bfloat16(quiet))).all()


def test_nan_of_any_kind_stays_nan():
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0xFF80FFFF], np.uint32)
    assert np.isnan(from_bfloat16(to_bfloat16(bits.view(np.float32)))).all()


def test_every_bfloat16_comes_back_as_it_was():
    bits = np.arange(1 << 16, dtype=np.uint16)
    values = from_bfloat16(bits)
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values.view(np.uint32), bits.astype(np.uint32) << 16)
    numbers = ~np.isnan(values)
    np.testing.assert_array_equal(to_bfloat16(values[numbers]), bits[numbers])
    out = np.empty(bits.shape, np.float32)
    assert from_bfloat16(bits, out) is out
    np.testing.assert_array_equal(out.view(np.uint32), values.view(np.uint32))


def test_layout_does_not_matter():
    values = np.random.default_rng(2).normal(size=(6, 8)).astype(np.float32)
    np.testing.assert_array_equal(to_bfloat16(values.T), to_bfloat16(values).T)
