"""Results as a video: the pictures with the objects drawn over them.

In: results and pictures, frame by frame. Out: an .mp4, .mov, .mkv or .webm without sound, with the times of
its source. The file appears when it is finished. Knows nothing about models.
"""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from masklet.errors import InputError, OutputError
from masklet.io.atomic import open_atomic, reason_of
from masklet.io.overlay import draw_overlay, palette_colour
from masklet.io.results import ResultWriter, Start, check_file
from masklet.io.video_file import import_av
from masklet.rle import decode_rle
from masklet.types import Frame, FrameResult

if TYPE_CHECKING:
    from av.container import OutputContainer

DEFAULT_FPS = 25.0  # of sources without a clock, such as folders of pictures

# Seconds are told in these units: whole numbers at 23.976 (rounded by 8 us), 24, 25, 29.97, 30, 50 and 60
# frames a second. MPEG-4 takes no finer unit than 1/65535.
_UNIT = Fraction(1, 60000)
_MAX_KEYFRAME_DISTANCE = 30  # frames; what a player decodes after a jump, at most

_BT709 = 1  # the colour description of high-definition video, FFmpeg's number


@dataclass(frozen=True)
class _Encoder:
    """An encoder of FFmpeg's by name, and its settings. None of them reorders frames ("bf"): with variable
    frame rates, that would make the file end before its last frame."""

    name: str
    options: dict[str, str]


_H264 = _Encoder("libx264", {"crf": "20", "preset": "fast", "bf": "0"})
_OPENH264 = _Encoder("libopenh264", {"b": "6000000"})
_MPEG4 = _Encoder("mpeg4", {"flags": "+qscale", "global_quality": str(3 * 118), "bf": "0"})
_VP9 = _Encoder("libvpx-vp9", {"crf": "30", "b": "0", "deadline": "realtime", "cpu-used": "5", "row-mt": "1"})
_VP8 = _Encoder("libvpx", {"crf": "10", "b": "6000000", "deadline": "realtime", "cpu-used": "5"})

# Suffix: FFmpeg's name of the container, its options, and encoders, the first available one is taken. An .mp4
# is written in fragments, so that a full disk leaves a playable file, and becomes a plain one when it is
# finished.
_CONTAINERS: dict[str, tuple[str, dict[str, str], tuple[_Encoder, ...]]] = {
    ".mp4": ("mp4", {"movflags": "+hybrid_fragmented+frag_every_frame"}, (_H264, _OPENH264, _MPEG4)),
    ".mov": ("mov", {"movflags": "+hybrid_fragmented+frag_every_frame"}, (_H264, _OPENH264, _MPEG4)),
    ".mkv": ("matroska", {}, (_H264, _OPENH264, _MPEG4)),
    ".webm": ("webm", {}, (_VP9, _VP8)),
}
VIDEO_SUFFIXES = tuple(_CONTAINERS)


class OverlayVideo(ResultWriter):
    """A video of pictures with their objects: each in a colour that its id decides, with the id beside it."""

    needs_pixels = True

    def __init__(self, path: Path, *, fps: float | None = None, start: Start = "new") -> None:
        """`fps` is the source's mean rate: how long the last frame lasts, and all of them where frames have
        no time. Raises `OutputError` where there is a file that `start` does not allow to touch."""
        check_file(path, start, resumable=False)
        self._path = path
        self._fps = fps or DEFAULT_FPS
        self._stack = ExitStack()
        self._video: _VideoFile | None = None

    def write(self, result: FrameResult, pixels: np.ndarray | None = None) -> None:
        """Draw and encode a frame; `pixels` (H, W, 3) uint8 is needed."""
        if pixels is None:
            raise InputError(f"frame {result.index} came without its picture; an overlay needs it.")
        drawn = draw_overlay(
            pixels,
            [tracked.mask for tracked in result.objects],
            names=[str(tracked.object_id) for tracked in result.objects],
            colours=[palette_colour(tracked.object_id - 1) for tracked in result.objects],
        )
        if self._video is None:
            self._video = self._begun(drawn.shape)
        time = result.index / self._fps if result.time is None else result.time
        try:
            self._video.add(drawn, time)
        except (OSError, import_av().FFmpegError) as error:
            raise self._rescued(self._video, error) from error

    def _begun(self, shape: tuple[int, ...]) -> _VideoFile:
        with ExitStack() as stack:
            file = stack.enter_context(open_atomic(self._path))
            video = _VideoFile(file, self._path.suffix.lower(), shape, self._fps)
            self._stack = stack.pop_all()
        return video

    def finish(self) -> None:
        """Encode what waits and complete the file."""
        video, self._video = self._video, None
        if video is None:
            return
        with ExitStack() as stack:
            stack.push(self._stack.__exit__)  # after Ctrl-C here, nothing is left behind
            try:
                video.close()
            except (OSError, import_av().FFmpegError) as error:
                stack.pop_all()
                raise self._rescued(video, error) from error

    def _rescued(self, video: _VideoFile, error: Exception) -> OutputError:
        """Complete the file as far as it was written; the error that says so."""
        self._video = None
        cause = video.failure or error
        reason = reason_of(cause, self._path) if isinstance(cause, OSError) else str(cause)
        message = f"cannot write more to {str(self._path)!r}: {reason}."
        kept = video.rescue()
        if not kept:
            failure = OutputError(f"{message} Nothing was left behind.")
            with suppress(OutputError):
                self._stack.__exit__(OutputError, failure, None)
            return failure
        self._stack.close()
        return OutputError(f"{message} The file has the first {kept} frames.")


class ReplayedOverlay(ResultWriter):
    """An overlay of results that come last frame first: they are kept, as run lengths, and drawn at the end,
    so that the video plays forward. A few kilobytes for each object and frame."""

    def __init__(self, video: OverlayVideo, frames: Callable[[int, int], Iterator[Frame]]) -> None:
        """`frames(start, stop)` gives the source's frames once more."""
        self._video = video
        self._frames = frames
        self._results: dict[int, tuple[FrameResult, list[dict[str, Any]]]] = {}

    def write(self, result: FrameResult, pixels: np.ndarray | None = None) -> None:
        """Keep a frame's result."""
        nothing = np.zeros((0, 0), np.bool_)
        bare = tuple(replace(tracked, mask=nothing) for tracked in result.objects)
        self._results[result.index] = (
            replace(result, objects=bare),
            [tracked.rle() for tracked in result.objects],
        )

    def finish(self) -> None:
        """Draw and encode all frames."""
        results, self._results = self._results, {}
        try:
            if results:
                for frame in self._frames(min(results), max(results) + 1):
                    bare, rles = results[frame.index]
                    objects = tuple(
                        replace(tracked, mask=decode_rle(rle))
                        for tracked, rle in zip(bare.objects, rles, strict=True)
                    )
                    self._video.write(replace(bare, objects=objects), frame.pixels)
        finally:
            self._video.finish()


# ------------------------------------------------------------------------------------------------- encoding


class _VideoFile:
    """A container with one video stream in a file that is open."""

    def __init__(self, file: BinaryIO, suffix: str, shape: tuple[int, ...], fps: float) -> None:
        av = import_av()
        name, options, encoders = _CONTAINERS[suffix]
        encoder = _first_available(encoders, suffix)
        self._sink = _Sink(file)
        self._path = file.name
        self._is_in_fragments = "movflags" in options
        self._first: float | None = None  # seconds
        self._last = -1  # in units
        self._container: OutputContainer = av.open(self._sink, "w", format=name, options=options)
        rate = Fraction(fps).limit_denominator(1001)  # how long the last frame is shown
        stream: Any = self._container.add_stream(encoder.name, rate=rate, options=encoder.options)
        # Two pixels share a colour, so sides are even; an odd one is made longer by a pixel.
        stream.height, stream.width = (side + side % 2 for side in shape[:2])
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.time_base = _UNIT
        context.gop_size = _MAX_KEYFRAME_DISTANCE
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = _BT709
        self._stream = stream

    @property
    def failure(self) -> OSError | None:
        """What the file system said first."""
        return self._sink.failure

    def add(self, pixels: np.ndarray, time: float) -> None:
        """Encode a picture that is shown from `time` (seconds) on."""
        import av
        from av.video.reformatter import ColorRange, Colorspace

        if self._first is None:
            self._first = time
        odd = [(0, side % 2) for side in pixels.shape[:2]]
        frame = av.VideoFrame.from_ndarray(np.pad(pixels, (*odd, (0, 0)), mode="edge"), format="rgb24")
        frame = frame.reformat(
            format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
        )
        # Times must grow: equal ones, as damaged files have, are moved by a unit.
        self._last = max(self._last + 1, round((time - self._first) / _UNIT))
        frame.pts, frame.time_base = self._last, _UNIT
        for packet in self._stream.encode(frame):
            self._mux(packet)

    def close(self) -> None:
        """Write what the encoder still holds, and the file's end."""
        for packet in self._stream.encode():
            self._mux(packet)
        self._container.close()
        if self._sink.failure:
            raise self._sink.failure

    def _mux(self, packet: Any) -> None:
        self._container.mux(packet)
        if self._sink.failure:
            raise self._sink.failure

    def rescue(self) -> int:
        """After a failure: leave what was written in a playable state. How many frames that is."""
        self._sink.is_shut = True
        with suppress(Exception):  # it tries to write the end, which the sink refuses
            self._container.close()
        if self._is_in_fragments:
            self._sink.cut(_end_of_fragments(self._path))
        return _count_frames(self._path)


class _Sink:
    """The file as PyAV sees it: unbuffered, remembers the first failure, and takes nothing after it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = io.FileIO(file.fileno(), "w", closefd=False)
        self.failure: OSError | None = None
        self.is_shut = False

    def write(self, data: bytes) -> int:
        """All of `data`."""
        if self.is_shut:
            raise OSError(errno.EIO, "an earlier write failed")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._file.write(rest) or 0 :]
        except OSError as error:
            self.failure, self.is_shut = error, True
            raise
        return len(data)

    def seek(self, offset: int, whence: int = 0) -> int:
        """As in files."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As in files."""
        return self._file.tell()

    def cut(self, end: int) -> None:
        """Drop what lies behind `end`."""
        with suppress(OSError):
            self._file.truncate(end)


def _end_of_fragments(path: str) -> int:
    """Where the last complete fragment of an .mp4 ends: a "moof" box and its "mdat"; 0 without any."""
    end = position = 0
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        has_index = False
        while len(head := file.read(16)) >= 8:
            length, kind = struct.unpack_from(">I4s", head)
            if length == 1 and len(head) == 16:
                length = struct.unpack_from(">Q", head, 8)[0]
            if length < 8 or position + length > size:
                break
            position += length
            if kind == b"mdat" and has_index:
                end = position
            has_index = kind == b"moof"
            file.seek(position)
    return end


def _count_frames(path: str) -> int:
    av = import_av()
    count = 0
    with suppress(av.FFmpegError), av.open(path) as container:
        for packet in container.demux(video=0):
            count += packet.size > 0
    return count


def _first_available(encoders: tuple[_Encoder, ...], suffix: str) -> _Encoder:
    av = import_av()
    for encoder in encoders:
        with suppress(av.codec.codec.UnknownCodecError):
            av.Codec(encoder.name, "w")
            return encoder
    names = ", ".join(encoder.name for encoder in encoders)
    raise OutputError(
        f"cannot write {suffix} video: this build of PyAV has none of the encoders {names}. Install PyAV "
        "from its published wheels, or choose another output, such as a folder."
    )
