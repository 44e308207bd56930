"""Video files through PyAV.

In: the path of a file with a video stream. Out: frames as (H, W, 3) uint8 RGB, turned as the file says, with
rank and time. Knows nothing about other sources of frames, threads or models.

A file's frames are found by reading its packets once, without decoding them. A frame is known by its rank
among the times of presentation, which also tell the keyframe that it is decoded from.
"""

from __future__ import annotations

import os
import threading
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.errors import InputError, MissingDependencyError
from masklet.types import Frame

if TYPE_CHECKING:
    import av
    from av.container import InputContainer
    from av.video.frame import VideoFrame

Cancelled = Callable[[], bool]
Frames = Generator[Frame, None, None]

# Decoded pixels that one pass holds at a time: a reverse pass's group, and the frames ahead of the caller.
HELD_BYTES = 256 << 20
FRAMES_AHEAD = 4

# FFmpeg's names of the containers that are read. It knows hundreds more, among them playlists, which open
# other files, and text files, which it shows as pictures.
_FORMATS = "mov,matroska,gif,avi,mpegts,mpeg,flv,asf"
_FORMATS_SHOWN = "mp4, mov, webm, mkv, gif, avi, ts, mpg, flv or wmv"

_REPAIR = "copy or download it again, or save what can be read: ffmpeg -i IN OUT.mp4"


def import_av() -> Any:
    """The package `av`. Raises `MissingDependencyError`."""
    try:
        import av
        import av.device
        import av.video.reformatter
    except ImportError as error:
        raise MissingDependencyError(
            f"Reading video needs PyAV, which cannot be imported ({error}); run: pip install masklet"
        ) from error
    return av


def frames_ahead(size_hw: tuple[int, int]) -> int:
    """How many frames are decoded ahead of the caller."""
    return max(1, min(FRAMES_AHEAD, HELD_BYTES // (3 * size_hw[0] * size_hw[1])))


def check_size(size_hw: tuple[int, int], expected_hw: tuple[int, int], index: int, name: str) -> None:
    """Raises `InputError` for a frame that is not of the expected size."""
    if size_hw != expected_hw:
        raise InputError(
            f"Frame {index} of {name} is {size_hw[0]} x {size_hw[1]} (height x width), all frames must be "
            f"{expected_hw[0]} x {expected_hw[1]}. Scale them to one size, or use the parts one by one."
        )


def never() -> bool:
    """What a pass asks that nobody cancels."""
    return False


# ------------------------------------------------------------------------------------------------------ index


@dataclass(frozen=True)
class Index:
    """What the packets tell. Times are in the stream's own unit of `time_base` seconds.

    `pts` (F,) int64: when each frame is shown, ascending. `keys`: when each keyframe is shown and when it is
    decoded, ascending. `damage`: why the file ends before it should, or None.
    """

    pts: np.ndarray
    keys: tuple[array[int], array[int]]
    time_base: float
    damage: str | None

    def find(self, pts: int) -> int | None:
        """The rank of the frame that is shown at that time."""
        rank = int(np.searchsorted(self.pts, pts))
        return rank if rank < len(self.pts) and self.pts[rank] == pts else None

    def rank(self, pts: int | None, last: int) -> int:
        """The rank of a decoded picture that came after the one of rank `last`."""
        if pts is None or (last + 1 < len(self.pts) and self.pts[last + 1] == pts):
            return last + 1
        found = self.find(pts)
        return last + 1 if found is None else found

    def key_before(self, rank: int) -> int:
        """The number of the keyframe that a frame is decoded from; -1 for the start of the file."""
        return bisect_right(self.keys[0], int(self.pts[rank])) - 1

    def rank_of(self, key: int) -> int:
        """A keyframe's rank, or 0 for the start of the file."""
        return 0 if key < 0 else int(np.searchsorted(self.pts, self.keys[0][key]))

    def seconds(self, rank: int) -> float:
        """From the first frame."""
        return (int(self.pts[rank]) - int(self.pts[0])) * self.time_base


def _read_index(path: str) -> Index:
    container, stream = _open(path)
    with closing(container):
        is_vp8, time_base = stream.codec_context.name == "vp8", float(stream.time_base or 0)
        pts, keys = array("q"), (array("q"), array("q"))
        count, half, damage = 0, None, None
        try:
            for packet in _demux(container, stream):
                if (time := _time(packet)) is None:
                    if packet.size:
                        raise InputError(f"{path!r} does not say when its frames are shown; {_REPAIR}.")
                    continue  # the end
                if packet.is_keyframe:
                    if keys[0] and time < keys[0][-1]:
                        damage = "its times jump back there, as in files joined end to end"
                        break
                    keys[0].append(time)
                    keys[1].append(time if packet.dts is None else packet.dts)
                count, half = count + 1, time if packet.is_corrupt else None
                if not (packet.is_discard or packet.size == 0 or (is_vp8 and _is_hidden(packet))):
                    pts.append(time)
            else:
                if half is not None or ("mov" in container.format.name and count < len(stream.index_entries)):
                    damage = "the file is cut off"
        except import_av().FFmpegError as error:
            damage = f"the file is cut off or damaged there ({error.strerror})"
    if damage and pts and pts[-1] == half:
        pts.pop()  # the file's end went through this packet
    return Index(np.sort(np.frombuffer(pts, np.int64)), keys, time_base, damage)


def _demux(container: InputContainer, stream: Any) -> Iterator[av.Packet]:
    """Packets; the last one is empty and makes the decoder hand out what it has."""
    with suppress(IndexError):  # PyAV's, after that last one, where a stream began later in the file
        yield from container.demux(stream)


def _time(packet: av.Packet) -> int | None:
    return packet.dts if packet.pts is None else packet.pts


def _is_hidden(packet: av.Packet) -> bool:
    """VP8 keeps reference pictures that are never shown in packets of their own (RFC 6386, section 9.1)."""
    return not memoryview(packet)[0] >> 4 & 1


# ---------------------------------------------------------------------------------------------------- opening


def _open(path: str) -> tuple[InputContainer, Any]:
    """The container and its video stream, ready to decode. Raises `InputError`."""
    av, name = import_av(), repr(path)
    # This one local file, whatever it is called and whatever other files or addresses it names.
    options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
    url = "file:" + os.path.abspath(path)
    try:
        try:
            container = av.open(url, container_options=options)
        except UnicodeDecodeError:  # a title in an old encoding; from PyAV 19 on that is no error
            container = av.open(url, container_options=options, metadata_errors="replace")
    except Exception as error:  # PyAV raises errors of many kinds on damaged files
        if isinstance(error, av.error.ArgumentError):  # how FFmpeg refuses a format
            raise InputError(
                f"{name} is no video in a format that is read: {_FORMATS_SHOWN}. Convert it: ffmpeg -i IN "
                "OUT.mp4; give pictures as a folder or a list."
            ) from error
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{name} cannot be read as a video ({reason}): it is damaged, cut off or no {_FORMATS_SHOWN}. "
            "Copy or download it again, or convert it: ffmpeg -i IN OUT.mp4"
        ) from error
    try:
        return container, _video_stream(container, name)
    except BaseException:
        container.close()
        raise


def _video_stream(container: InputContainer, name: str) -> Any:
    from av.stream import Disposition

    stream: Any = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:
        kinds = {s.type if s.type != "video" else "a cover picture" for s in container.streams}
        kinds = ", ".join(sorted(kinds)) or "headers"
        raise InputError(f"{name} has no video stream, only {kinds}; give a file with moving pictures.")
    codec = stream.codec_context
    if codec is None:
        raise InputError(f"{name} is in a codec that PyAV does not decode; convert it: ffmpeg -i IN OUT.mp4")
    limit = _check_pixels(codec.width, codec.height, name)
    if limit is not None:  # frames may be larger than the header says
        codec.options = {"max_pixels": str(limit)}
    return stream


def _check_pixels(width: int, height: int, name: str) -> int | None:
    """Frames have as many pixels as Pillow allows a picture."""
    from PIL import Image

    limit = None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise InputError(
            f"{name} has too many pixels: its frames are {width} x {height}, the limit is {limit} pixels. "
            "Scale it down first, or raise PIL.Image.MAX_IMAGE_PIXELS."
        )
    return limit


# ----------------------------------------------------------------------------------------------------- pixels


class Converter:
    """Decoded pictures as RGB arrays, upright. For many pictures, one thread at a time."""

    def __init__(self) -> None:
        self._reformatter = import_av().video.reformatter.VideoReformatter()
        self._matrix: list[int] = []
        self._rotation: int | None = None

    def __call__(self, picture: VideoFrame) -> np.ndarray:
        if picture.rotation != self._rotation:  # not for each picture: asking for side data keeps it alive
            self._matrix, self._rotation = _display_matrix(picture), picture.rotation
        rgb = self._reformatter.reformat(picture, format="rgb24").to_ndarray()
        return np.array(_upright(rgb, self._matrix), order="C")  # a copy: the memory is FFmpeg's


def size_hw_of(pixels: np.ndarray) -> tuple[int, int]:
    """Height and width of a picture."""
    return pixels.shape[0], pixels.shape[1]


def _display_matrix(picture: VideoFrame) -> list[int]:
    """How a picture is to be turned: int32 a b u c d v x y w (libavutil/display.h), or nothing."""
    matrix = bytes(picture.side_data.get("DISPLAYMATRIX") or b"")
    return np.frombuffer(matrix, np.int32).tolist() if len(matrix) == 36 else []


def _upright(pixels: np.ndarray, matrix: list[int]) -> np.ndarray:
    """Turned and mirrored, to the nearest quarter turn: x' = a x + c y, y' = b x + d y."""
    if not matrix:
        return pixels
    a, b, _, c, d = matrix[:5]
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


# --------------------------------------------------------------------------------------------------- decoding


class _Decoder:
    """One open container, decoded from any keyframe on. For one thread at a time."""

    def __init__(self, path: str, index: Index) -> None:
        self._av = import_av()
        self._path, self._index = path, index
        self._convert = Converter()
        self._container, self.stream = _open(path)
        self._is_fresh = True  # nothing was read yet
        self._error: Exception | None = None
        # AVI has no times of presentation. Those that FFmpeg makes up are wrong where frames are reordered.
        is_avi, codec = self._container.format.name == "avi", self.stream.codec_context.name
        self._is_counted = is_avi and codec in ("h264", "hevc")

    def close(self) -> None:
        self._container.close()

    def pixels(self, rank: int, picture: VideoFrame) -> np.ndarray:
        try:
            return self._convert(picture)
        except (self._av.FFmpegError, MemoryError) as error:
            reason = getattr(error, "strerror", None) or "not enough memory"
            raise InputError(
                f"Frame {rank} of {self._path!r} ({picture.width} x {picture.height} {picture.format.name}) "
                f"cannot be made RGB: {reason}. Convert the video: ffmpeg -i IN -pix_fmt yuv420p OUT.mp4"
            ) from error

    def first(self) -> tuple[int, VideoFrame]:
        """Rank and picture of the first frame that can be decoded."""
        for rank, picture in self._decode(-1):
            return rank, picture
        raise self._undecodable(0)

    def read(self, start: int, stop: int, is_cancelled: Cancelled) -> Iterator[VideoFrame]:
        """Frames start .. stop - 1.

        A frame for which no picture came shows the one before, as a screen does: some packets mean just that,
        others are half of a picture. But where pictures are missing because of damage, they and those that
        lean on them are an `InputError`.
        """
        self._error = None
        pictures, rank, shown = self._begin(start)
        wanted = start
        while wanted < stop and not is_cancelled():
            if rank == wanted:
                yield shown
                wanted += 1
                continue
            following, picture = next(pictures, (stop, shown))
            if following > rank + 1 and self._error is not None:
                raise self._undecodable(wanted)
            while wanted < min(following, stop) and not is_cancelled():
                yield shown
                wanted += 1
            rank, shown = following, picture

    def _begin(self, start: int) -> tuple[Iterator[tuple[int, VideoFrame]], int, VideoFrame]:
        """Pictures in order of presentation; rank and picture of the first, which is not after `start`."""
        for key in (self._index.key_before(start), -1):  # from the file's start where the keyframe was none
            pictures = self._decode(key)
            rank, picture = next(pictures, (start + 1, None))
            is_damaged = self._error is not None and rank > self._index.rank_of(key)
            if picture is not None and rank <= start and not is_damaged:
                return pictures, rank, picture
        raise self._undecodable(start)

    def _undecodable(self, rank: int) -> InputError:
        reason = getattr(self._error, "strerror", None) or "there is no picture"
        return InputError(f"Frame {rank} of {self._path!r} cannot be decoded ({reason}); {_REPAIR}.")

    def _decode(self, key: int) -> Iterator[tuple[int, VideoFrame]]:
        """Ranks, ascending, and pictures. Those shown before the keyframe need the group before: left out."""
        last = self._index.rank_of(key) - 1
        for packet in self._packets(key):
            try:
                pictures = self.stream.decode(packet)
            except self._av.FFmpegError as error:
                self._error = error
                continue
            for picture in pictures:
                rank = last + 1 if self._is_counted else self._index.rank(picture.pts, last)
                if rank > last:
                    last = rank
                    yield rank, picture

    def _packets(self, key: int) -> Iterator[av.Packet | None]:
        """Packets from a keyframe on; the last one makes the decoder hand out what it has."""
        try:
            for packet in self._packets_from(key):
                time = _time(packet)
                if not packet.is_corrupt or time is None or self._index.find(time) is not None:
                    yield packet  # and not the half packet at the end of a file that was cut off
        except self._av.FFmpegError as error:
            self._error = error
            yield None

    def _packets_from(self, key: int) -> Iterator[av.Packet]:
        """Packets from a keyframe on. A seek may land well before it: what lies between is not decoded."""
        if key > 0 or (key == 0 and not self._is_fresh):
            self._is_fresh = False
            for times in self._index.keys:  # some containers seek by one kind of time, some by the other
                with suppress(self._av.FFmpegError):
                    self._container.seek(times[key], stream=self.stream)
                    packets = _demux(self._container, self.stream)
                    if (first := self._find(key, packets)) is not None:
                        return chain([first], packets)
        if not self._is_fresh:
            self.close()
            self._container, self.stream = _open(self._path)
        self._is_fresh = False
        packets = _demux(self._container, self.stream)
        if key < 0:
            return packets
        if (first := self._find(key, packets)) is None:
            raise InputError(f"{self._path!r} has changed since it was opened; open it again.")
        return chain([first], packets)

    def _find(self, key: int, packets: Iterator[av.Packet]) -> av.Packet | None:
        """A keyframe's packet, unless a later keyframe comes first."""
        target = self._index.keys[0][key]
        for packet in packets:
            time = _time(packet)
            if packet.is_keyframe and time is not None and time >= target:
                return packet if time == target else None
        return None


class VideoFile:
    """The frames of a video file, known by their rank in order of presentation.

    `size_hw` is that of the upright pictures, `fps` the mean, or None where nothing tells it, and `damage`
    says why the file ends before it should, or is None. Raises `InputError` for what is no video, has no
    frame that can be decoded, or more pixels than a picture may have.
    """

    def __init__(self, path: str) -> None:
        index = _read_index(path)
        if not len(index.pts):
            raise InputError(
                f"{path!r} has no frames ({index.damage or 'its video stream is empty'}); {_REPAIR}."
            )
        with closing(_Decoder(path, index)) as decoder:
            rank, picture = decoder.first()
            self.size_hw = size_hw_of(decoder.pixels(0, picture))
            rate = decoder.stream.average_rate
        # Nothing before the first whole picture can be shown, as where a recording starts within a group.
        self.name, self._path, self._index = repr(path), path, replace(index, pts=index.pts[rank:])
        self.num_frames = len(self._index.pts)
        seconds = self._index.seconds(self.num_frames - 1)
        self.fps = (self.num_frames - 1) / seconds if seconds > 0 else float(rate or 0) or None
        self.damage = (
            index.damage and f"{path!r} ends after {self.num_frames} frames: {index.damage}; {_REPAIR}."
        )
        self._lock = threading.Lock()  # the following serve `frame`
        self._decoder: _Decoder | None = None
        self._ahead: Iterator[VideoFrame] | None = None  # gives the frame `_next`
        self._next = 0
        self._recent: deque[Frame] = deque(maxlen=frames_ahead(self.size_hw))

    def forward(self, start: int, stop: int, is_cancelled: Cancelled = never) -> Frames:
        """Frames start .. stop - 1."""
        with closing(_Decoder(self._path, self._index)) as decoder:
            for index, picture in enumerate(decoder.read(start, stop, is_cancelled), start):
                yield self._frame(index, decoder.pixels(index, picture))

    def backward(self, start: int, stop: int, is_cancelled: Cancelled = never) -> Frames:
        """Frames start, start - 1 .. stop + 1, a group of pictures at a time.

        A group of more than `HELD_BYTES` is decoded several times, and the last frames of it are kept.
        """
        ahead = frames_ahead(self.size_hw)
        most = max(1, HELD_BYTES // (3 * self.size_hw[0] * self.size_hw[1]) - ahead)
        with closing(_Decoder(self._path, self._index)) as decoder:
            end = start + 1
            while end > stop + 1 and not is_cancelled():
                group = self._index.rank_of(self._index.key_before(end - 1))
                begin = max(group, stop + 1, end - most)
                pictures = decoder.read(begin, end, is_cancelled)
                held = [self._frame(i, decoder.pixels(i, p)) for i, p in enumerate(pictures, begin)]
                while held:
                    yield held.pop()
                end = begin

    def frame(self, index: int) -> Frame:
        """One frame. One after the other they are decoded once each."""
        with self._lock:
            for frame in self._recent:
                if frame.index == index:
                    return frame
            first = self._index.rank_of(self._index.key_before(index))
            decoder = self._decoder = self._decoder or _Decoder(self._path, self._index)
            if self._ahead is None or not first <= self._next <= index:
                self._ahead, self._next = decoder.read(index, self.num_frames, never), index
            ahead, self._ahead = self._ahead, None  # not used again if it fails
            picture = next(islice(ahead, index - self._next, None))
            frame = self._frame(index, decoder.pixels(index, picture))
            self._ahead, self._next = ahead, index + 1
            self._recent.append(frame)
            return frame

    def _frame(self, index: int, pixels: np.ndarray) -> Frame:
        check_size(size_hw_of(pixels), self.size_hw, index, repr(self._path))
        return Frame(index, self._index.seconds(index), pixels)

    def close(self) -> None:
        """Close what `frame` keeps open."""
        with self._lock:
            self._ahead = None
            self._recent.clear()
            if self._decoder is not None:
                self._decoder.close()
                self._decoder = None
