"""The sessions with a video predictor that parity covers, as data, and the one way to play them. numpy only.

In: a predictor with the method names of the reference's `SAM2VideoPredictor`, its own or ours. Out:
everything that it yields or returns, in order. Knows nothing about either of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from masklet.testing import Clip, synthetic_clip

JPEG_QUALITY = 92


# ------------------------------------------------------------------------------------------------------ clips


@dataclass(frozen=True)
class Shots:
    """A clip put together from synthetic ones: (seed, frames) each, with a cut between. Objects and features
    change at a cut, so that memories, pointers and scores of one clip differ."""

    size_hw: tuple[int, int]
    shots: tuple[tuple[int, int], ...]

    @property
    def num_frames(self) -> int:
        return sum(frames for _, frames in self.shots)


@cache
def clip(shots: Shots) -> Clip:
    """The frames and masks of all shots. Shape k of one shot has nothing to do with shape k of the next."""
    parts = [synthetic_clip(seed, frames, shots.size_hw) for seed, frames in shots.shots]
    return Clip(np.concatenate([p.frames for p in parts]), np.concatenate([p.masks for p in parts]))


def write_frames(shots: Shots, folder: Path, lossless: bool = False) -> Path:
    """The clip as a folder of JPEG files, named as the reference wants them. With `lossless`, PNG files under
    the same names: it goes by names, Pillow by contents."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for index, frame in enumerate(clip(shots).frames):
        form = {"format": "PNG"} if lossless else {"format": "JPEG", "quality": JPEG_QUALITY}
        Image.fromarray(frame).save(folder / f"{index:05d}.jpg", **form)
    return folder


# ------------------------------------------------------------------------------------------------------ steps

Place = int | tuple[float, float]  # a shape's innermost pixel, or (x, y) in pixels of the clip


@dataclass(frozen=True)
class Prompt:
    """`add_new_points_or_box`: positive points `on`, negative points `off`, a `box` around a shape. `more`
    keeps the points that are there; `relative` gives coordinates from 0 to 1."""

    frame: int
    obj: int
    on: tuple[Place, ...] = ()
    off: tuple[Place, ...] = ()
    box: int | None = None
    more: bool = False
    relative: bool = False


@dataclass(frozen=True)
class MaskPrompt:
    """`add_new_mask` with the visible part of a shape; `shape` None gives an empty mask."""

    frame: int
    obj: int
    shape: int | None


@dataclass(frozen=True)
class Propagate:
    """`propagate_in_video`. A consumer stops after `take` frames."""

    start: int | None = None
    count: int | None = None
    reverse: bool = False
    take: int | None = None


@dataclass(frozen=True)
class ClearPrompts:
    """`clear_all_prompts_in_frame`."""

    frame: int
    obj: int


@dataclass(frozen=True)
class Remove:
    """`remove_object`."""

    obj: int


@dataclass(frozen=True)
class Reset:
    """`reset_state`."""


Step = Prompt | MaskPrompt | Propagate | ClearPrompts | Remove | Reset


@dataclass(frozen=True)
class Scenario:
    """One session: a clip, the predictor's settings, and what is done in order.

    `settings` are arguments of the predictor, `policy` those of its rules: `max_cond_frames`, `stride`.
    `forced` names the frames that looked at memories and whose whole state is kept, to be compared alone:
    (step, frame, object).
    """

    name: str
    shots: Shots
    steps: tuple[Step, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, int] = field(default_factory=dict)
    forced: tuple[tuple[int, int, int], ...] = ()

    @property
    def clip(self) -> Clip:
        return clip(self.shots)


@dataclass(frozen=True, eq=False)
class Event:
    """What one call or one turn of a propagation gave: logits (N, 1, H, W) of the objects in this order."""

    step: int
    frame: int
    object_ids: tuple[int, ...]
    logits: np.ndarray


# ------------------------------------------------------------------------------------------------------- play


def play(scenario: Scenario, predictor: Any, state: Any, progress: Any = None) -> Iterator[Event]:
    """Do the steps with either predictor. `progress` is told the number of each step before it runs."""
    for number, step in enumerate(scenario.steps):
        if progress is not None:
            progress(number)
        for frame, object_ids, logits in _do(step, scenario.clip, predictor, state):
            yield Event(number, int(frame), tuple(object_ids), np.asarray(logits).astype(np.float32))


def _do(step: Step, shown: Clip, predictor: Any, state: Any) -> Iterator[tuple[int, list[int], Any]]:
    if isinstance(step, Prompt):
        yield predictor.add_new_points_or_box(state, **prompt_arguments(step, shown))
    elif isinstance(step, MaskPrompt):
        masks = shown.masks[step.frame]
        mask = np.zeros_like(masks[0]) if step.shape is None else masks[step.shape]
        yield predictor.add_new_mask(state, frame_idx=step.frame, obj_id=step.obj, mask=mask)
    elif isinstance(step, Propagate):
        frames = predictor.propagate_in_video(
            state, start_frame_idx=step.start, max_frame_num_to_track=step.count, reverse=step.reverse
        )
        for taken, result in enumerate(frames, 1):
            yield result
            if taken == step.take:
                frames.close()
                break
    elif isinstance(step, ClearPrompts):
        yield predictor.clear_all_prompts_in_frame(state, frame_idx=step.frame, obj_id=step.obj)
    elif isinstance(step, Remove):
        object_ids, updated = predictor.remove_object(state, obj_id=step.obj)
        # The reference goes through a set: the order of frames has no meaning.
        for frame, logits in sorted(updated, key=lambda item: item[0]):
            yield frame, object_ids, logits
    else:
        predictor.reset_state(state)


def prompt_arguments(step: Prompt, shown: Clip) -> dict[str, Any]:
    """The arguments of `add_new_points_or_box`."""
    arguments: dict[str, Any] = {
        "frame_idx": step.frame,
        "obj_id": step.obj,
        "clear_old_points": not step.more,
        "normalize_coords": not step.relative,
    }
    height, width = shown.frames.shape[1:3]
    unit = np.array([width, height] if step.relative else [1, 1], np.float32)
    places = [*step.on, *step.off]
    if places:
        points = [shown.point_xy(step.frame, at) if isinstance(at, int) else at for at in places]
        arguments["points"] = np.array(points, np.float32) / unit
        arguments["labels"] = np.array([1] * len(step.on) + [0] * len(step.off), np.int32)
    if step.box is not None:
        arguments["box"] = shown.box_xyxy(step.frame, step.box) / np.tile(unit, 2)
    return arguments


# -------------------------------------------------------------------------------------------------- scenarios

_SHOTS = Shots((120, 160), ((1, 10), (2, 8), (3, 8)))  # cuts before frames 10 and 18
_SHORT = Shots((360, 480), ((4, 2), (5, 2)))
_LONG = Shots((360, 480), ((4, 4), (5, 3), (6, 3)))

# Policy, at a small image size.
POLICY = (
    # Two objects and a correction; by default it is lost when a pass goes over its frame again.
    Scenario(
        "correction",
        _SHOTS,
        (
            Prompt(0, 1, on=(0,)),
            Prompt(0, 2, box=1),
            Propagate(),
            Prompt(12, 1, on=(2,), off=(0,)),
            Prompt(12, 1, on=((40.0, 30.0),), more=True),
            Propagate(12, count=6),
            Propagate(12, count=7, reverse=True),
        ),
        forced=((2, 5, 1), (2, 20, 2), (3, 12, 1), (6, 8, 2)),
    ),
    # A correction that conditions, by points and by mask; frames look at conditioning frames ahead of them.
    Scenario(
        "conditioning_correction",
        _SHOTS,
        (
            MaskPrompt(3, 5, 0),
            Prompt(3, 9, on=(1, 2)),
            Propagate(count=14),
            Prompt(11, 9, on=(0,), off=(1,)),
            MaskPrompt(14, 5, 1),
            Propagate(8, count=10),
            Propagate(12, reverse=True),
        ),
        settings={"add_all_frames_to_correct_as_cond": True},
        forced=((5, 9, 9), (6, 4, 5)),
    ),
    # Objects come late, get prompts on several frames, lose one, and go; a pass that the consumer leaves
    # early.
    Scenario(
        "coming_and_going",
        _SHOTS,
        (
            Prompt(2, 1, on=(0,)),
            Propagate(count=8),
            Prompt(6, 4, box=1, on=(1,), off=(2,)),
            MaskPrompt(6, 7, 3),
            Prompt(9, 7, on=(3,), relative=True),
            Propagate(4, count=9),  # nothing but what lies ahead for the new ones
            Propagate(6, reverse=True),
            ClearPrompts(9, 7),
            Propagate(8, count=5, take=3),
            Remove(4),
            Prompt(20, 1, on=(1,)),
            Propagate(19, count=4),
        ),
        forced=((5, 12, 7),),
    ),
    # Masks that may not overlap, an empty mask prompt, and a new start on the same state.
    Scenario(
        "overlap_and_reset",
        _SHOTS,
        (
            Prompt(0, 3, on=(0,)),
            Prompt(0, 1, box=3),
            MaskPrompt(0, 2, 1),
            MaskPrompt(0, 8, None),
            Propagate(count=5),
            Reset(),
            Prompt(22, 6, on=(0, 1), off=(3,)),
            MaskPrompt(22, 2, 1),
            Propagate(reverse=True, count=6),
        ),
        settings={"non_overlap_masks": True},
    ),
    # Other rules of memory, and forgetting around prompts.
    Scenario(
        "other_rules",
        _SHOTS,
        (
            Prompt(0, 1, on=(0,)),
            Prompt(9, 1, on=(1,)),
            Prompt(21, 1, box=2),
            Propagate(),
            Prompt(13, 1, on=(0,), off=(2,)),
            Propagate(11, count=4),
            Propagate(16, count=4, reverse=True),
        ),
        settings={"add_all_frames_to_correct_as_cond": True, "clear_non_cond_mem_around_input": True},
        policy={"max_cond_frames": 2, "stride": 2},
    ),
)

# Full size. The short one is for continuous integration.
SHORT = Scenario("short", _SHORT, (Prompt(0, 1, on=(0,)), Propagate()), forced=((1, 3, 1),))
FOUR_FRAMES = Scenario(
    "four_frames", _SHORT, (Prompt(0, 1, on=(0,)), Prompt(0, 2, box=1), Propagate()), forced=((2, 3, 2),)
)
TEN_FRAMES = Scenario(
    "ten_frames",
    _LONG,
    (Prompt(0, 1, on=(0,)), Prompt(0, 2, box=1), Propagate()),
    forced=((2, 2, 1), (2, 9, 2)),
)

# A small one for the default tests, which have no reference at hand (tools/make_golden_video.py).
GOLDEN = Scenario(
    "golden",
    Shots((72, 96), ((1, 5), (2, 4))),
    (
        Prompt(1, 1, on=(0,)),
        Prompt(1, 4, box=1),
        Propagate(),
        Prompt(5, 1, on=(1,), off=(2,)),
        MaskPrompt(6, 2, 3),
        Propagate(4),
        Propagate(5, reverse=True),
    ),
    settings={"add_all_frames_to_correct_as_cond": True},
)
