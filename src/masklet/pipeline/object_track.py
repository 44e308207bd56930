"""One object through a video: its prompts, what is remembered of it, and the step that finds it in a frame.

In: encoded frames and prompts. Out: `FrameMemory`, one per frame: the mask, its scores, and what later frames
look at. Where that is kept is for the caller: `video` and `tracker` differ in nothing else. Knows nothing
about files, nor about where frames come from.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from masklet.pipeline.memory import FrameMemory, MemoryPolicy, Selection, from_bfloat16, to_bfloat16
from masklet.pipeline.model import Model
from masklet.pipeline.postprocess import fill_holes
from masklet.pipeline.preprocess import low_res_of_mask
from masklet.pipeline.prompts import PADDING_LABEL, stability
from masklet.types import Candidates, FrameFeatures, Prompts, Remembered

ABSENT_LOGIT = -1024.0  # of every pixel when the object is not there
FED_BACK_LIMIT = 32.0  # bound of earlier logits that become a mask prompt
PRESENT_SCORE = 10.0  # of a mask prompt that is not empty, and its negative of an empty one
OBJECTS_AT_ONCE = 4  # bounds memory: keys of one object at full memory take 30 MB in each of several copies


@dataclass(frozen=True)
class Moment:
    """A frame as tracking meets it. `num_frames` None: unknown, a stream."""

    index: int
    features: FrameFeatures
    num_frames: int | None
    reverse: bool = False


@dataclass(eq=False)
class ObjectTrack:
    """The state of one object.

    `points` and `masks` say where it was prompted. `conditioning` and `tracked` are final memories by frame.
    Prompts since the last pass lie in `pending`: their masks are shown at once, and become memories when
    tracking goes on (`settle`), in the dictionary that they belong to. `directions` says of each frame that
    was tracked whether that was in reverse, `forgotten` which were dropped since.
    """

    object_id: int
    policy: MemoryPolicy
    conditioning: MutableMapping[int, FrameMemory]
    tracked: MutableMapping[int, FrameMemory]
    fill_hole_area: float
    points: dict[int, Prompts] = field(default_factory=dict)
    masks: set[int] = field(default_factory=set)
    directions: dict[int, bool] = field(default_factory=dict)
    forgotten: set[int] = field(default_factory=set)
    pending_conditioning: dict[int, FrameMemory] = field(default_factory=dict)
    pending_tracked: dict[int, FrameMemory] = field(default_factory=dict)

    def recall(self, frame: int) -> FrameMemory | None:
        """What is final about a frame."""
        return self.conditioning.get(frame) or self.tracked.get(frame)

    def pending(self, conditioning: bool) -> dict[int, FrameMemory]:
        """Prompts that are not yet final, those that condition or those that don't."""
        return self.pending_conditioning if conditioning else self.pending_tracked

    # ---------------------------------------------------------------------------------------------- prompted

    def prompt_points(
        self, model: Model, moment: Moment, points: Prompts, *, conditions: bool
    ) -> FrameMemory:
        """Points, the padding point included, on a frame: new ones where it was not tracked, or where
        nothing conditions the object any more; else a correction, which looks at memories.

        An earlier mask of the frame is fed back. The result is pending.
        """
        earlier = self.pending(conditions).get(moment.index) or self.recall(moment.index)
        mask = None
        if earlier is not None:
            mask = np.clip(earlier.logits, -FED_BACK_LIMIT, FED_BACK_LIMIT)[None]
        embedding = None
        if moment.index in self.directions and self.conditioning:
            moment = replace(moment, reverse=self.directions[moment.index])
            embedding = model.attend(moment.features, _remembered(model, [self], [self._select(moment)]))
        prompts = replace(points, mask=mask)
        candidates = model.decode(moment.features.image, prompts, embedding)
        made = self._filled(self._kept(model, candidates, points.coords.shape[1] - 1))
        self.masks.discard(moment.index)
        self.points[moment.index] = points
        self.pending(conditions)[moment.index] = made
        return made

    def prompt_mask(self, model: Model, moment: Moment, mask: np.ndarray, *, conditions: bool) -> FrameMemory:
        """A mask (1, 1, S, S) of zeros and ones as the object's mask on a frame. The result is pending."""
        decoding = replace(_no_points(1), mask=model.shrink_mask(mask))
        candidates = model.decode(moment.features.image, decoding, moment.features.stride16)
        score = np.full((1, 1), PRESENT_SCORE if mask.any() else -PRESENT_SCORE, np.float32)

        # The pointer needs both: the mask in it, and the decoder's own belief that something is there.
        there = np.minimum(score, candidates.object_score)
        pointer = model.point(candidates.tokens[:, 0], there)[0]
        logits = low_res_of_mask(mask)
        scores = float(score[0, 0]), 1.0, float(stability(logits[0]))
        made = self._filled(FrameMemory(logits, pointer, None, *scores))
        self.points.pop(moment.index, None)
        self.masks.add(moment.index)
        self.pending(conditions)[moment.index] = made
        return made

    def settle(self, model: Model, features: Callable[[int], FrameFeatures], *, clear_around: bool) -> None:
        """Turn pending prompts into memories; `features` encodes a frame. With `clear_around`, what was
        tracked around each of them is forgotten."""
        for conditions in (False, True):
            waiting = self.pending(conditions)
            for frame, made in list(waiting.items()):
                made = replace(made, memory=_memory(model, features(frame), [made], binary=True)[0])
                (self.conditioning if conditions else self.tracked)[frame] = made
                if clear_around:
                    self.clear_around(frame)
                del waiting[frame]
        for frame in [frame for frame in self.conditioning if frame in self.tracked]:
            del self.tracked[frame]

    def clear_around(self, frame: int) -> None:
        """Forget what was tracked within seven memories of a prompted frame: it may show an outdated
        object."""
        distance = 7 * self.policy.stride
        for index in [index for index in self.tracked if 0 < abs(index - frame) <= distance]:
            del self.tracked[index]

    def remember(self, frame: int, made: FrameMemory) -> None:
        """Keep what was tracked in a frame, if the policy agrees; what an earlier pass kept there goes."""
        if self.policy.commit(frame, made):
            self.tracked[frame] = made
        elif frame in self.tracked:
            del self.tracked[frame]
        self.forgotten.discard(frame)

    def forget(self, frame: int, reverse: bool) -> None:
        """Drop what neither this frame, which may be corrected, nor one behind it can look at."""
        reach = self.policy.reach()
        if reach is None:
            return
        sign = -1 if reverse else 1
        for index in [index for index in self.tracked if (frame - index) * sign > reach]:
            del self.tracked[index]
            self.forgotten.add(index)

    def forgotten_before(self, start: int, reverse: bool) -> int | None:
        """A frame that was forgotten and that a pass from `start` would look at."""
        reach = self.policy.reach() or 0
        near = range(start + 1, start + reach + 1) if reverse else range(start - reach, start)
        return next((index for index in near if index in self.forgotten), None)

    def forgotten_for(self, frame: int) -> int | None:
        """A frame that was forgotten and that a correction of this one would look at."""
        if frame in self.forgotten:
            return frame
        reverse = self.directions.get(frame)
        return None if reverse is None else self.forgotten_before(frame, reverse)

    def unprompt(self, frame: int) -> None:
        """Take the prompts of a frame back; what they made stays as an ordinary memory."""
        self.masks.discard(frame)
        for prompts in (self.points, self.pending_conditioning, self.pending_tracked):
            prompts.pop(frame, None)
        if frame in self.conditioning:
            self.tracked[frame] = self.conditioning[frame]
            del self.conditioning[frame]
            self.directions.pop(frame, None)

    # ----------------------------------------------------------------------------------------------- tracked

    def step(self, model: Model, moment: Moment) -> FrameMemory:
        """Find the object in a frame without a prompt."""
        return step_together(model, [self], moment)[0]

    def _select(self, moment: Moment) -> Selection:
        return self.policy.select(
            moment.index,
            self.conditioning,
            self.tracked,
            num_frames=moment.num_frames,
            reverse=moment.reverse,
        )

    def _kept(self, model: Model, candidates: Candidates, points: int) -> FrameMemory:
        """The chosen candidate of one object, without its memory; holes are not filled yet."""
        choice = self.policy.choose(candidates, points)
        logits, score = candidates.logits[0, choice.mask][None], candidates.object_score
        if score[0, 0] <= 0:
            logits = np.full_like(logits, ABSENT_LOGIT)
        return FrameMemory(
            logits,
            model.point(candidates.tokens[:, choice.token], score)[0],
            None,
            float(score[0, 0]),
            float(candidates.iou[0, choice.mask]),
            float(stability(logits[0])),
        )

    def _filled(self, made: FrameMemory) -> FrameMemory:
        return replace(made, logits=fill_holes(made.logits, self.fill_hole_area))


def step_together(model: Model, tracks: Sequence[ObjectTrack], moment: Moment) -> list[FrameMemory]:
    """`ObjectTrack.step` of several objects: those that remember equally much are computed in one go."""
    selections = [track._select(moment) for track in tracks]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, selection in enumerate(selections):
        groups.setdefault((len(selection.memories), len(selection.pointers)), []).append(index)

    made: dict[int, FrameMemory] = {}
    for members in groups.values():
        for start in range(0, len(members), OBJECTS_AT_ONCE):
            some = members[start : start + OBJECTS_AT_ONCE]
            chosen = [tracks[index] for index in some]
            remembered = _remembered(model, chosen, [selections[index] for index in some])
            made.update(zip(some, _step(model, chosen, moment, remembered), strict=True))
    return [made[index] for index in range(len(tracks))]


def _step(
    model: Model, tracks: Sequence[ObjectTrack], moment: Moment, remembered: Remembered
) -> list[FrameMemory]:
    """Look at the memories, decode, make the new memories: B objects."""
    embedding = model.attend(moment.features, remembered)
    candidates = model.decode(moment.features.image, _no_points(len(tracks)), embedding)
    kept = [track._kept(model, _only(candidates, index), points=0) for index, track in enumerate(tracks)]
    memories = _memory(model, moment.features, kept, binary=False)
    return [
        replace(track._filled(made), memory=memory)
        for track, made, memory in zip(tracks, kept, memories, strict=True)
    ]


def _remembered(model: Model, tracks: Sequence[ObjectTrack], selections: Sequence[Selection]) -> Remembered:
    """What each object's selection names, as arrays."""
    memories, pointers = [], []
    for track, selection in zip(tracks, selections, strict=True):
        named = {frame for frame, _ in (*selection.memories, *selection.pointers)}
        found = {
            frame: (track.conditioning if frame in track.conditioning else track.tracked)[frame]
            for frame in named
        }
        memories.append([found[frame].memory for frame, _ in selection.memories])
        pointers.append([found[frame].pointer for frame, _ in selection.pointers])
    bits = np.array(memories, np.uint16)
    return Remembered(
        from_bfloat16(bits),
        np.array([[slot for _, slot in selection.memories] for selection in selections], np.int64),
        np.array(pointers, np.float32).reshape(*bits.shape[:1], -1, model.config.d_model),
        np.array([[distance for _, distance in selection.pointers] for selection in selections], np.float32),
    )


def _memory(
    model: Model, features: FrameFeatures, made: Sequence[FrameMemory], *, binary: bool
) -> np.ndarray:
    """Memories (B, T, M) as bfloat16 of B masks of one frame."""
    logits = np.stack([memory.logits for memory in made])
    score = np.array([[memory.object_score] for memory in made], np.float32)
    return to_bfloat16(model.encode_memory(features, logits, score, binary=binary))


def _no_points(batch: int) -> Prompts:
    """What stands for "no prompt" of B objects: a padding point, and the one that closes every list."""
    return Prompts(np.zeros((batch, 2, 2), np.float32), np.full((batch, 2), PADDING_LABEL, np.int64), None)


def _only(candidates: Candidates, index: int) -> Candidates:
    """The candidates of one object."""
    one = slice(index, index + 1)
    return Candidates(
        candidates.logits[one], candidates.iou[one], candidates.object_score[one], candidates.tokens[one]
    )
