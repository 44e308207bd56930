"""The state of a video: the video itself, the objects in it, and where what is remembered of them is kept.

In: a source of frames. Out: encoded frames, and the tracks of objects by their number. Knows nothing about
how objects are prompted or tracked.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

from masklet.errors import InputError
from masklet.io.video import VideoSource
from masklet.pipeline.frame_book import FrameBook, record_store
from masklet.pipeline.memory import MemoryPolicy
from masklet.pipeline.model import Model
from masklet.pipeline.object_track import ObjectTrack
from masklet.pipeline.preprocess import frame_input
from masklet.pipeline.prompts import is_whole
from masklet.types import Frame, FrameFeatures

StateKind = Literal["disk", "memory", "forget"]
STATES: tuple[StateKind, ...] = ("disk", "memory", "forget")
# Bytes of past frames in memory when the rest is on disk: some 20 frames of one object.
STATE_BUDGET = 16 << 20
FEATURES_KEPT = 2  # encoded frames, 33 MB each at 1024 pixels


class InferenceState:
    """A video with the objects in it. Made by `VideoPredictor.init_state`; belongs to one thread.

    A context manager: leaving it, or `close`, frees the video and the temporary file.
    """

    def __init__(self, model: Model, source: VideoSource, num_frames: int, kind: StateKind) -> None:
        self.source = source
        self.num_frames = num_frames
        self.size_hw = source.size_hw
        self.kind = kind
        self.tracks: dict[int, ObjectTrack] = {}
        side, tokens = model.image_size // 4, model.config.memory_places(model.image_size).count
        budget = STATE_BUDGET if kind == "disk" else None
        self.store = record_store(tokens, model.config.memory_dim, model.config.d_model, side, budget)
        self._model = model
        self._features: OrderedDict[int, FrameFeatures] = OrderedDict()

    @property
    def object_ids(self) -> list[int]:
        """The objects, in the order in which they were added."""
        return list(self.tracks)

    def __getitem__(self, key: str) -> Any:
        """What code written for the reference reads from its state: obj_ids, num_frames, video_height,
        video_width."""
        known = {
            "obj_ids": self.object_ids,
            "num_frames": self.num_frames,
            "video_height": self.size_hw[0],
            "video_width": self.size_hw[1],
        }
        if key not in known:
            raise KeyError(f"the state has no {key!r}; it has {', '.join(known)}")
        return known[key]

    def number(self, frame: Any) -> int:
        """The number of a frame that exists. Raises InputError."""
        if not is_whole(frame) or not 0 <= frame < self.num_frames:
            raise InputError(f"There is no frame {frame!r}; the video has frames 0 to {self.num_frames - 1}.")
        return int(frame)

    def track(self, obj_id: Any) -> ObjectTrack:
        """The track of an object that is there. Raises InputError."""
        if obj_id not in self.object_ids:
            raise InputError(f"There is no object {obj_id!r}; there are {self.object_ids or 'none yet'}.")
        return self.tracks[obj_id]

    def new_track(self, obj_id: int, policy: MemoryPolicy, fill_hole_area: float) -> ObjectTrack:
        """The track of an object that is not yet part of the state."""
        books = FrameBook(self.store), FrameBook(self.store)
        return ObjectTrack(obj_id, policy, *books, fill_hole_area)

    def remove(self, obj_id: int) -> None:
        """Forget an object and free its records."""
        track = self.tracks.pop(obj_id)
        track.conditioning.clear()
        track.tracked.clear()

    def check_remembered(self, start: int, reverse: bool) -> None:
        """Refuse a pass that would look at forgotten frames: it would not be what it claims to be."""
        for track in self.tracks.values():
            missing = track.forgotten_before(start, reverse)
            if missing is not None:
                raise InputError(
                    f"Tracking {'back' if reverse else 'on'} from frame {start} looks at frame {missing}, "
                    'which was forgotten. Start elsewhere, or make the predictor with state="disk".'
                )

    def features(self, frame: int | Frame) -> FrameFeatures:
        """A frame, encoded; given by number it is read from the video."""
        index = frame if isinstance(frame, int) else frame.index
        if index not in self._features:
            pixels = (self.source.frame(frame) if isinstance(frame, int) else frame).pixels
            encoded = self._model.encode_frame(frame_input(pixels, self._model.image_size), self.size_hw)
            self._features[index] = encoded
            while len(self._features) > FEATURES_KEPT:
                self._features.popitem(last=False)
        self._features.move_to_end(index)
        return self._features[index]

    def close(self) -> None:
        """Free the video and what is remembered."""
        self.tracks.clear()
        self._features.clear()
        self.store.close()
        self.source.close()

    def __enter__(self) -> InferenceState:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
