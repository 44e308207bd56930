"""The run of `masklet track`: results from a predictor or a tracker, to the writers, until the end or a
signal.

In: a model, a video, prompts and writers. Out: written frames and a summary of them. Knows nothing about
options.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from masklet.apps import terminal
from masklet.apps.track_prompts import FramePrompt, coordinates
from masklet.errors import Cancelled, MaskletError

if TYPE_CHECKING:
    import numpy as np

    from masklet import Model
    from masklet.io.results import ResultWriter
    from masklet.io.video import VideoSource
    from masklet.types import FrameResult, TrackedObject

Results = Generator[tuple["FrameResult", "np.ndarray | None"], None, None]
StateKind = Literal["disk", "memory", "forget"]


@dataclass(frozen=True)
class Method:
    """How to track: settings of the predictor and of the tracker."""

    fill_holes: float
    non_overlap: bool
    lost_after: int
    state: StateKind


# --------------------------------------------------------------------------------------------------- results


def results_of_clip(
    model: Model,
    video: Any,
    prompts: Sequence[FramePrompt],
    order: range,
    method: Method,
    pictures: VideoSource | None,
    cancel: Callable[[], bool],
) -> Results:
    """The frames of `order`; with their pictures if `pictures` can give them."""
    from masklet import VideoPredictor

    predictor = VideoPredictor(
        model, fill_hole_area=method.fill_holes, non_overlap_masks=method.non_overlap, state=method.state
    )
    with predictor.init_state(video) as state:
        for prompt in prompts:
            if prompt.mask is not None:
                predictor.add_new_mask(state, prompt.frame, prompt.object_id, prompt.mask)
                continue
            points, labels = coordinates(prompt)
            box = prompt.box and prompt.box.xyxy
            predictor.add_new_points_or_box(
                state, prompt.frame, prompt.object_id, points=points, labels=labels, box=box
            )
        results = predictor.track(
            state,
            order.start,
            len(order),
            reverse=order.step < 0,
            lost_after=method.lost_after,
            cancel=cancel,
        )
        if pictures is None:
            yield from ((result, None) for result in results)
        else:
            frames = pictures.frames(order.start, order.stop)
            yield from ((result, frame.pixels) for result, frame in zip(results, frames, strict=False))


def results_of_stream(
    model: Model,
    source: VideoSource,
    prompts: Sequence[FramePrompt],
    num_frames: int | None,
    method: Method,
    cancel: Callable[[], bool],
) -> Results:
    """Frames as they come, from the first prompted one on; `num_frames` of them, None for no end."""
    from masklet import Tracker

    tracker = Tracker(
        model,
        fill_hole_area=method.fill_holes,
        non_overlap_masks=method.non_overlap,
        lost_after=method.lost_after,
    )
    first = min(prompt.frame for prompt in prompts)
    for frame in source.frames():
        if cancel():
            raise Cancelled("stopped by a signal")
        if frame.index < first:
            continue
        result = tracker.push(frame.pixels, frame.time)
        for prompt in prompts:
            if prompt.frame != frame.index:
                continue
            if prompt.mask is not None:
                result = tracker.add_mask(prompt.object_id, prompt.mask)
            else:
                points, labels = coordinates(prompt)
                box = prompt.box and prompt.box.xyxy
                result = tracker.add_points_or_box(prompt.object_id, points=points, labels=labels, box=box)
        yield replace(result, index=frame.index), frame.pixels
        if num_frames is not None and frame.index + 1 - first >= num_frames:
            return


# ------------------------------------------------------------------------------------------------------- loop


@dataclass
class ObjectSummary:
    """One object over all frames of a run."""

    frames: int = 0
    seen: int = 0
    iou: float = 0.0  # sum over the frames in which it was seen
    area: int = 0  # likewise, in pixels

    def add(self, tracked: TrackedObject) -> None:
        """Count a frame."""
        self.frames += 1
        if tracked.state in ("tracked", "found"):
            self.seen += 1
            self.iou += tracked.predicted_iou
            self.area += tracked.area


@dataclass
class Summary:
    """What a run did. `stopped_by` is the signal that ended it, None if it came to its end."""

    frames: int = 0
    objects: dict[int, ObjectSummary] = field(default_factory=dict)
    stopped_by: int | None = None
    error: MaskletError | None = None

    def add(self, result: FrameResult) -> None:
        """Count a frame."""
        self.frames += 1
        for tracked in result.objects:
            self.objects.setdefault(tracked.object_id, ObjectSummary()).add(tracked)


def write_results(
    results: Callable[[Callable[[], bool]], Results],
    writers: Sequence[ResultWriter],
    total: int | None,
    *,
    show_bar: bool = True,
) -> Summary:
    """Write all results; finish the files whatever happens.

    `results` makes the iterator, given a function that says whether to stop. A `MaskletError` stands in the
    summary, so that the caller can say what is there before it raises it; others pass through.
    """
    summary = Summary()
    bar = terminal.frame_bar("Tracking", total) if show_bar else contextlib.nullcontext(lambda done: None)
    with _signals() as received, bar as advance:
        try:
            with contextlib.ExitStack() as stack:
                for writer in writers:
                    stack.callback(writer.finish)
                try:
                    for result, pixels in stack.enter_context(
                        contextlib.closing(results(lambda: bool(received)))
                    ):
                        for writer in writers:
                            if not writer.has(result.index):
                                writer.write(result, pixels)
                        summary.add(result)
                        advance(summary.frames)
                except Cancelled:
                    pass
                except KeyboardInterrupt:
                    received.append(signal.SIGINT)
        except MaskletError as error:
            summary.error = error
    summary.stopped_by = received[0] if received else None
    return summary


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Ctrl-C and the wish to terminate, collected instead of raised: a list of those that came. A second
    Ctrl-C is a KeyboardInterrupt. A signal that is ignored, as in background jobs, stays so."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)
        if sys.stderr.isatty():  # past Python's buffers, which a signal may find in use
            os.write(sys.stderr.fileno(), b"\nStopping after this frame. Ctrl-C again stops at once.\n")

    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
