"""Video tracking against the reference: whole sessions run on their own outputs, and single steps with the
reference's state fed in.

Policy is compared at a small image size, where a session of hundreds of steps takes seconds; arithmetic at
the published size. The bars (docs/decisions.md): a step by itself, cosine >= 0.99999; free-running, logits
cosine >= 0.9999 and mask IoU >= 0.995 on every frame that is yielded; the first memory of an object, cosine
>= 0.99999.
"""

from __future__ import annotations

import tempfile
import warnings
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import video_cases
import video_compare
from expected_video import ExpectedVideo
from measures import cosine, relative
from recordings import Recording
from video_cases import FOUR_FRAMES, POLICY, SHORT, TEN_FRAMES, Scenario
from video_compare import values

import masklet
from masklet.families.sam2 import IMAGE_STAGES, VIDEO_STAGES
from masklet.io.image import read_image
from masklet.pipeline.memory import ReferencePolicy, from_bfloat16, to_bfloat16
from masklet.pipeline.preprocess import frame_input
from masklet.types import Prompts, Remembered

STEP_COSINE = 0.99999
# One step in float32 differs by this part of the largest value; a wrong order of memories or time by more.
STEP_RELATIVE = 2e-4
FIRST_MEMORY_COSINE = 0.99999
ROUNDED_ALIKE = 0.995  # part of a memory's bfloat16 values; the others are one step apart

SCORES = ("all_ious", "object_score")  # compared by their difference: they have a scale of their own

SMALL, FULL = 256, 1024
TINY = ("sam2.1_hiera_tiny", "sam2_hiera_tiny")
SESSIONS = [
    *[(variant, SMALL, scenario) for variant in TINY for scenario in POLICY],
    (TINY[0], FULL, SHORT),
    *[(variant, FULL, TEN_FRAMES) for variant in TINY],
    *[
        (f"{version}_hiera_{size}", FULL, scenario)
        for size, scenario in (("base_plus", TEN_FRAMES), ("small", FOUR_FRAMES), ("large", FOUR_FRAMES))
        for version in ("sam2.1", "sam2")
    ],
]


class Pair:
    """One variant at one image size: what the reference answers, and our model of the same file."""

    def __init__(self, variant: str, image_size: int) -> None:
        self.expected = ExpectedVideo(variant, image_size)
        with tempfile.TemporaryDirectory() as folder:
            path = reference.save_pt(self.expected.model, Path(folder) / f"{variant}.pt")
            self.model = masklet.load(path, image_size=image_size)
            for stage in (*IMAGE_STAGES, *VIDEO_STAGES):  # all weights are read before the file goes
                self.model.session(stage)


# Of one variant at a time: sessions stand in this order.
pair_of = lru_cache(maxsize=1)(Pair)


class Session:
    """A scenario as the reference plays it and as we do."""

    def __init__(self, variant: str, image_size: int, scenario: Scenario) -> None:
        self.pair, self.scenario = pair_of(variant, image_size), scenario
        self.model = self.pair.model
        self.frames = self.pair.expected.frames(scenario)
        self.theirs = self.pair.expected.recording(scenario)

    @cached_property
    def ours(self) -> Recording:
        """Ours in the same form, without decisions."""
        predictor = masklet.VideoPredictor(
            self.model,
            fill_hole_area=0,
            **self.scenario.settings,
            memory_policy=partial(ReferencePolicy, **self.scenario.policy),
        )
        with predictor.init_state(str(self.frames)) as state:
            played = Recording(state.num_frames)
            for event in video_cases.play(self.scenario, predictor, state):
                played.events.append(event)
                played.kept.append(self._kept(state.tracks, event.frame))
        return played

    def raster(self, tokens: np.ndarray) -> np.ndarray:
        """(T, C) in our order as (C, h, w)."""
        order = self.model.orders[2]
        grid = np.empty_like(tokens)
        grid[order.slots] = tokens
        return grid.T.reshape(-1, *order.grid_hw)

    def _kept(self, tracks: dict, frame: int) -> dict[int, dict[str, np.ndarray]]:
        kept = {}
        for obj, track in tracks.items():
            made = track.pending(True).get(frame) or track.pending(False).get(frame) or track.recall(frame)
            if made is not None:
                kept[obj] = {
                    "low_res": made.logits[0],
                    "pointer": made.pointer,
                    "score": np.float32(made.object_score),
                }
                if made.memory is not None:  # in raster order
                    kept[obj]["memory"] = made.memory.T.reshape(-1, *self.model.orders[2].grid_hw)
        return kept


def _parameter(variant: str, image_size: int, scenario: Scenario) -> Any:
    marks = [pytest.mark.full] if image_size == FULL and scenario is not SHORT else []
    return pytest.param((variant, image_size, scenario), marks=marks, id=f"{variant}-{scenario.name}")


@pytest.fixture(scope="module", params=[_parameter(*session) for session in SESSIONS])
def session(request):
    return Session(*request.param)


# ----------------------------------------------------------------------------------------------- free-running


def test_every_yielded_mask(session):
    report = video_compare.compare_events(session.scenario, session.theirs, session.ours.events)
    print(report)
    if report.flips:
        warnings.warn(str(report), stacklevel=1)
    assert not report.failures, str(report)
    assert len(report.flips) <= report.masks / 4, str(report)


def test_what_is_remembered(session):
    """The state behind the masks: for each event, each object's logits, pointer, score and memory."""
    first: set[int] = set()
    for index, (theirs, found) in enumerate(zip(session.theirs.kept, session.ours.kept, strict=True)):
        assert found.keys() == theirs.keys(), index
        for obj, wanted in theirs.items():
            got, where = found[obj], (index, obj)
            assert got.keys() == wanted.keys(), where
            if (got["score"] > 0) != (wanted["score"] > 0):
                continue  # a flip, which the masks show
            assert cosine(got["low_res"], wanted["low_res"]) >= video_compare.LOGITS_COSINE, where
            assert cosine(got["pointer"], wanted["pointer"]) >= video_compare.LOGITS_COSINE, where
            assert abs(got["score"] - wanted["score"]) <= 5e-3, where
            if "memory" in wanted:
                bar = video_compare.LOGITS_COSINE if obj in first else FIRST_MEMORY_COSINE
                assert cosine(values(got["memory"]), values(wanted["memory"])) >= bar, where
                first.add(obj)


def test_what_is_attended_to(session):
    """The policy alone, for every step that the reference took, from the frames that it had."""
    policy = ReferencePolicy(**session.scenario.policy)
    looked = [decision for decision in session.theirs.decisions if decision.memories]
    assert looked
    for decision in looked:
        selection = policy.select(
            decision.frame,
            dict.fromkeys(decision.conditioning),
            dict.fromkeys(decision.tracked),
            num_frames=session.theirs.num_frames,
            reverse=decision.reverse,
        )
        assert selection.memories == decision.memories, decision
        assert [t for t, _ in selection.pointers] == [t for t, _ in decision.pointers], decision
        if session.model.config.version == "2.1":
            times = [time for _, time in decision.pointers]
            np.testing.assert_allclose([time for _, time in selection.pointers], times, atol=1e-6)


# ------------------------------------------------------------------------------------------- the state fed in


def test_single_steps(session):
    assert session.theirs.forced.keys() == set(session.scenario.forced)
    for key, wanted in session.theirs.forced.items():
        decision = session.theirs.decision(key)
        got, mask = single_step(session, decision, wanted)
        if decision.margin >= video_compare.FLIP_MARGIN:
            assert mask == decision.mask, key
        for name, array in got.items():
            assert array.shape == wanted[name].shape, (key, name)
            if name in SCORES:
                np.testing.assert_allclose(array, wanted[name], rtol=0, atol=STEP_RELATIVE, err_msg=name)
                continue
            assert cosine(array, wanted[name]) >= STEP_COSINE, (key, name)
            assert relative(array, wanted[name]) <= STEP_RELATIVE, (key, name)
        if "memory" in got:
            alike = to_bfloat16(got["memory"]) == to_bfloat16(wanted["memory"])
            assert alike.mean() >= ROUNDED_ALIKE, key


def single_step(session, decision, given):
    """Our step from the reference's memories, and the mask that we choose."""
    model = session.model
    pixels = read_image(session.frames / f"{decision.frame:05d}.jpg")
    frame = model.encode_frame(frame_input(pixels, model.image_size), pixels.shape[:2])
    count, _, height, width = given["memories"].shape
    embedding = model.attend(
        frame,
        Remembered(
            from_bfloat16(given["memories"].reshape(1, count, -1, height * width).swapaxes(2, 3)),
            np.array([[row for _, row in decision.memories]], np.int64),
            given["pointers"][None],
            np.array([[time for _, time in decision.pointers]], np.float32),
        ),
    )
    # Every list of points ends with a padding point, which the reference adds later.
    coords, labels = given["coords"], given["labels"]
    prompts = Prompts(
        np.pad(coords, ((0, 1), (0, 0)))[None],
        np.pad(labels, (0, 1), constant_values=-1).astype(np.int64)[None],
        given["mask_input"][None, None] if "mask_input" in given else None,
    )
    candidates = model.decode(frame.image, prompts, embedding)
    choice = ReferencePolicy().choose(candidates, points=np.count_nonzero(labels >= 0))
    score = candidates.object_score
    got = {
        "conditioned": session.raster(embedding.numpy()[0]),
        "all_masks": candidates.logits[0],
        "all_ious": candidates.iou[0],
        "mask_tokens": candidates.tokens[0],
        "object_score": score[0],
        "pointer": model.point(candidates.tokens[:, choice.token], score)[0],
    }
    if "memory" in given:
        tokens = model.encode_memory(frame, given["low_res"][None, None], score, binary=False)[0]
        got["memory"] = tokens.T.reshape(-1, height, width)
    return got, choice.mask
