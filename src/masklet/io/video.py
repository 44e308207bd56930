"""Videos in: files, folders of pictures, cameras, arrays.

In: anything that gives pictures one after the other. Out: a `VideoSource`, which gives them as frames: rank,
time and (H, W, 3) uint8 RGB. Knows nothing about models or tracking, nor how a video file is decoded.
"""

from __future__ import annotations

import glob
import operator
import os
import re
import sys
import threading
import weakref
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import chain, islice
from typing import Any, Protocol

import numpy as np

from masklet.errors import InputError
from masklet.io.image import read_image
from masklet.io.video_file import (
    Cancelled,
    Converter,
    Frames,
    VideoFile,
    check_size,
    frames_ahead,
    import_av,
    never,
    size_hw_of,
)
from masklet.types import Frame

# Which files of a folder are frames: formats that Pillow reads.
_PICTURES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif",
    ".tiff", ".webp",
)  # fmt: skip

_KEEP = "to read frames again, give a file, a folder or a list"


def open_video(source: Any, *, size_hw: tuple[int, int] | None = None) -> VideoSource:
    """Frames from

    - the path of a video: mp4, mov, webm, mkv, gif, avi, ts, mpg, flv, wmv.
    - the path of a folder of pictures, or a glob: in natural order, 2.jpg before 10.jpg. Hidden files and
      those without a picture's suffix are passed over.
    - a list or tuple of what `read_image` takes, or an array (F, H, W, 3).
    - any other iterable of such pictures, a generator for example: handed on one by one, once.
    - the number of a camera, from 0.

    All frames have one size: `size_hw` (height, width), or else the first frame's. To know that, an iterable
    is asked for its first picture at once, unless `size_hw` is given. Raises `InputError`.
    """
    expected_hw = None if size_hw is None else _checked_size(size_hw)
    opened = _open(source, expected_hw)
    if expected_hw is not None and opened.size_hw != expected_hw:
        opened.close()
        check_size(opened.size_hw, expected_hw, 0, opened.name)
    return opened


def _open(source: Any, size_hw: tuple[int, int] | None) -> VideoSource:
    if isinstance(source, (str, os.PathLike)):
        return _path(os.fsdecode(source))
    if isinstance(source, (int, np.integer)) and not isinstance(source, bool) and source >= 0:
        return _camera(int(source))
    if not isinstance(source, (bytes, bytearray, memoryview)):
        if isinstance(source, Sequence) or (isinstance(source, np.ndarray) and source.ndim == 4):
            return _Seekable(_Pictures(source, f"the {type(source).__name__}"))
        if isinstance(source, Iterable) and not isinstance(source, np.ndarray):
            return _iterated(iter(source), size_hw)
    got = f"an array of shape {source.shape}" if isinstance(source, np.ndarray) else repr(source)[:80]
    raise InputError(
        "A video must be the path of a file or folder, a glob, pictures (a list, an array (F, H, W, 3) or an "
        f"iterator) or a camera's number from 0, got {got}."
    )


def _path(path: str) -> VideoSource:
    name = repr(path)
    if os.path.isdir(path):
        return _picture_files(pictures_in(path), f"the folder {name}")
    if os.path.isfile(path):
        file = VideoFile(path)
        return _Seekable(file, frames_ahead(file.size_hw))
    if os.path.exists(path):
        raise InputError(f"{name} is a device or a pipe; save the video to a file first.")
    if glob.has_magic(path) and "\0" not in path:
        named = f"the glob {name}"
        return _picture_files(_pictures_among(glob.glob(path, recursive=True), named), named)
    raise InputError(f"There is no file {name}{'; download it first' if '://' in path else ''}.")


def _picture_files(files: list[str], name: str) -> VideoSource:
    pictures = _Pictures(files, name)
    return _Seekable(pictures, frames_ahead(pictures.size_hw))


def pictures_in(folder: str) -> list[str]:
    """The picture files of a folder in natural order, told by their names; hidden ones are passed over.

    Raises `InputError` where there are none.
    """
    name = f"the folder {folder!r}"
    try:
        found = [os.path.join(folder, entry) for entry in os.listdir(folder) if not entry.startswith(".")]
    except OSError as error:
        raise InputError(f"Cannot read {name}: {error.strerror}.") from error
    return _pictures_among(found, name)


def _pictures_among(paths: list[str], name: str) -> list[str]:
    files = [path for path in paths if path.lower().endswith(_PICTURES) and os.path.isfile(path)]
    if not files:
        raise InputError(
            f"There are no pictures in {name} ({len(paths)} other files and folders). Names of pictures end "
            f"in {' '.join(_PICTURES)}; a video is opened by its own path."
        )
    return sorted(files, key=_natural)


def _natural(path: str) -> tuple[list[str | int], str]:
    """A key by which numbers in names sort as numbers."""
    parts = re.split(r"([0-9]+)", path)
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], path


def _iterated(pictures: Iterator[Any], size_hw: tuple[int, int] | None) -> VideoSource:
    name, first = "the iterator", []
    if size_hw is None:
        first = [_read(picture, 0, name) for picture in islice(pictures, 1)]
        if not first:
            raise _nothing_in(name)
        size_hw = size_hw_of(first[0].pixels)
    rest = (_read(picture, index, name) for index, picture in enumerate(pictures, len(first)))
    return _Once(chain(first, rest), lambda: None, name, size_hw)  # closing it is the caller's business


def _nothing_in(name: str) -> InputError:
    return InputError(f"There are no pictures in {name}; give at least one.")


def _checked_size(size_hw: Any) -> tuple[int, int]:
    with suppress(TypeError, ValueError):
        height, width = (operator.index(side) for side in size_hw)
        if height > 0 and width > 0:
            return height, width
    raise InputError(f"size_hw must be the height and width of all frames in pixels, got {size_hw!r}.")


def _integer(value: Any, name: str) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise InputError(f"The {name} must be an integer, got {value!r}.") from None


class VideoSource(ABC):
    """Frames of one size, in order. Made by `open_video`; a context manager, which closes it.

    `num_frames` is None where only reading to the end tells; `fps` is the mean, None without a clock. A
    `seekable` source gives any frame, any number of times. `damage` says why a file has fewer frames than it
    should; it is None for whole ones.
    """

    seekable: bool

    def __init__(
        self,
        name: str,
        size_hw: tuple[int, int],
        num_frames: int | None = None,
        fps: float | None = None,
        damage: str | None = None,
    ) -> None:
        self.name, self.size_hw, self.num_frames = name, size_hw, num_frames
        self.fps, self.damage = fps, damage
        self._is_closed = False

    @abstractmethod
    def frames(self, start: int | None = None, stop: int | None = None, reverse: bool = False) -> Frames:
        """Frames from `start` up to `stop`, or down to it with `reverse`; like a range, without `stop`.

        Left out, they mean all frames, from the first to the last or from the last to the first; a source
        that is not seekable goes on where it is. A `stop` beyond the end is the end. Raises `InputError` at
        once for a `start` that does not exist, and later where a frame cannot be decoded, has another size,
        or is missing because the file is cut off. Frames are decoded while the iterator is read.
        """

    @abstractmethod
    def frame(self, index: int) -> Frame:
        """One frame. Raises `InputError` where there is none, or the source is not seekable."""

    def close(self) -> None:
        """Close the files. Iterators that still run end with an `InputError`."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise InputError(f"The video {self.name} was closed; open it again.")

    def __enter__(self) -> VideoSource:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        number = "" if self.num_frames is None else f", {self.num_frames} frames"
        rate = "" if self.fps is None else f", {self.fps:.4g} fps"
        return f"<VideoSource {self.name}: {self.size_hw[0]} x {self.size_hw[1]}{number}{rate}>"


# ------------------------------------------------------------------------------------------- seekable sources


class _Reader(Protocol):
    """Frames by index; the caller sees to it that they exist."""

    name: str
    size_hw: tuple[int, int]
    num_frames: int
    fps: float | None
    damage: str | None

    def forward(self, start: int, stop: int, is_cancelled: Cancelled) -> Frames: ...
    def backward(self, start: int, stop: int, is_cancelled: Cancelled) -> Frames: ...
    def frame(self, index: int) -> Frame: ...
    def close(self) -> None: ...


class _Seekable(VideoSource):
    """Frames of a reader; `depth` of them are decoded ahead in a background thread, if it is not 0."""

    seekable = True
    num_frames: int

    def __init__(self, reader: _Reader, depth: int = 0) -> None:
        super().__init__(reader.name, reader.size_hw, reader.num_frames, reader.fps, reader.damage)
        self._reader, self._depth = reader, depth
        self._running: weakref.WeakSet[_Ahead] = weakref.WeakSet()

    def frames(self, start: int | None = None, stop: int | None = None, reverse: bool = False) -> Frames:
        self._check_open()
        end = -1 if reverse else self.num_frames
        first = (self.num_frames - 1 if reverse else 0) if start is None else self._existing(start)
        last = end if stop is None else _integer(stop, "stop")
        damage = self.damage if not reverse and (stop is None or last > end) else None
        return self._pass(first, max(last, end) if reverse else min(last, end), reverse, damage)

    def _pass(self, start: int, stop: int, reverse: bool, damage: str | None) -> Frames:
        self._check_open()
        if stop < start if reverse else start < stop:
            read = self._reader.backward if reverse else self._reader.forward
            for frame in self._decoded(read, start, stop):
                self._check_open()
                yield frame
            self._check_open()
        if damage:
            raise InputError(damage)

    def _decoded(self, read: Callable[..., Frames], start: int, stop: int) -> Frames:
        if not self._depth:
            yield from read(start, stop, never)
            return
        with closing(_Ahead(lambda is_cancelled: read(start, stop, is_cancelled), self._depth)) as ahead:
            self._running.add(ahead)
            yield from ahead

    def frame(self, index: int) -> Frame:
        self._check_open()
        return self._reader.frame(self._existing(index))

    def _existing(self, index: int) -> int:
        index = _integer(index, "index of a frame")
        if not 0 <= index < self.num_frames:
            raise InputError(
                f"There is no frame {index} in {self.name}: frames are 0 to {self.num_frames - 1}."
            )
        return index

    def close(self) -> None:
        super().close()
        for ahead in list(self._running):
            ahead.close()
        self._reader.close()


class _Ahead:
    """An iterator whose items are made in a background thread, at most `depth` before they are asked for.

    `make` gets a function that says whether the rest is still wanted. Everything it opens, it opens, uses and
    closes in the thread. Errors come out where the item would have.
    """

    def __init__(self, make: Callable[[Cancelled], Frames], depth: int) -> None:
        self._make, self._depth = make, depth
        self._ready: deque[Frame] = deque()
        self._error: BaseException | None = None
        self._is_done = self._is_cancelled = False
        self._changed = threading.Condition()
        # A daemon, so that an iterator that somebody forgot about does not keep the program from ending.
        self._thread = threading.Thread(target=self._work, name="masklet-video", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            with closing(self._make(lambda: self._is_cancelled)) as items:
                while self._has_room() and (item := next(items, None)) is not None:
                    with self._changed:
                        self._ready.append(item)
                        self._changed.notify_all()
                    del item  # or it would be held while waiting for room
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that reads
            self._error = error
        with self._changed:
            self._is_done = True
            self._changed.notify_all()

    def _has_room(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._is_cancelled or len(self._ready) < self._depth)
            return not self._is_cancelled

    def __iter__(self) -> Iterator[Frame]:
        return self

    def __next__(self) -> Frame:
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._is_done or self._is_cancelled)
            if self._ready and not self._is_cancelled:
                self._changed.notify_all()
                return self._ready.popleft()
            error, self._error = self._error, None
        if error is not None and not self._is_cancelled:
            raise error
        raise StopIteration

    def close(self) -> None:
        with self._changed:
            self._is_cancelled = True
            self._ready.clear()
            self._changed.notify_all()
        if self._thread is not threading.current_thread():  # the garbage collector may call from there
            self._thread.join()


class _Pictures:
    """Files, arrays or PIL images as frames."""

    fps: float | None = None
    damage: str | None = None

    def __init__(self, items: Any, name: str) -> None:
        if not len(items):
            raise _nothing_in(name)
        self._items, self.name, self.num_frames = items, name, len(items)
        self._last: Frame | None = _read(items[0], 0, name)
        self.size_hw = size_hw_of(self._last.pixels)

    def frame(self, index: int) -> Frame:
        last = self._last  # one slot, replaced in one step: threads may meet here
        if last is None or last.index != index:
            item = self._items[index]
            last = _read(item, index, self.name)
            is_path = isinstance(item, (str, os.PathLike))
            name = f"{self.name} ({os.fspath(item)!r})" if is_path else self.name
            check_size(size_hw_of(last.pixels), self.size_hw, index, name)
            self._last = last
        return last

    def forward(self, start: int, stop: int, is_cancelled: Cancelled) -> Frames:
        yield from (self.frame(index) for index in range(start, stop))

    def backward(self, start: int, stop: int, is_cancelled: Cancelled) -> Frames:
        yield from (self.frame(index) for index in range(start, stop, -1))

    def close(self) -> None:
        self._last = None


def _read(item: Any, index: int, name: str) -> Frame:
    try:
        return Frame(index, None, read_image(item))
    except InputError as error:
        raise InputError(f"Frame {index} of {name}: {error}") from error


# ------------------------------------------------------------------------------------- sources that pass once


class _Once(VideoSource):
    """Frames of an iterator, handed on as they come."""

    seekable = False

    def __init__(self, frames: Iterator[Frame], close: Callable[[], None], *facts: Any, **more: Any) -> None:
        super().__init__(*facts, **more)
        self._frames, self._close, self._next = frames, close, 0

    def frames(self, start: int | None = None, stop: int | None = None, reverse: bool = False) -> Frames:
        self._check_open()
        if reverse:
            raise InputError(f"{self.name} comes frame by frame and cannot be read in reverse; {_KEEP}.")
        start = self._next if start is None else _integer(start, "start")
        if start < self._next:
            raise InputError(
                f"Frame {start} of {self.name} is gone: frames come once, and {self._next} is next; {_KEEP}."
            )
        return self._pass(start, None if stop is None else _integer(stop, "stop"))

    def _pass(self, start: int, stop: int | None) -> Frames:
        while stop is None or self._next < stop:
            self._check_open()
            if (frame := next(self._frames, None)) is None:
                if self._next == 0:
                    raise _nothing_in(self.name)
                return
            self._next = frame.index + 1
            check_size(size_hw_of(frame.pixels), self.size_hw, frame.index, self.name)
            if frame.index >= start:
                yield frame

    def frame(self, index: int) -> Frame:
        raise InputError(f"{self.name} comes frame by frame, none of them can be chosen by index; {_KEEP}.")

    def close(self) -> None:
        super().close()
        self._close()


# ----------------------------------------------------------------------------------------------------- camera


def _camera(number: int) -> VideoSource:
    name, av = f"camera {number}", import_av()
    try:
        format_name, address, options = _camera_address(number)
        container = av.open(address, format=format_name, options=options)
    except (av.FFmpegError, LookupError, OSError, ValueError) as error:
        raise _camera_error(f"The {name} does not open", error) from error
    try:
        frames = _camera_frames(container, name)
        first = next(frames)
        rate = container.streams.video[0].average_rate
    except BaseException:
        container.close()
        raise
    size_hw = size_hw_of(first.pixels)
    return _Once(chain([first], frames), container.close, name, size_hw, fps=float(rate or 0) or None)


def _camera_frames(container: Any, name: str) -> Frames:
    """Pictures as they come, without end."""
    av, convert, error = import_av(), Converter(), None
    index, first = 0, None
    try:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            pictures = []
            with suppress(av.error.InvalidDataError):  # cameras may begin with half a picture
                pictures = packet.decode()
            for picture in pictures:
                first = picture.pts if first is None else first
                time = None if picture.pts is None else float((picture.pts - first) * stream.time_base)
                yield Frame(index, time, convert(picture))
                index += 1
    except (av.FFmpegError, LookupError) as caught:
        error = caught
    raise _camera_error(f"The {name} stopped after {index} frames", error) from error


def _camera_error(what: str, error: Exception | None) -> InputError:
    reason = f" ({getattr(error, 'strerror', None) or error})" if error else ""
    return InputError(
        f"{what}{reason}. Check that it is connected (the first one is 0), that no other program uses it, "
        "and that this one may (Linux: the group of /dev/video*; macOS and Windows: the privacy settings)."
    )


def _camera_address(number: int) -> tuple[str, str, dict[str, str]]:
    """FFmpeg's input format, the device's name in it, and options."""
    if sys.platform == "darwin":
        return "avfoundation", f"{number}:none", {"framerate": "30"}  # its default of 29.97 is often refused
    if sys.platform == "win32":
        devices = [d for d in import_av().device.enumerate_input_devices("dshow") if "video" in d.media_types]
        return "dshow", f"video={devices[number].name}", {}
    return "v4l2", f"/dev/video{number}", {}
