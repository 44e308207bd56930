"""Objects tracked through a video that can be read anywhere, with the interface of Meta's
`SAM2VideoPredictor`.

In: a video and prompts on any of its frames, before and between passes. Out: masks of all objects, frame by
frame, numpy throughout. The state is exact and stays editable; it does not grow in memory (see `state`). Each
frame: frame_input -> encode_frame -> step_together -> to the video's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from masklet.errors import Cancelled, InputError
from masklet.io.video import open_video
from masklet.pipeline.memory import FrameMemory, MemoryPolicy, ReferencePolicy
from masklet.pipeline.model import Model
from masklet.pipeline.object_track import ABSENT_LOGIT, Moment, ObjectTrack, step_together
from masklet.pipeline.postprocess import FILL_HOLE_AREA
from masklet.pipeline.prompts import is_whole, more_points, object_mask, object_points
from masklet.pipeline.results import LOST_AFTER, Sightings, frame_result, video_logits
from masklet.pipeline.video_state import STATES, InferenceState, StateKind
from masklet.types import Frame, FrameResult

Output = tuple[int, list[int], np.ndarray]


class VideoPredictor:
    """Prompt objects on any frame, track them through the video, correct, go on.

    Names, arguments, defaults and yields are those of `SAM2VideoPredictor` as `build_sam2_video_predictor`
    makes it; arrays are numpy. Any number of predictors may share a `Model`.
    """

    def __init__(
        self,
        model: Model,
        *,
        fill_hole_area: float = FILL_HOLE_AREA,
        non_overlap_masks: bool = False,
        clear_non_cond_mem_around_input: bool = False,
        add_all_frames_to_correct_as_cond: bool = False,
        state: StateKind = "disk",
        memory_policy: Callable[[], MemoryPolicy] = ReferencePolicy,
    ) -> None:
        """`fill_hole_area`: holes in masks up to this many low-resolution pixels are filled, on every device
        (the reference: on CUDA only); 0 turns it off. `non_overlap_masks`: a pixel belongs to one object at
        most. `clear_non_cond_mem_around_input`: a prompt makes its object forget what it tracked within seven
        frames. `add_all_frames_to_correct_as_cond`: a prompt on a frame that was already tracked conditions
        later passes. By default, as in the reference, it only changes that frame's mask, and the next pass
        over the frame replaces it.

        `state`: what was tracked is kept on "disk" (a temporary file; a few frames in memory), in "memory"
        (it grows with the video), or only as long as tracking reads it ("forget": frames left behind can't be
        corrected). `memory_policy` makes the rules of one object, such as `functools.partial(ReferencePolicy,
        stride=2)`.
        """
        if state not in STATES:
            raise InputError(f"state is {state!r}; allowed is {', '.join(map(repr, STATES))}.")
        model.check_tracks()
        self.model = model
        self.fill_hole_area = fill_hole_area
        self.non_overlap_masks = non_overlap_masks
        self.clear_non_cond_mem_around_input = clear_non_cond_mem_around_input
        self.add_all_frames_to_correct_as_cond = add_all_frames_to_correct_as_cond
        self.state: StateKind = state
        self.memory_policy = memory_policy

    def init_state(
        self,
        video_path: Any,
        offload_video_to_cpu: bool = False,
        offload_state_to_cpu: bool = False,
        async_loading_frames: bool = False,
    ) -> InferenceState:
        """Open a video: a file, a folder of pictures, a glob, or a list of arrays (see `masklet.open_video`).

        Frames are decoded when they are needed. The other arguments are the reference's and change nothing
        here. Raises InputError, also for a source that can only be read forward: a `Tracker` takes those.
        """
        source = open_video(video_path)
        if not source.seekable or source.num_frames is None:
            source.close()
            raise InputError(
                f"{source!r} can only be read forward; push its frames to masklet.Tracker, or give a list "
                "or a file."
            )
        return InferenceState(self.model, source, source.num_frames, self.state)

    # --------------------------------------------------------------------------------------------- prompting

    def add_new_points_or_box(
        self,
        inference_state: InferenceState,
        frame_idx: int,
        obj_id: int,
        points: Any = None,
        labels: Any = None,
        clear_old_points: bool = True,
        normalize_coords: bool = True,
        box: Any = None,
    ) -> Output:
        """Prompt an object, which may be new, on a frame; replaces the frame's prompts unless
        `clear_old_points` is False.

        `points` (N, 2) as (x, y) pixels of the video with `labels` (N): 1 on the object, 0 off it; `box` (4)
        xyxy. Returns the frame, all object ids and their logits there, (O, 1, H, W) float32. Raises
        InputError.
        """
        frame_idx = inference_state.number(frame_idx)
        prompts = object_points(
            points,
            labels,
            box,
            clear_old_points=clear_old_points,
            size_hw=inference_state.size_hw,
            image_size=self.model.image_size,
            normalize_coords=normalize_coords,
        )
        track = self._track(inference_state, obj_id, frame_idx)
        if not clear_old_points and frame_idx in track.points:
            prompts = more_points(track.points[frame_idx], prompts)
        conditions = self._conditions(track, frame_idx)
        track.prompt_points(
            self.model, self._moment(inference_state, frame_idx), prompts, conditions=conditions
        )
        inference_state.tracks[track.object_id] = track
        return self._shown(inference_state, frame_idx, conditions)

    def add_new_mask(self, inference_state: InferenceState, frame_idx: int, obj_id: int, mask: Any) -> Output:
        """Give an object's mask (H, W) bool on a frame; replaces the frame's prompts. Returns like
        `add_new_points_or_box`. Raises InputError."""
        frame_idx = inference_state.number(frame_idx)
        prompt = object_mask(mask, self.model.image_size)
        track = self._track(inference_state, obj_id, frame_idx)
        conditions = self._conditions(track, frame_idx)
        track.prompt_mask(self.model, self._moment(inference_state, frame_idx), prompt, conditions=conditions)
        inference_state.tracks[track.object_id] = track
        return self._shown(inference_state, frame_idx, conditions)

    def clear_all_prompts_in_frame(
        self, inference_state: InferenceState, frame_idx: int, obj_id: int, need_output: bool = True
    ) -> Output | None:
        """Take back an object's prompts on a frame. Returns like `add_new_points_or_box`, or None without
        `need_output`. Raises InputError."""
        frame_idx = inference_state.number(frame_idx)
        inference_state.track(obj_id).unprompt(frame_idx)
        return self._shown_after_removal(inference_state, frame_idx) if need_output else None

    def remove_object(
        self, inference_state: InferenceState, obj_id: int, strict: bool = False, need_output: bool = True
    ) -> tuple[list[int], list[tuple[int, np.ndarray]]]:
        """Forget an object. Returns the remaining ids, and the frames where it was prompted with the logits
        of the others. An unknown id is an InputError if `strict`."""
        if obj_id not in inference_state.object_ids and not strict:
            return inference_state.object_ids, []
        track = inference_state.track(obj_id)
        prompted = sorted({*track.points, *track.masks})
        inference_state.remove(obj_id)
        if not need_output or not inference_state.tracks:
            return inference_state.object_ids, []
        shown = [(frame, self._shown_after_removal(inference_state, frame)[2]) for frame in prompted]
        return inference_state.object_ids, shown

    def reset_state(self, inference_state: InferenceState) -> None:
        """Forget all objects; the video stays open."""
        for obj_id in inference_state.object_ids:
            inference_state.remove(obj_id)

    # ---------------------------------------------------------------------------------------------- tracking

    def propagate_in_video_preflight(self, inference_state: InferenceState) -> None:
        """Turn all new prompts into memories. Every pass begins with it. Raises InputError without
        prompts."""
        if not inference_state.tracks:
            raise InputError("There are no prompts for any object; add points, a box or a mask first.")
        for track in inference_state.tracks.values():
            track.settle(
                self.model, inference_state.features, clear_around=self.clear_non_cond_mem_around_input
            )
            if not track.conditioning:
                raise InputError(
                    f"Object {track.object_id} has no prompts that condition it; add points, a box or a "
                    "mask, or remove the object."
                )

    def propagate_in_video(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        max_frame_num_to_track: int | None = None,
        reverse: bool = False,
    ) -> Iterator[Output]:
        """Track all objects; yields the frame, all object ids and their logits (O, 1, H, W) float32.

        From `start_frame_idx` (None: the first conditioning frame) to the end of the video, or in `reverse`
        to its first frame. As in the reference, `max_frame_num_to_track` yields one frame more, and a reverse
        pass from frame 0 none. Prompts given during a pass count from the next one on. Raises InputError.
        """
        order = self._order(inference_state, start_frame_idx, max_frame_num_to_track, reverse, inclusive=True)
        if reverse and len(order) == 1 and order[0] == 0:
            return
        for frame, made in self._pass(inference_state, order, reverse):
            logits = video_logits(
                [memory.logits for memory in made.values()],
                inference_state.size_hw,
                non_overlap_masks=self.non_overlap_masks,
            )
            yield frame.index, list(made), logits

    def track(
        self,
        inference_state: InferenceState,
        start_frame_idx: int | None = None,
        num_frames: int | None = None,
        reverse: bool = False,
        *,
        lost_after: int = LOST_AFTER,
        cancel: Callable[[], bool] = lambda: False,
    ) -> Iterator[FrameResult]:
        """Track all objects; yields a `FrameResult` for each of `num_frames` frames (None: all).

        The same pass as `propagate_in_video`. An object is lost after `lost_after` frames without it.
        `cancel` is asked before each frame and ends the pass with `Cancelled`. Raises InputError.
        """
        sightings = Sightings(lost_after)
        order = self._order(inference_state, start_frame_idx, num_frames, reverse, inclusive=False)
        for frame, made in self._pass(inference_state, order, reverse, cancel):
            yield frame_result(
                frame.index,
                frame.time,
                inference_state.size_hw,
                made,
                sightings,
                non_overlap_masks=self.non_overlap_masks,
            )

    def _order(
        self, state: InferenceState, start: int | None, count: int | None, reverse: bool, *, inclusive: bool
    ) -> range:
        """The frames of a pass; `inclusive` counts the frames after the first."""
        name, least = ("max_frame_num_to_track", 0) if inclusive else ("num_frames", 1)
        if count is not None and (not is_whole(count) or count < least):
            raise InputError(f"{name} is {count!r}; give {least} or more, or None for all.")
        self.propagate_in_video_preflight(state)
        if start is None:
            start = min(frame for track in state.tracks.values() for frame in track.conditioning)
        start = state.number(start)
        steps = (state.num_frames if count is None else count) - (0 if inclusive else 1)
        if reverse:
            return range(start, max(start - steps, 0) - 1, -1)
        return range(start, min(start + steps, state.num_frames - 1) + 1)

    def _pass(
        self,
        state: InferenceState,
        order: range,
        reverse: bool,
        cancel: Callable[[], bool] = lambda: False,
    ) -> Iterator[tuple[Frame, dict[int, FrameMemory]]]:
        """Each frame of a pass with what was made of every object in it."""
        state.check_remembered(order[0], reverse)
        # Without a stop, a file that was cut off says so behind its last whole frame.
        stop = None if not reverse and order.stop == state.num_frames else order.stop
        with closing(state.source.frames(order.start, stop, reverse)) as frames:
            for frame in frames:
                if cancel():
                    raise Cancelled(f"Stopped before frame {frame.index}; the frames before it are done.")
                yield frame, self._tracked(state, frame, reverse)

    def _tracked(self, state: InferenceState, frame: Frame, reverse: bool) -> dict[int, FrameMemory]:
        """Every object in a frame: as prompted where it conditions, else found. Objects that were added since
        the pass began wait for the next one."""
        tracks = [track for track in state.tracks.values() if track.conditioning]
        if not tracks:
            raise InputError("No object with prompts is left; add points, a box or a mask, and track again.")
        free = []
        for track in tracks:
            if frame.index not in track.conditioning:
                free.append(track)
            elif self.clear_non_cond_mem_around_input:
                track.clear_around(frame.index)
        found: dict[int, FrameMemory] = {}
        if free:
            moment = Moment(frame.index, state.features(frame), state.num_frames, reverse)
            for track, made in zip(free, step_together(self.model, free, moment), strict=True):
                track.remember(frame.index, made)
                found[track.object_id] = made
        for track in tracks:
            track.directions[frame.index] = reverse
            if state.kind == "forget":
                track.forget(frame.index, reverse)
        return {
            track.object_id: found.get(track.object_id) or track.conditioning[frame.index] for track in tracks
        }

    # ---------------------------------------------------------------------------------------------- helpers

    def _track(self, state: InferenceState, obj_id: int, frame: int) -> ObjectTrack:
        """The object's track, a new one if need be, which is not yet part of the state."""
        if not is_whole(obj_id):
            raise InputError(f"obj_id is {obj_id!r}; give a whole number.")
        track = state.tracks.get(int(obj_id))
        if track is None:
            return state.new_track(int(obj_id), self.memory_policy(), self.fill_hole_area)
        missing = track.forgotten_for(frame)
        if missing is not None:
            raise InputError(
                f"Frame {missing} was forgotten, so object {obj_id} can't be corrected on frame {frame}; "
                'correct a later frame, or make the predictor with state="disk".'
            )
        return track

    def _conditions(self, track: ObjectTrack, frame: int) -> bool:
        # Where nothing conditions an object any more, this has to (the reference fails an assertion).
        is_first = frame not in track.directions or not track.conditioning
        return is_first or self.add_all_frames_to_correct_as_cond

    def _moment(self, state: InferenceState, frame: int) -> Moment:
        return Moment(frame, state.features(frame), state.num_frames)

    def _shown_after_removal(self, state: InferenceState, frame: int) -> Output:
        conditions = any(frame in track.pending_conditioning for track in state.tracks.values())
        return self._shown(state, frame, conditions)

    def _shown(self, state: InferenceState, frame: int, conditions: bool) -> Output:
        """All objects on a frame as they stand; one without a mask there is absent."""
        side = self.model.image_size // 4
        low_res = []
        for track in state.tracks.values():
            made = track.pending(conditions).get(frame) or track.recall(frame)
            low_res.append(
                np.full((1, side, side), ABSENT_LOGIT, np.float32) if made is None else made.logits
            )
        logits = video_logits(low_res, state.size_hw, non_overlap_masks=self.non_overlap_masks)
        return frame, state.object_ids, logits
