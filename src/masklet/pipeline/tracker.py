"""Objects tracked through a stream: a camera, a socket, a generator, without an end.

In: frames one at a time, and prompts on the frame pushed last. Out: a frozen result for each. What can no
longer be looked at is forgotten, so memory does not grow. The same step as `VideoPredictor`, with its numbers
where the frames and prompts are the same and the clip has 16 frames or more, or its length is known
(`num_frames`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from masklet.errors import InputError
from masklet.io.image import read_image
from masklet.pipeline.memory import FrameMemory, MemoryPolicy, ReferencePolicy
from masklet.pipeline.model import Model
from masklet.pipeline.object_track import Moment, ObjectTrack, step_together
from masklet.pipeline.postprocess import FILL_HOLE_AREA
from masklet.pipeline.preprocess import frame_input
from masklet.pipeline.prompts import is_whole, more_points, object_mask, object_points
from masklet.pipeline.results import LOST_AFTER, Sightings, frame_result
from masklet.types import FrameFeatures, FrameResult


class Tracker:
    """Push frames, prompt on the last one, get results.

        tracker = masklet.Tracker(model)
        for frame in camera:
            result = tracker.push(frame)
            if not result.objects:
                result = tracker.add_points_or_box(1, points=[[320, 240]], labels=[1])

    A prompt on a frame in which the object was already tracked corrects it, and conditions what follows. One
    tracker holds one stream and belongs to one thread; any number of them may share a `Model`.
    """

    def __init__(
        self,
        model: Model,
        *,
        lost_after: int = LOST_AFTER,
        num_frames: int | None = None,
        fill_hole_area: float = FILL_HOLE_AREA,
        non_overlap_masks: bool = False,
        memory_policy: Callable[[], MemoryPolicy] = ReferencePolicy,
    ) -> None:
        """`lost_after`: frames without an object until it counts as lost. `num_frames`: the length of the
        clip where it is known; it matters for clips under 16 frames only. The rest as in `VideoPredictor`."""
        if num_frames is not None and (not is_whole(num_frames) or num_frames < 1):
            raise InputError(f"num_frames is {num_frames!r}; give 1 or more, or None for an open end.")
        model.check_tracks()
        self.model = model
        self.num_frames = num_frames
        self.fill_hole_area = fill_hole_area
        self.non_overlap_masks = non_overlap_masks
        self.memory_policy = memory_policy
        self._tracks: dict[int, ObjectTrack] = {}
        self._sightings = Sightings(lost_after)
        self._before = self._sightings.copy()  # as it was before the last frame
        self._made: dict[int, FrameMemory] = {}  # of the last frame
        self._features: FrameFeatures | None = None
        self._index = -1
        self._time: float | None = None

    @property
    def object_ids(self) -> list[int]:
        """The objects, in the order in which they were added."""
        return list(self._tracks)

    def push(self, frame: Any, time: float | None = None) -> FrameResult:
        """Track all objects into the next frame: an array (H, W, 3) uint8 RGB, a PIL image or a path.

        `time` in seconds is passed on. Raises InputError for a frame of another size, or past `num_frames`;
        the tracker is then as it was before.
        """
        pixels = read_image(frame)
        size_hw = (pixels.shape[0], pixels.shape[1])
        last = self._features
        if last is not None and last.image.size_hw != size_hw:
            height, width = last.image.size_hw
            raise InputError(
                f"The frame is {size_hw[1]} wide and {size_hw[0]} high, the ones before were {width} and "
                f"{height}; resize it, or begin a new Tracker."
            )
        if self.num_frames is not None and self._index + 1 >= self.num_frames:
            raise InputError(
                f"All {self.num_frames} frames were pushed; leave num_frames out for an open end."
            )
        features = self.model.encode_frame(frame_input(pixels, self.model.image_size), size_hw)
        if last is not None:
            for track in self._tracks.values():
                track.settle(self.model, lambda index: last, clear_around=False)

        moment = Moment(self._index + 1, features, self.num_frames)
        tracks = list(self._tracks.values())
        made = step_together(self.model, tracks, moment) if tracks else []
        self._made = {}
        for track, memory in zip(tracks, made, strict=True):
            track.remember(moment.index, memory)
            track.forget(moment.index, reverse=False)
            track.forgotten.clear()
            track.points.clear()
            track.masks.clear()
            track.directions = {moment.index: False}  # prompts concern the last frame alone
            self._made[track.object_id] = memory
        self._features, self._index, self._time = features, moment.index, time
        self._before = self._sightings.copy()
        return self._result(features)

    def add_points_or_box(
        self,
        object_id: int,
        points: Any = None,
        labels: Any = None,
        box: Any = None,
        *,
        clear_old_points: bool = True,
    ) -> FrameResult:
        """Prompt an object, which may be new, on the frame pushed last; returns that frame's new result.

        `points` (N, 2) as (x, y) pixels of the frame with `labels` (N): 1 on the object, 0 off it; `box` (4)
        xyxy. They replace the frame's earlier prompts of the object unless `clear_old_points` is False.
        Raises InputError.
        """
        moment = self._moment()
        prompts = object_points(
            points,
            labels,
            box,
            clear_old_points=clear_old_points,
            size_hw=moment.features.image.size_hw,
            image_size=self.model.image_size,
        )
        track = self._track(object_id)
        if not clear_old_points and moment.index in track.points:
            prompts = more_points(track.points[moment.index], prompts)
        made = track.prompt_points(self.model, moment, prompts, conditions=True)
        return self._prompted(track, made)

    def add_mask(self, object_id: int, mask: Any) -> FrameResult:
        """Give an object's mask (H, W) bool on the frame pushed last; returns that frame's new result.

        Raises InputError.
        """
        moment = self._moment()
        prompt = object_mask(mask, self.model.image_size)
        track = self._track(object_id)
        return self._prompted(track, track.prompt_mask(self.model, moment, prompt, conditions=True))

    def remove_object(self, object_id: int) -> None:
        """Forget an object. Raises InputError for one that is not there."""
        if object_id not in self.object_ids:
            raise InputError(f"There is no object {object_id!r}; there are {self.object_ids or 'none yet'}.")
        del self._tracks[object_id]
        self._made.pop(object_id, None)
        self._sightings.drop(object_id)
        self._before.drop(object_id)

    def _moment(self) -> Moment:
        if self._features is None:
            raise InputError("No frame was pushed yet; push one, then prompt on it.")
        return Moment(self._index, self._features, self.num_frames)

    def _track(self, object_id: int) -> ObjectTrack:
        if not is_whole(object_id):
            raise InputError(f"object_id is {object_id!r}; give a whole number.")
        track = self._tracks.get(int(object_id))
        return track or ObjectTrack(int(object_id), self.memory_policy(), {}, {}, self.fill_hole_area)

    def _prompted(self, track: ObjectTrack, made: FrameMemory) -> FrameResult:
        self._tracks[track.object_id] = track
        self._made[track.object_id] = made
        self._sightings = self._before.copy()
        return self._result(self._moment().features)

    def _result(self, features: FrameFeatures) -> FrameResult:
        return frame_result(
            self._index,
            self._time,
            features.image.size_hw,
            self._made,
            self._sightings,
            non_overlap_masks=self.non_overlap_masks,
        )
