"""Video tracking against the reference: whole sessions run on their own outputs, and single steps with the
reference's state fed in.

Policy is compared at a small image size, where a session of hundreds of steps takes seconds; arithmetic at the
published size. The bars (docs/decisions.md): a step by itself, cosine >= 0.99999; free-running, logits cosine >=
0.9999 and mask IoU >= 0.995 on every frame that is yielded; the first memory of an object, cosine >= 0.99999.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reference
import video_cases
import video_compare
from expected_video import ExpectedVideo
from reference_video import Recording
from video_cases import FOUR_FRAMES, POLICY, SHORT, TEN_FRAMES, Event, Scenario
from video_compare import cosine, relative, values

import masklet
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
full = pytest.mark.full
SESSIONS = [
    *[pytest.param((variant, SMALL), scenario) for variant in TINY for scenario in POLICY],
    pytest.param((TINY[0], FULL), SHORT),
    *[pytest.param((variant, FULL), TEN_FRAMES, marks=full) for variant in TINY],
    *[
        pytest.param((f"{version}_hiera_{size}", FULL), scenario, marks=full)
        for size, scenario in (("base_plus", TEN_FRAMES), ("small", FOUR_FRAMES), ("large", FOUR_FRAMES))
        for version in ("sam2.1", "sam2")
    ],
]
SESSION_IDS = [
    f"{variant}-{size}-{scenario.name}" for (variant, size), scenario in (param.values for param in SESSIONS)
]
on_every_session = pytest.mark.parametrize(("pair", "scenario"), SESSIONS, indirect=["pair"], ids=SESSION_IDS)


class Pair:
    """One variant at one image size: what the reference answers, and our model of the same file."""

    def __init__(self, variant: str, image_size: int, folder: Path) -> None:
        self.expected = ExpectedVideo(variant, image_size)
        self.path = folder / f"{variant}.pt"
        reference.save_pt(self.expected.model, self.path)
        self.model = masklet.load(self.path, image_size=image_size)
        self._played: dict[str, Recording] = {}

    def ours(self, scenario: Scenario) -> Recording:
        """The scenario as we play it, in the same form; without decisions."""
        if scenario.name not in self._played:
            predictor = masklet.VideoPredictor(
                self.model,
                fill_hole_area=0,
                **scenario.settings,
                memory_policy=partial(ReferencePolicy, **scenario.policy),
            )
            with predictor.init_state(str(self.expected.frames(scenario))) as state:
                played = Recording(state.num_frames)
                for event in video_cases.play(scenario, predictor, state):
                    played.events.append(event)
                    played.kept.append(self._kept(state, event))
            self._played[scenario.name] = played
        return self._played[scenario.name]

    def raster(self, tokens: np.ndarray) -> np.ndarray:
        """(T, C) in our order as (C, h, w)."""
        order = self.model.orders[2]
        grid = np.empty_like(tokens)
        grid[order.slots] = tokens
        return grid.T.reshape(-1, *order.grid_hw)

    def _kept(self, state: masklet.InferenceState, event: Event) -> dict[int, dict[str, np.ndarray]]:
        kept = {}
        for obj, track in state.tracks.items():
            made = (
                track.pending(True).get(event.frame)
                or track.pending(False).get(event.frame)
                or track.recall(event.frame)
            )
            if made is not None:
                kept[obj] = {
                    "low_res": made.logits[0],
                    "pointer": made.pointer,
                    "score": np.float32(made.object_score),
                }
                if made.memory is not None:  # raster order
                    kept[obj]["memory"] = made.memory.T.reshape(-1, *self.model.orders[2].grid_hw)
        return kept


@pytest.fixture(scope="module")
def pair(request, tmp_path_factory):
    pair = Pair(*request.param, tmp_path_factory.mktemp(request.param[0]))
    yield pair
    pair.path.unlink()


# ------------------------------------------------------------------------------------------------- free-running


@on_every_session
def test_every_yielded_mask(pair, scenario):
    report = video_compare.compare_events(
        scenario, pair.expected.recording(scenario), pair.ours(scenario).events
    )
    print(f"{pair.expected.variant} {scenario.name}: {report}")
    if report.flips:
        warnings.warn(f"{pair.expected.variant} {scenario.name}: {report}", stacklevel=1)
    assert not report.failures, str(report)
    assert len(report.flips) <= report.masks / 4, str(report)


@on_every_session
def test_what_is_remembered(pair, scenario):
    """The state behind the masks: for each event, each object's logits, pointer, score and memory."""
    recording, ours = pair.expected.recording(scenario), pair.ours(scenario)
    first: set[int] = set()
    for index, (theirs, found) in enumerate(zip(recording.kept, ours.kept, strict=True)):
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


@on_every_session
def test_what_is_attended_to(pair, scenario):
    """The policy alone, for every step that the reference took, from the frames that it had."""
    recording = pair.expected.recording(scenario)
    policy = ReferencePolicy(**scenario.policy)
    looked = [decision for decision in recording.decisions if decision.memories]
    assert looked
    for decision in looked:
        selection = policy.select(
            decision.frame,
            dict.fromkeys(decision.conditioning),
            dict.fromkeys(decision.tracked),
            num_frames=recording.num_frames,
            reverse=decision.reverse,
        )
        assert selection.memories == decision.memories, decision
        assert [t for t, _ in selection.pointers] == [t for t, _ in decision.pointers], decision
        if pair.model.config.version == "2.1":
            times = [time for _, time in decision.pointers]
            np.testing.assert_allclose([time for _, time in selection.pointers], times, atol=1e-6)


# --------------------------------------------------------------------------------------------- the state fed in


@on_every_session
def test_single_steps(pair, scenario):
    recording = pair.expected.recording(scenario)
    assert recording.forced.keys() == set(scenario.forced)
    for key, wanted in recording.forced.items():
        decision = recording.decision(key)
        got, mask = single_step(pair, scenario, decision, wanted)
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


def single_step(pair, scenario, decision, given):
    """Our step from the reference's memories, and the mask that we choose."""
    model = pair.model
    picture = next(pair.expected.frames(scenario).glob(f"{decision.frame:05d}.jpg"))
    pixels = read_image(picture)
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
        "conditioned": pair.raster(embedding.numpy()[0]),
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
