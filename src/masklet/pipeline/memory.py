"""What is remembered of an object, and which of it a frame looks at: policy, in plain Python.

In: frame numbers and what was remembered of them. Out: the frames whose memories and pointers are attended
to, the candidate mask that is kept, whether a frame is remembered. Knows nothing about networks or pictures.
`ReferencePolicy` does what Meta's SAM 2 does; another policy is another object with the same four methods.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from masklet.errors import InputError
from masklet.pipeline.prompts import STABILITY_THRESHOLD, stability
from masklet.types import Candidates

CONDITIONING_SLOT = 6  # row of the table of ages for conditioning frames; 0 to 5: one to six frames old
WINDOW = 6  # non-conditioning memories
MAX_POINTERS = 16  # frames, the current one included
MAX_MULTIMASK_POINTS = 1  # with more points, the single mask is asked for
QUIET_NAN = 0x7FC0  # as bfloat16


@dataclass(frozen=True, eq=False)
class FrameMemory:
    """What is kept of one object in one frame.

    `logits` (H, W) float32, a quarter of the model's input; `pointer` (C,) float32; `memory` (T, M) bfloat16
    as uint16, None while a prompt is not yet final; the rest as in `types.TrackedObject`.
    """

    logits: np.ndarray
    pointer: np.ndarray
    memory: np.ndarray | None
    object_score: float
    predicted_iou: float
    stability: float


@dataclass(frozen=True)
class Selection:
    """What a frame attends to: (frame, row in the table of ages) and (frame, distance in time, 1 the
    farthest)."""

    memories: tuple[tuple[int, int], ...]
    pointers: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Choice:
    """Which candidate mask is kept, and whose token becomes the object pointer."""

    mask: int
    token: int


class MemoryPolicy(Protocol):
    """Decides for one object. The mappings are by frame number; their values are `FrameMemory`, read when
    looked up.
    """

    @property
    def stride(self) -> int:
        """Frames between two of the older memories."""
        ...

    def select(
        self,
        frame: int,
        conditioning: Mapping[int, Any],
        tracked: Mapping[int, Any],
        *,
        num_frames: int | None,
        reverse: bool,
    ) -> Selection:
        """What `frame` attends to. `conditioning` has at least one frame, in the order in which they were
        added."""
        ...

    def choose(self, candidates: Candidates, points: int) -> Choice:
        """The mask to keep of one object's candidates; `points` is the number of its prompt's, a box has
        two."""
        ...

    def commit(self, frame: int, memory: FrameMemory) -> bool:
        """Whether a tracked frame is remembered, so that `select` may name it later."""
        ...

    def reach(self) -> int | None:
        """How many frames back tracking may look at what is not conditioning; None: at all of them."""
        ...


@dataclass(frozen=True)
class ReferencePolicy:
    """SAM 2's own rules (Ravi et al. 2024; `sam2` 1.1.0).

    `max_cond_frames` bounds the conditioning frames that are attended to, the closest ones (-1: all).
    `stride` is the distance between the older non-conditioning memories.
    """

    max_cond_frames: int = -1
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or (self.max_cond_frames != -1 and self.max_cond_frames < 2):
            raise InputError(
                f"stride is {self.stride}, max_cond_frames {self.max_cond_frames}; give 1 or more, and 2 or "
                "more or -1 for all."
            )

    def select(
        self,
        frame: int,
        conditioning: Mapping[int, Any],
        tracked: Mapping[int, Any],
        *,
        num_frames: int | None,
        reverse: bool,
    ) -> Selection:
        """All selected conditioning frames, later ones included; then the window, oldest first. A
        conditioning frame inside the window leaves its place there empty, one that was not selected fills
        it."""
        selected = self._closest(frame, list(conditioning))
        others = {*tracked, *conditioning} - set(selected)

        memories = [(index, CONDITIONING_SLOT) for index in selected]
        for age in range(WINDOW, 0, -1):
            index = self._before(frame, age, reverse)
            if index in others:
                memories.append((index, age - 1))

        count = MAX_POINTERS if num_frames is None else min(num_frames, MAX_POINTERS)
        farthest = max(count - 1, 1)
        sign = -1 if reverse else 1
        past = [(index, (frame - index) * sign) for index in selected if (frame - index) * sign >= 0]
        for distance in range(1, count):
            index = frame - distance * sign
            if index < 0 or (num_frames is not None and index >= num_frames):
                break
            if index in others:
                past.append((index, distance))
        return Selection(tuple(memories), tuple((index, distance / farthest) for index, distance in past))

    def choose(self, candidates: Candidates, points: int) -> Choice:
        """The best of three for up to one point. For more, the single mask, and where that is not stable the
        best of three, but with the single mask's pointer."""
        best = 1 + int(candidates.iou[0, 1:].argmax())
        if points <= MAX_MULTIMASK_POINTS:
            return Choice(best, best)
        stable = stability(candidates.logits[0, 0]) >= STABILITY_THRESHOLD
        return Choice(0 if stable else best, 0)

    def commit(self, frame: int, memory: FrameMemory) -> bool:
        """Every frame is remembered."""
        return True

    def reach(self) -> int | None:
        """The oldest pointer, or the oldest memory when frames are skipped."""
        return max(MAX_POINTERS - 1, 1 + self.stride * (WINDOW - 1))

    def _before(self, frame: int, age: int, reverse: bool) -> int:
        """The frame that is `age` memories before (in reverse: behind) this one."""
        sign = -1 if reverse else 1
        if age == 1:
            return frame - sign
        latest = sign * (((frame * sign - 2) // self.stride) * self.stride)
        return latest - sign * (age - 2) * self.stride

    def _closest(self, frame: int, conditioning: list[int]) -> list[int]:
        """The last one before, the first one from the frame on, then whatever is closest."""
        if self.max_cond_frames == -1 or len(conditioning) <= self.max_cond_frames:
            return conditioning
        before = [index for index in conditioning if index < frame]
        after = [index for index in conditioning if index >= frame]
        chosen = [*([max(before)] if before else []), *([min(after)] if after else [])]
        rest = sorted(
            (index for index in conditioning if index not in chosen), key=lambda index: abs(index - frame)
        )
        return chosen + rest[: self.max_cond_frames - len(chosen)]


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to bfloat16, ties to even, as uint16."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(QUIET_NAN), rounded)  # of a NaN the sum may overflow


def from_bfloat16(bits: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """The float32 values of bfloat16 as uint16, exact; `out` may take them."""
    out = np.empty(bits.shape, np.float32) if out is None else out
    np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32)
    return out
