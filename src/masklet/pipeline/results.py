"""What a caller gets of a tracked frame: masks of the frame's own size, boxes, scores, and whether objects
are lost.

In: what was made of each object in a frame. Out: `FrameResult`. Knows nothing about networks or memories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from masklet.errors import InputError
from masklet.io.masks import mask_to_box_xyxy
from masklet.pipeline.memory import FrameMemory
from masklet.pipeline.postprocess import resize_and_threshold, resize_logits
from masklet.types import FrameResult, ObjectState, TrackedObject

LOST_AFTER = 30  # frames
SUPPRESSED_LOGIT = -10.0  # upper bound of an object's logits where another one is stronger


class Sightings:
    """Tells, frame by frame, which objects are tracked, occluded, lost and found again."""

    def __init__(self, lost_after: int = LOST_AFTER) -> None:
        """An object is lost when its score was not positive for `lost_after` frames in a row."""
        if not isinstance(lost_after, int) or lost_after < 1:
            raise InputError(f"lost_after is {lost_after!r}; give a number of frames, 1 or more.")
        self._lost_after = lost_after
        self._absent: dict[int, int] = {}  # object -> frames in a row without it

    def state(self, object_id: int, object_score: float) -> ObjectState:
        """The state of an object in the next frame, in which it has this score."""
        absent = self._absent.get(object_id, 0)
        if object_score <= 0:
            self._absent[object_id] = absent + 1
            return "lost" if absent + 1 >= self._lost_after else "occluded"
        self._absent[object_id] = 0
        return "found" if absent >= self._lost_after else "tracked"

    def drop(self, object_id: int) -> None:
        """Forget an object."""
        self._absent.pop(object_id, None)

    def copy(self) -> Sightings:
        """An independent copy."""
        twin = Sightings(self._lost_after)
        twin._absent = dict(self._absent)
        return twin


def frame_result(
    index: int,
    time: float | None,
    size_hw: tuple[int, int],
    made: Mapping[int, FrameMemory],
    sightings: Sightings,
    *,
    non_overlap_masks: bool,
) -> FrameResult:
    """The result of a frame; `made` by object, in the order of the result."""
    if not made:
        return FrameResult(index, time, ())
    low_res = np.concatenate([memory.logits for memory in made.values()])  # O h w
    if non_overlap_masks and len(made) > 1:
        masks = without_overlap(resize_logits(low_res, size_hw)) > 0
    else:
        masks = resize_and_threshold(low_res, size_hw)
    objects = []
    for (object_id, memory), mask in zip(made.items(), masks, strict=True):
        area = int(np.count_nonzero(mask))
        objects.append(
            TrackedObject(
                object_id=object_id,
                mask=mask,
                box_xyxy=mask_to_box_xyxy(mask) if area else None,
                area=area,
                predicted_iou=memory.predicted_iou,
                object_score=memory.object_score,
                stability=memory.stability,
                state=sightings.state(object_id, memory.object_score),
            )
        )
    return FrameResult(index, time, tuple(objects))


def video_logits(
    low_res: Sequence[np.ndarray], size_hw: tuple[int, int], *, non_overlap_masks: bool
) -> np.ndarray:
    """Logits (O, 1, H, W) at the video's size of O masks (1, h, w)."""
    logits = resize_logits(np.stack(low_res), size_hw)
    return without_overlap(logits) if non_overlap_masks else logits


def without_overlap(logits: np.ndarray) -> np.ndarray:
    """Logits (O, ..., H, W) in which at each pixel only the strongest object may be positive (the first of
    equals)."""
    if len(logits) == 1:
        return logits
    strongest = logits.argmax(axis=0)
    mine = strongest == np.arange(len(logits)).reshape(-1, *(1,) * (logits.ndim - 1))
    return np.where(mine, logits, np.minimum(logits, np.float32(SUPPRESSED_LOGIT)))
