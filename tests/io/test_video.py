"""Videos are generated here: picture `i` says its number in eight squares, which `number` reads off again."""

from __future__ import annotations

import gc
import io
import os
import random
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import av.device
import numpy as np
import pytest
from PIL import Image

from masklet.errors import InputError, MaskletError, MissingDependencyError
from masklet.io import video, video_file
from masklet.io.video import VideoSource, open_video
from masklet.types import Frame

N = 30
CLOSED_GROUPS = {"x264-params": "keyint=12:min-keyint=12:scenecut=0"}


def picture(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    pixels = np.full((height, width, 3), (40, 90, 160), np.uint8)
    pixels[8:24, number * 3 % 40 :][:, :16] = (220, 60, 30)
    for bit in range(8):
        pixels[-8:, bit * 8 : bit * 8 + 8] = 255 * (number >> bit & 1)
    return pixels


def number(pixels: np.ndarray) -> int:
    return sum(int(pixels[-4, bit * 8 + 4].mean() > 128) << bit for bit in range(8))


def numbers(frames: Any) -> list[int]:
    return [number(frame.pixels) for frame in frames]


def encode(
    path: Path,
    pictures: Any = N,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    times: Any = None,
    group: int = 12,
    b_frames: int = 2,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    container: str | None = None,
    prepare: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """A video of `pictures` (or the first so many), shown at `times` in milliseconds or 25 a second."""
    pictures = [picture(i) for i in range(pictures)] if isinstance(pictures, int) else pictures
    with av.open(str(path), "w", format=container, container_options=muxer or {}) as file:
        stream: Any = file.add_stream(codec, rate=25 if times is None else 1000, options=options or {})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.gop_size, stream.max_b_frames = pixel_format, group, b_frames
        prepare(stream)
        for index, pixels in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, 25 if times is None else 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def remux(
    source: Path, target: Path, change: Callable[[int, Any], Any], muxer: dict[str, str] | None = None
) -> Path:
    """The same packets in a new file, each replaced by what `change` gives for it and its number."""
    with av.open(str(source)) as old, av.open(str(target), "w", container_options=muxer or {}) as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        new.start_encoding()
        for index, packet in enumerate(packet for packet in old.demux(video=0) if packet.size):
            changed = change(index, packet)
            if changed is not None:
                changed.stream = stream
                new.mux(changed)
    return target


def with_data(packet: Any, data: bytes) -> Any:
    """A packet with other bytes at the same time."""
    new = av.Packet(data)
    new.pts, new.dts, new.time_base, new.duration = packet.pts, packet.dts, packet.time_base, packet.duration
    return new


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 pictures of 48 x 64, H.264 with B-frames, keyframes at 0, 12 and 24."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return encode(path, options=CLOSED_GROUPS)


def background_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "masklet-video"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    files = open_files()
    yield
    assert background_threads() == []
    gc.collect()
    assert open_files() == files


# ----------------------------------------------------------------------------------------------- video files

OPEN_GROUPS = {"x264-params": "open-gop=1:b-pyramid=normal:bframes=4:keyint=12:scenecut=0"}
FORMATS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mov": {},
    "h264.mkv": {"options": OPEN_GROUPS},
    "h264.flv": {},
    "h264.ts": {"container": "mpegts", "options": OPEN_GROUPS},
    "h264.avi": {},
    "mpeg4.mp4": {"codec": "mpeg4"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "wmv2.wmv": {"codec": "wmv2", "b_frames": 0, "container": "asf"},
    "vp8.webm": {"codec": "libvpx"},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"lag-in-frames": "16", "auto-alt-ref": "1"}},
    "ffv1.mkv": {"codec": "ffv1", "pixel_format": "yuv444p"},
    "prores.mov": {"codec": "prores_ks", "pixel_format": "yuv422p10le"},
    "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "a.gif": {"codec": "gif", "pixel_format": "rgb8"},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_every_way_of_reading_gives_the_same_frames(tmp_path: Path, name: str) -> None:
    with open_video(encode(tmp_path / name, **FORMATS[name])) as source:
        assert (source.size_hw, source.num_frames, source.seekable) == ((48, 64), N, True)
        assert source.fps == pytest.approx(25, rel=1e-3)
        assert source.damage is None
        frames = list(source.frames())
        assert [frame.index for frame in frames] == numbers(frames) == list(range(N))
        assert [frame.time for frame in frames] == pytest.approx([i / 25 for i in range(N)], abs=2e-3)
        assert all(frame.pixels.flags.c_contiguous and frame.pixels.flags.owndata for frame in frames)

        def same(others: Any, indices: Any) -> None:
            others, indices = list(others), list(indices)
            assert [other.index for other in others] == indices
            for other in others:
                assert other.time == frames[other.index].time
                np.testing.assert_array_equal(other.pixels, frames[other.index].pixels)

        same(source.frames(reverse=True), reversed(range(N)))
        same(source.frames(13, 20), range(13, 20))
        same(source.frames(20, 13, reverse=True), range(20, 13, -1))
        order = [29, 0, 17, 18, 19, 18, 11, 12, 5, 28]
        same((source.frame(index) for index in order), order)


def test_picture_of_odd_size(tmp_path: Path) -> None:
    odd = np.concatenate([picture(3, 47, 64), np.full((47, 1, 3), 200, np.uint8)], axis=1)
    path = encode(tmp_path / "a.mkv", [odd] * 3, "ffv1", "yuv444p")
    with open_video(path) as source:
        assert source.size_hw == (47, 65)
        np.testing.assert_allclose(source.frame(1).pixels, odd, atol=3)  # YUV rounds


def test_one_frame(tmp_path: Path) -> None:
    with open_video(encode(tmp_path / "a.mp4", 1)) as source:
        assert source.num_frames == 1
        assert [frame.time for frame in source.frames()] == [0]
        assert source.fps == 25


def test_variable_frame_rate(tmp_path: Path) -> None:
    times = [500, 510, 515, 600, 601, 900]
    with open_video(encode(tmp_path / "a.mkv", 6, times=times)) as source:
        assert [frame.time for frame in source.frames()] == pytest.approx(
            [0, 0.01, 0.015, 0.1, 0.101, 0.4], abs=1e-9
        )
        assert source.fps == pytest.approx(5 / 0.4)


def test_file_that_begins_within_a_group(tmp_path: Path, clip: Path) -> None:
    """An edit list: the packets before are decoded, their pictures are not shown."""

    def earlier(index: int, packet: Any) -> Any:
        shift = round(17 / 25 / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        return packet

    with open_video(remux(clip, tmp_path / "a.mp4", earlier, {"avoid_negative_ts": "disabled"})) as source:
        assert source.num_frames == 13
        assert numbers(source.frames()) == list(range(17, 30))
        assert numbers(source.frames(reverse=True)) == list(range(29, 16, -1))
        assert [source.frame(0).time, number(source.frame(6).pixels)] == [0, 23]


def test_file_that_ends_within_a_group(tmp_path: Path, clip: Path) -> None:
    """An edit list again: packets after its end are there for the frames before."""
    data = bytearray(clip.read_bytes())
    at = data.index(b"elst") + 12  # version 0: one entry, of a duration in milliseconds
    assert struct.unpack(">L", data[at : at + 4]) == (1200,)
    data[at : at + 4] = struct.pack(">L", 400)
    (tmp_path / "a.mp4").write_bytes(data)
    with open_video(tmp_path / "a.mp4") as source:
        assert source.num_frames == 10
        assert numbers(source.frames()) == list(range(10))
        assert numbers(source.frames(reverse=True)) == list(reversed(range(10)))


def test_recording_that_begins_within_a_group(tmp_path: Path) -> None:
    """Frames before the first keyframe cannot be decoded: they do not exist."""
    data = encode(tmp_path / "a.ts", codec="mpeg2video").read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(data[len(data) * 2 // 5 // 188 * 188 :])
    with open_video(cut) as source:
        assert numbers(source.frames()) == [24, 25, 26, 27, 28, 29]
        assert numbers(source.frames(reverse=True)) == [29, 28, 27, 26, 25, 24]
        assert source.frame(0).time == 0


def test_hidden_pictures_are_no_frames(tmp_path: Path) -> None:
    def hide(index: int, packet: Any) -> Any:
        data = bytearray(bytes(packet))
        data[0] &= ~0x10  # VP8's show_frame
        return with_data(packet, bytes(data)) if index == 5 else packet

    path = remux(encode(tmp_path / "a.webm", codec="libvpx", pictures=12), tmp_path / "b.webm", hide)
    with open_video(path) as source:
        assert source.num_frames == 11
        assert numbers(source.frames()) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_packets_that_mean_the_same_picture_again(tmp_path: Path, suffix: str) -> None:
    def not_coded(index: int, packet: Any) -> Any:  # MPEG-4's way to say "as before"
        return with_data(packet, b"\0\0\1\xb6\x55\0") if index in (7, 29) else packet

    path = encode(tmp_path / f"a.{suffix}", codec="mpeg4", b_frames=0)
    with open_video(remux(path, tmp_path / f"b.{suffix}", not_coded)) as source:
        expected = [*range(7), 6, *range(8, 29), 28]
        assert numbers(source.frames()) == expected
        assert numbers(source.frames(reverse=True)) == expected[::-1]
        assert number(source.frame(7).pixels) == 6


def test_stream_that_begins_later() -> None:
    """PyAV raises IndexError behind the last packet of a file in which a further stream turned up."""

    class Container:
        def demux(self, stream: Any) -> Iterator[str]:
            yield from ("packet", "the empty packet at the end")
            raise IndexError("list index out of range")

    packets = video_file._demux(Container(), None)  # type: ignore[arg-type]
    assert list(packets) == ["packet", "the empty packet at the end"]


def test_title_in_an_old_encoding(tmp_path: Path) -> None:
    """PyAV raised UnicodeDecodeError."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as file:
        file.metadata["title"] = "QQQQ"
        stream: Any = file.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(picture(7), format="rgb24")))
        file.mux(stream.encode(None))
    path.write_bytes(path.read_bytes().replace(b"QQQQ", b"\xe9\xff\xe8\xfe"))
    with open_video(path) as source:
        assert numbers(source.frames()) == [7]


# ---------------------------------------------------------------------------------------- what a person sees

TURNS: dict[str, tuple[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]]] = {
    "upright": ((1, 0, 0, 1), lambda p: p),
    "clockwise": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "upside down": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "counterclockwise": ((0, -1, 1, 0), lambda p: np.rot90(p)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "flipped": ((1, 0, 0, -1), np.flipud),
    "transposed": ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
    "transversed": ((0, -1, -1, 0), lambda p: np.rot90(p, 2).transpose(1, 0, 2)),
}


@pytest.mark.parametrize("turn", TURNS)
def test_display_matrix(tmp_path: Path, clip: Path, turn: str) -> None:
    (a, b, c, d), turned = TURNS[turn]
    data = bytearray(clip.read_bytes())
    at = (
        data.index(b"tkhd") + 4 + 4 + 20 + 16
    )  # version 0: times and durations, then the layer and the volume
    data[at : at + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    (tmp_path / "a.mp4").write_bytes(data)
    with open_video(clip) as source:
        stored = source.frame(5).pixels
    with open_video(tmp_path / "a.mp4") as source:
        frame = source.frame(5)
        np.testing.assert_array_equal(frame.pixels, turned(stored))
        assert source.size_hw == frame.pixels.shape[:2]
        assert frame.pixels.flags.c_contiguous


BARS = np.array(
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 128, 128), (200, 60, 30)],
    np.uint8,
)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", ["itu601", "itu709"])
@pytest.mark.parametrize(
    "pixel_format", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"]
)
def test_colours(tmp_path: Path, pixel_format: str, matrix: str, full_range: bool) -> None:
    path, options = tmp_path / "a.mkv", {"dst_colorspace": matrix, "dst_color_range": 2 if full_range else 1}
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=25, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = 48, 112, pixel_format
        stream.codec_context.color_range = 2 if full_range else 1
        stream.codec_context.colorspace = {"itu601": 5, "itu709": 1}[matrix]
        bars = np.tile(BARS.repeat(16, axis=0), (48, 1, 1))
        frame = av.VideoFrame.from_ndarray(bars, format="rgb24").reformat(format=pixel_format, **options)
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with open_video(path) as source:
        seen = source.frame(0).pixels[24, 8::16].astype(int)
    assert (
        np.abs(seen - BARS).max() <= 3
    )  # 8-bit YUV rounds to 2, another matrix or range is off by 10 and more


@pytest.mark.parametrize("disposal", [0, 1, 2, [1, 2, 3, 1, 2]])
@pytest.mark.parametrize("transparency", [{}, {"transparency": 0}])
def test_animated_gif(tmp_path: Path, disposal: Any, transparency: dict[str, int]) -> None:
    """Pictures are put together as Pillow does, over white."""
    pictures = []
    for index in range(5):
        image = Image.new("P", (32, 24), 0)
        image.putpalette([255, 255, 255, 255, 0, 0, 0, 0, 255, 0, 255, 0] + [0] * 756)
        image.paste(1 + index % 3, (index * 5, 4, index * 5 + 8, 16))
        pictures.append(image)
    path = tmp_path / "a.gif"
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=[100, 50, 20, 200, 70], disposal=disposal,
        optimize=False, **transparency,
    )  # fmt: skip
    with open_video(path) as source:
        frames = list(source.frames())
    with Image.open(path) as image:
        for index, frame in enumerate(frames):
            image.seek(index)
            shown = Image.new("RGBA", image.size, "white")
            shown.alpha_composite(image.convert("RGBA"))
            np.testing.assert_array_equal(frame.pixels, np.asarray(shown.convert("RGB")))
    assert [frame.time for frame in frames] == pytest.approx([0, 0.1, 0.15, 0.17, 0.37])


# ------------------------------------------------------------------------------------------ how it is decoded


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ranks of all pictures that come out of the decoder, in order."""
    ranks: list[int] = []
    decode = video_file._Decoder._decode

    def recorded(self: Any, key: int) -> Iterator[Any]:
        for rank, shown in decode(self, key):
            ranks.append(rank)
            yield rank, shown

    monkeypatch.setattr(video_file._Decoder, "_decode", recorded)
    return ranks


def test_each_frame_is_decoded_once_and_from_the_nearest_keyframe(clip: Path, decoded: list[int]) -> None:
    with open_video(clip) as source:
        for start, first in ((0, 0), (11, 0), (12, 12), (26, 24)):
            decoded.clear()
            list(source.frames(start))
            assert decoded == list(range(first, N))


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "mpeg4.avi", "vp9.webm"])
def test_a_late_frame_is_sought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Not found by reading from the start. Each container is sought by the time that it knows."""
    read, demux = [], video_file._demux

    def recorded(*arguments: Any) -> Iterator[Any]:
        for packet in demux(*arguments):
            read.append(packet.size)
            yield packet

    with open_video(encode(tmp_path / name, 60, **FORMATS[name])) as source:
        monkeypatch.setattr(video_file, "_demux", recorded)
        assert number(source.frame(49).pixels) == 49
        assert len(read) < 25


def test_neighbours_are_decoded_once(clip: Path, decoded: list[int]) -> None:
    with open_video(clip) as source:
        decoded.clear()
        for index in (14, 15, 16, 16, 15, 20, 25):
            assert number(source.frame(index).pixels) == index
        assert decoded == [*range(12, 21), 24, 25]


def test_reverse_decodes_each_group_once(clip: Path, decoded: list[int]) -> None:
    with open_video(clip) as source:
        decoded.clear()
        list(source.frames(27, 5, reverse=True))
        assert decoded == [24, 25, 26, 27, *range(12, 24), *range(12)]


@pytest.mark.parametrize("bound", [1, 5, 6, 9, 100])
def test_reverse_keeps_its_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bound: int) -> None:
    monkeypatch.setattr(video_file, "HELD_BYTES", bound * 48 * 64 * 3)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Watched(video_file.Converter):
        def __call__(self, picture: Any) -> np.ndarray:
            nonlocal most
            pixels = super().__call__(picture)
            alive.add(memory := Held(pixels))
            most = max(most, len(alive))
            return memory.view()

    class Held(np.ndarray):
        """An array that a weak set takes."""

        def __new__(cls, pixels: np.ndarray) -> Any:
            return pixels.view(cls)

        __hash__ = object.__hash__  # type: ignore[assignment]
        __eq__ = object.__eq__  # type: ignore[assignment]

    monkeypatch.setattr(video_file, "Converter", Watched)
    with open_video(encode(tmp_path / "a.mp4", group=N)) as source:
        seen = []
        for frame in source.frames(reverse=True):
            seen.append(number(frame.pixels))
            del frame
        assert seen == list(reversed(range(N)))
        assert most <= max(bound, 2) + 1  # and the one that the caller has


def test_a_pass_leaves_nothing_to_the_garbage_collector(clip: Path) -> None:
    """Asking a PyAV frame for its side data made a reference cycle, and memory grew by every frame."""
    left = []
    with open_video(clip) as source:
        for stop in (2, N, 2, N):
            gc.collect()
            gc.disable()
            for _ in source.frames(0, stop):
                pass
            gc.enable()
            left.append(gc.collect())
    assert left[2] == left[3]


# ---------------------------------------------------------------------------------------------- reading ahead


def test_only_a_few_frames_are_decoded_ahead(clip: Path, decoded: list[int]) -> None:
    with open_video(clip) as source:
        decoded.clear()
        frames = source.frames()
        next(frames)
        wait_for(lambda: len(decoded) > video_file.FRAMES_AHEAD)
        assert not wait_for(lambda: len(decoded) > video_file.FRAMES_AHEAD + 1, seconds=0.1)
        assert len(background_threads()) == 1
        frames.close()


def wait_for(condition: Callable[[], bool], seconds: float = 5) -> bool:
    until = threading.Event()
    for _ in range(int(seconds * 200)):
        if condition():
            return True
        until.wait(0.005)
    return condition()


def test_no_thread_before_the_first_frame(clip: Path) -> None:
    with open_video(clip) as source:
        frames = source.frames()
        assert background_threads() == []
        frames.close()


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("way", ["close", "break", "forget", "error", "close the source"])
def test_the_thread_ends_with_its_reader(clip: Path, way: str, reverse: bool) -> None:
    source = open_video(clip)
    frames = source.frames(reverse=reverse)
    next(frames)
    assert len(background_threads()) == 1
    if way == "close":
        frames.close()
    elif way == "break":
        for _ in frames:
            break
        frames.close()
    elif way == "forget":
        del frames
    elif way == "error":
        with pytest.raises(KeyError):
            frames.throw(KeyError("by the caller"))
    else:
        source.close()
        assert background_threads() == []
        with pytest.raises(InputError, match="was closed; open it again"):
            next(frames)
    assert background_threads() == []
    source.close()


def test_nothing_is_finished_for_a_reader_that_is_gone(clip: Path, decoded: list[int]) -> None:
    file = video_file.VideoFile(str(clip))
    for read in (file.forward, file.backward):
        decoded.clear()
        start, stop = (11, 12) if read == file.forward else (11, 10)
        assert list(read(start, stop, lambda: len(decoded) >= 3)) == []
        assert decoded == [0, 1, 2]

    def endless(is_cancelled: Callable[[], bool]) -> Iterator[Any]:
        cancelled.append(wait_for(is_cancelled))
        yield from ()

    cancelled: list[bool] = []
    ahead = video._Ahead(endless, 4)  # type: ignore[arg-type]
    ahead.close()
    assert cancelled == [True]


def test_an_error_in_the_thread_comes_out_in_order(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, convert = open_video(clip), video_file.Converter.__call__

    def failing(self: Any, shown: Any) -> np.ndarray:
        pixels = convert(self, shown)
        if number(pixels) == 5:
            raise RuntimeError("at 5")
        return pixels

    monkeypatch.setattr(video_file.Converter, "__call__", failing)
    frames, seen = source.frames(), []
    with pytest.raises(RuntimeError, match="at 5"):
        seen.extend(number(frame.pixels) for frame in frames)
    assert next(frames, None) is None
    with pytest.raises(RuntimeError, match="at 5"):
        source.frame(5)
    assert number(source.frame(6).pixels) == 6
    source.close()


def test_passes_and_single_frames_do_not_disturb_each_other(clip: Path) -> None:
    with open_video(clip) as source:
        source.frame(3)
        forward, backward = source.frames(), source.frames(reverse=True)
        for index in range(N):
            assert number(next(forward).pixels) == index
            assert number(next(backward).pixels) == N - 1 - index
            assert number(source.frame(index * 7 % N).pixels) == index * 7 % N
        forward.close()
        backward.close()


def test_a_closed_source(clip: Path) -> None:
    source = open_video(clip)
    late = source.frames()
    source.frame(3)
    source.close()
    source.close()
    for read in (source.frames, lambda: source.frame(0), lambda: next(late)):
        with pytest.raises(InputError, match="was closed"):
            read()


def test_repr(clip: Path) -> None:
    with open_video(clip) as source:
        assert repr(source) == f"<VideoSource {str(clip)!r}: 48 x 64, 30 frames, 25 fps>"
    assert repr(open_video(iter([picture(0)]))) == "<VideoSource the iterator: 48 x 64>"


# -------------------------------------------------------------------------------------------------- bad files


def frames_until_error(source: VideoSource, **options: Any) -> tuple[list[int], str]:
    seen: list[int] = []
    with source, pytest.raises(InputError) as caught:
        seen.extend(number(frame.pixels) for frame in source.frames(**options))
    return seen, str(caught.value)


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        open_video(source, **options)
    return str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    assert refused(tmp_path / "a.mp4") == f"There is no file {str(tmp_path / 'a.mp4')!r}."
    assert refused("https://example.com/a.mp4").endswith("download it first.")
    assert refused("a\0*.mp4").startswith("There is no file")
    assert refused("") == "There is no file ''."


def test_not_a_video(tmp_path: Path) -> None:
    text = b"It was a dark and stormy night.\n" * 100
    for name, data in (("a.txt", text), ("a.mp4", text), ("b.mp4", b""), ("c.mp4", bytes(9999))):
        (tmp_path / name).write_bytes(data)
        message = refused(tmp_path / name)
        assert message.startswith(f"{str(tmp_path / name)!r} ")
        assert "mp4, mov, webm, mkv, gif" in message
    assert "no video in a format that is read" in refused(
        tmp_path / "a.txt"
    )  # FFmpeg shows text as a picture
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    assert "give pictures as a folder or a list" in refused(tmp_path / "a.png")


def test_a_playlist_opens_no_other_file(tmp_path: Path) -> None:
    encode(tmp_path / "a.mp4", 3)
    (tmp_path / "b.mp4").write_text("ffconcat version 1.0\nfile a.mp4\n")
    with av.open(str(tmp_path / "b.mp4")) as file:  # FFmpeg by itself follows it
        assert len(list(file.decode(video=0))) == 3
    assert "no video in a format that is read" in refused(tmp_path / "b.mp4")


@pytest.mark.skipif(not os.path.exists("/dev/zero"), reason="a device of Linux and macOS")
def test_a_device_is_no_file() -> None:
    assert refused("/dev/zero") == "'/dev/zero' is a device or a pipe; save the video to a file first."


@pytest.mark.parametrize("cover", [False, True])
def test_no_video_stream(tmp_path: Path, cover: bool) -> None:
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w", format="mp4") as file:
        sound: Any = file.add_stream("aac", rate=44100, layout="mono")
        if cover:
            image: Any = file.add_stream("mjpeg", rate=1)
            image.height, image.width, image.pix_fmt, image.color_range = 48, 64, "yuvj420p", 2
            image.disposition = av.stream.Disposition.attached_pic
        sample = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sample.rate = 44100
        file.mux(sound.encode(sample))
        file.mux(sound.encode(None))
        if cover:
            frame = av.VideoFrame.from_ndarray(picture(0), format="rgb24")
            file.mux(image.encode(frame.reformat(format="yuvj420p")))
            file.mux(image.encode(None))
    kinds = "a cover picture, audio" if cover else "audio"
    assert f"has no video stream, only {kinds};" in refused(path)


def test_no_frames(tmp_path: Path, clip: Path) -> None:
    assert "no video stream" in refused(remux(clip, tmp_path / "a.mp4", lambda index, packet: None))
    assert "cannot be read as a video" in refused(remux(clip, tmp_path / "a.mkv", lambda index, packet: None))
    garbage = remux(clip, tmp_path / "b.mp4", lambda _, packet: with_data(packet, b"\xff" * packet.size))
    assert "Frame 0 of" in (message := refused(garbage))
    assert "cannot be decoded" in message


def test_index_of_a_file_is_missing(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    (tmp_path / "a.mp4").write_bytes(data[: data.index(b"moov") - 4])
    message = refused(tmp_path / "a.mp4")
    assert "cannot be read as a video" in message
    assert "cut off" in message


def test_file_is_cut_off(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All whole frames are given, then an error says that there were more. FFmpeg prints nothing."""
    path = encode(tmp_path / "whole.mp4", b_frames=0, muxer={"movflags": "faststart"})
    data = path.read_bytes()
    with av.open(str(path)) as file:
        ends = [packet.pos + packet.size for packet in file.demux(video=0) if packet.size]
    for index in (1, 12, 13, 28, 29):
        for cut, count in ((ends[index - 1], index), (ends[index] - 1, index)):
            if count == N:
                continue
            path = tmp_path / f"{index}-{cut}.mp4"
            path.write_bytes(data[:cut])
            source = open_video(path)
            assert source.num_frames == count
            assert numbers(source.frames(0, count)) == list(range(count))
            assert numbers(source.frames(reverse=True)) == list(reversed(range(count)))
            assert number(source.frame(count - 1).pixels) == count - 1
            seen, message = frames_until_error(source)
            assert seen == list(range(count))
            assert message == source.damage
            assert f"ends after {count} frames: the file is cut off" in message
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_file_with_reordered_frames_is_cut_off(tmp_path: Path, codec: str) -> None:
    """Later frames come first in the file: those that are there are shown at their times, and no half one."""
    path = encode(tmp_path / "whole.mp4", codec=codec, b_frames=4, muxer={"movflags": "faststart"})
    data = path.read_bytes()
    start = data.index(b"mdat") + 4
    for kept in range(50, 100, 2):
        path = tmp_path / f"{kept}.mp4"
        path.write_bytes(data[: start + (len(data) - start) * kept // 100])
        with open_video(path) as source:
            frames = list(source.frames(0, source.num_frames))
            assert numbers(frames) == [round((frame.time or 0) * 25) for frame in frames]
            assert [frame.index for frame in frames] == list(range(len(frames)))


def test_file_that_cannot_be_read_on(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames that the decoder had got before the error are given."""
    demux = video_file._demux

    def failing(container: Any, stream: Any) -> Iterator[Any]:
        yield from islice(demux(container, stream), 15)
        raise av.error.InvalidDataError(1, "no more")

    monkeypatch.setattr(video_file, "_demux", failing)
    source = open_video(clip)
    with av.open(str(clip)) as file:
        times = sorted(packet.pts for packet in islice(file.demux(video=0), 15))
        expected = [round(time * file.streams.video[0].time_base * 25) for time in times]
    seen, message = frames_until_error(source)
    assert seen == expected
    assert "ends after 15 frames: the file is cut off or damaged there (no more)" in message


@pytest.mark.parametrize("name", ["a.mkv", "a.webm", "a.ts"])
def test_streams_may_end_anywhere(tmp_path: Path, name: str) -> None:
    codec = "libvpx-vp9" if name == "a.webm" else "libx264"
    path = encode(tmp_path / name, codec=codec, b_frames=0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with open_video(path) as source:
        assert source.damage is None
        assert 0 < source.num_frames < N  # type: ignore[operator]
        assert numbers(source.frames()) == list(range(source.num_frames))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [("mp4", "libx264", CLOSED_GROUPS), ("webm", "libvpx-vp9", {}), ("avi", "mpeg4", {})],
)
def test_damage_in_the_middle(
    tmp_path: Path, suffix: str, codec: str, options: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    def damaged(index: int, packet: Any) -> Any:
        return with_data(packet, b"\xff" * packet.size) if 14 <= index < 18 else packet

    path = encode(tmp_path / f"a.{suffix}", codec=codec, b_frames=0, options=options)
    source = open_video(remux(path, tmp_path / f"b.{suffix}", damaged))
    assert source.num_frames == N
    assert number(source.frame(5).pixels) == 5
    assert number(source.frame(26).pixels) == 26
    for index in (15, 18, 23):  # up to the next keyframe, all lean on what is missing
        with pytest.raises(InputError, match=f"Frame {index} of .* cannot be decoded"):
            source.frame(index)
    assert number(source.frame(27).pixels) == 27
    assert numbers(source.frames(29, 23, reverse=True)) == [29, 28, 27, 26, 25, 24]
    seen, message = frames_until_error(source)
    assert seen == list(range(14))
    assert "Frame 14 of" in message
    assert "cannot be decoded" in message
    assert capfd.readouterr() == ("", "")


def test_damaged_keyframe(tmp_path: Path, clip: Path) -> None:
    def damaged(index: int, packet: Any) -> Any:
        return with_data(packet, b"\xff" * packet.size) if index == 12 else packet

    path = encode(tmp_path / "a.mp4", b_frames=0, options=CLOSED_GROUPS)
    source = open_video(remux(path, tmp_path / "b.mp4", damaged))
    for index in (12, 13, 23):
        with pytest.raises(InputError, match=f"Frame {index} of .* cannot be decoded"):
            source.frame(index)
    assert [number(source.frame(index).pixels) for index in (11, 24)] == [11, 24]
    assert frames_until_error(source)[0] == list(range(12))


def test_files_joined_end_to_end(tmp_path: Path) -> None:
    data = encode(tmp_path / "a.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(data * 2)
    seen, message = frames_until_error(open_video(tmp_path / "b.ts"))
    assert seen == list(range(N))
    assert "ends after 30 frames: its times jump back there" in message


def test_frames_of_changing_size(tmp_path: Path) -> None:
    small, large = ([picture(i, *size) for i in range(6)] for size in ((48, 64), (64, 80)))
    with av.open(str(tmp_path / "a.ts"), "w") as file:
        stream: Any = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        file.start_encoding()
        for start, pictures in ((0, small), (6, large)):
            encoder: Any = av.CodecContext.create("libx264", "w")
            encoder.height, encoder.width = pictures[0].shape[:2]
            encoder.pix_fmt, encoder.framerate, encoder.time_base = "yuv420p", Fraction(25), Fraction(1, 25)
            for index, pixels in enumerate([*pictures, None], start):
                frame = None if pixels is None else av.VideoFrame.from_ndarray(pixels, format="rgb24")
                if frame is not None:
                    frame.pts, frame.time_base = index, Fraction(1, 25)
                for packet in encoder.encode(frame):
                    packet.stream, packet.time_base = stream, Fraction(1, 25)
                    file.mux(packet)
    source = open_video(tmp_path / "a.ts")
    with pytest.raises(InputError, match=r"Frame 8 of .* is 64 x 80"):
        source.frame(8)
    assert number(source.frame(3).pixels) == 3
    seen, message = frames_until_error(source)
    assert seen == list(range(6))
    assert message.startswith(
        f"Frame 6 of {str(tmp_path / 'a.ts')!r} is 64 x 80 (height x width), all frames"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)  # 4000 pixels: enough for the small ones
        seen, message = frames_until_error(open_video(tmp_path / "a.ts"))
        assert seen == list(range(6))
        assert "Frame 6 of" in message
        assert "cannot be decoded" in message
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        assert "too many pixels: its frames are 64 x 48, the limit is 2000 pixels" in refused(
            tmp_path / "a.ts"
        )


def test_expected_size(clip: Path) -> None:
    open_video(clip, size_hw=(48, 64)).close()
    assert "Frame 0 of" in (message := refused(clip, size_hw=(64, 48)))
    assert "is 48 x 64 (height x width), all frames must be 64 x 48" in message
    for wrong in ((48,), (48, 0), (48.0, 64), 48, "ab"):
        assert "size_hw must be" in refused(clip, size_hw=wrong)


def test_frames_that_do_not_exist(clip: Path) -> None:
    with open_video(clip) as source:
        for wrong in (-1, N, 10**9):
            with pytest.raises(InputError, match=f"no frame {wrong} in .*: frames are 0 to 29"):
                source.frame(wrong)
            with pytest.raises(InputError, match="frames are 0 to 29"):
                source.frames(wrong)
        for wrong in (1.5, "1", None):
            with pytest.raises(InputError, match="must be an integer"):
                source.frame(wrong)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="stop must be an integer"):
            source.frames(0, 1.5)  # type: ignore[arg-type]
        assert numbers(source.frames(28, 99)) == [28, 29]
        assert numbers(source.frames(1, -99, reverse=True)) == [1, 0]
        assert numbers(source.frames(1, -1, reverse=True)) == [1, 0]
        assert numbers(source.frames(np.int64(3), np.int64(4))) == [3]
        assert list(source.frames(5, 5)) == list(source.frames(5, 2)) == list(source.frames(5, 9, True)) == []


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "h264.ts", "a.gif"])
def test_damaged_bytes(tmp_path: Path, name: str) -> None:
    """Whatever the bytes: frames, and errors of ours."""
    data = encode(tmp_path / name, 12, **{"group": 5, **FORMATS[name]}).read_bytes()
    for seed in range(30):
        chance, changed = random.Random(seed), bytearray(data)
        for _ in range(chance.choice((1, 3, 10, 50))):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        if chance.random() < 0.3:
            del changed[chance.randrange(1, len(changed)) :]
        path = tmp_path / f"{seed}-{name}"
        path.write_bytes(changed)
        try:
            source = open_video(path)
        except MaskletError:
            continue
        with source:
            for reverse in (False, True):
                with suppress(MaskletError):
                    assert len(list(source.frames(reverse=reverse))) == source.num_frames
            for index in (source.num_frames - 1, 0):  # type: ignore[operator]
                with suppress(MaskletError):
                    assert source.frame(index).pixels.shape == (*source.size_hw, 3)


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match="pip install masklet"):
        open_video(clip)
    assert open_video([picture(0)]).num_frames == 1


# ------------------------------------------------------------------------------------------ folders and globs


def save(path: Path, index: int) -> None:
    Image.fromarray(picture(index)).save(path)


@pytest.mark.parametrize(
    "names",
    [
        ["1.png", "2.bmp", "10.png"],
        ["00001.png", "00002.png", "00010.png"],
        ["a1b.png", "a2b.png", "a10a.png", "b1.png"],
        ["8.PNG", "9.png", "010.png"],
    ],
)
@pytest.mark.parametrize("by_glob", [False, True])
def test_pictures_in_natural_order(tmp_path: Path, names: list[str], by_glob: bool) -> None:
    for index, name in reversed(list(enumerate(names))):
        save(tmp_path / name, index)
    save(tmp_path / ".hidden.png", 99)
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "0.png.txt").write_bytes(b"x")
    (tmp_path / "0.png").mkdir()
    with open_video(str(tmp_path / "*") if by_glob else tmp_path) as source:
        assert (source.num_frames, source.size_hw, source.fps, source.seekable) == (
            len(names),
            (48, 64),
            None,
            True,
        )
        frames = list(source.frames())
        assert numbers(frames) == [frame.index for frame in frames] == list(range(len(names)))
        assert [frame.time for frame in frames] == [None] * len(names)
        assert numbers(source.frames(reverse=True)) == list(reversed(range(len(names))))
        assert [number(source.frame(index).pixels) for index in (2, 0, 0, 1)] == [2, 0, 0, 1]
        assert source.frame(2) is source.frame(2)


def test_glob(tmp_path: Path) -> None:
    for index, folder in enumerate(("2", "10")):
        (tmp_path / folder).mkdir()
        save(tmp_path / folder / "1.png", index)
    assert numbers(open_video(f"{tmp_path}/**/*.png").frames()) == [0, 1]
    assert "no pictures in the glob" in refused(f"{tmp_path}/*.jpg")
    (tmp_path / "[1]").mkdir()
    save(tmp_path / "[1]" / "a.png", 5)
    assert numbers(open_video(tmp_path / "[1]").frames()) == [5]


def test_folder_without_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    message = refused(tmp_path)
    assert message.startswith(
        f"There are no pictures in the folder {str(tmp_path)!r} (1 other files and folders)"
    )
    assert "a video is opened by its own path" in message


def test_bad_pictures_in_a_folder(tmp_path: Path) -> None:
    for index in range(5):
        save(tmp_path / f"{index}.png", index)
    data = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(data[: len(data) // 2])
    seen, message = frames_until_error(open_video(tmp_path))
    assert seen == [0, 1, 2]
    assert message.startswith(
        f"Frame 3 of the folder {str(tmp_path)!r}: The picture '{tmp_path}/3.png' is damaged"
    )
    Image.fromarray(picture(3, 50, 64)).save(tmp_path / "3.png")
    source = open_video(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"Frame 3 of .* \('.*3.png'\) is 50 x 64 .* must be 48 x 64"):
            source.frame(3)
    assert frames_until_error(source)[0] == [0, 1, 2]


# -------------------------------------------------------------------------------------- arrays and iterators


@pytest.mark.parametrize(
    "make", [list, tuple, np.stack, lambda pictures: [Image.fromarray(pixels) for pixels in pictures]]
)
def test_pictures_in_memory(make: Callable[[Any], Any]) -> None:
    with open_video(make([picture(index) for index in range(5)])) as source:
        assert (source.num_frames, source.size_hw, source.fps, source.seekable) == (5, (48, 64), None, True)
        frames = list(source.frames())
        assert numbers(frames) == [frame.index for frame in frames] == [0, 1, 2, 3, 4]
        assert numbers(source.frames(3, 0, reverse=True)) == [3, 2, 1]
        assert number(source.frame(2).pixels) == 2
        assert background_threads() == []


def test_an_iterator_is_asked_for_one_picture_at_a_time() -> None:
    asked: list[int] = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(10):
            asked.append(index)
            yield picture(index)

    source = open_video(pictures())
    assert (source.num_frames, source.size_hw, source.fps, source.seekable) == (None, (48, 64), None, False)
    frames = source.frames()
    assert asked == [0]
    first = next(frames)
    assert (first.index, first.time, asked) == (0, None, [0])
    assert next(frames).index == 1
    assert asked == [0, 1]
    frames.close()
    assert numbers(source.frames(stop=4)) == [2, 3]
    assert asked == [0, 1, 2, 3]
    assert numbers(source.frames(6, 8)) == [6, 7]
    with pytest.raises(InputError, match="Frame 3 of the iterator is gone: frames come once, and 8 is next"):
        source.frames(3)
    for read in (lambda: source.frames(reverse=True), lambda: source.frame(8)):
        with pytest.raises(InputError, match="give a file, a folder or a list"):
            read()
    assert numbers(source.frames()) == [8, 9]
    assert list(source.frames()) == []
    source.close()
    with pytest.raises(InputError, match="was closed"):
        source.frames()


def test_an_iterator_is_left_alone_where_the_size_is_known() -> None:
    def pictures() -> Iterator[np.ndarray]:
        raise RuntimeError("asked")
        yield

    source = open_video(pictures(), size_hw=(48, 64))
    assert source.size_hw == (48, 64)
    with pytest.raises(RuntimeError, match="asked"):
        list(source.frames())
    with pytest.raises(InputError, match=r"Frame 0 of the iterator is 48 x 64 .* must be 64 x 48"):
        list(open_video(iter([picture(0)]), size_hw=(64, 48)).frames())


def test_frames_of_an_iterator_are_not_kept() -> None:
    alive: list[weakref.ref[Any]] = []

    def pictures() -> Iterator[np.ndarray]:
        for index in range(6):
            pixels = picture(index)
            alive.append(weakref.ref(pixels))
            yield pixels

    most = 0
    for frame in open_video(pictures()).frames():
        del frame
        most = max(most, sum(reference() is not None for reference in alive))
    assert most <= 2  # the one above, and the one that the generator's own variable holds


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (picture(0).astype(np.float32), r"Frame 2 of the \w+: A picture array must be uint8"),
        (picture(0)[..., 0], r"Frame 2 of the \w+: A picture array must be \(H, W, 3\)"),
        (None, r"Frame 2 of the \w+: A picture must be a path"),
        (picture(0, 64, 64), r"Frame 2 of the \w+ is 64 x 64 \(height x width\), all frames must be 48 x 64"),
    ],
)
@pytest.mark.parametrize("make", [list, iter])
def test_wrong_pictures(make: Callable[[Any], Any], wrong: Any, message: str) -> None:
    frames, seen = open_video(make([picture(0), picture(1), wrong])).frames(), []
    with pytest.raises(InputError, match=message):
        seen.extend(number(frame.pixels) for frame in frames)
    assert seen == [0, 1]


@pytest.mark.parametrize("empty", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_pictures(empty: Any) -> None:
    assert refused(empty).startswith("There are no pictures in the ")


def test_no_pictures_from_an_iterator_of_known_size() -> None:
    with pytest.raises(InputError, match="There are no pictures in the iterator"):
        list(open_video(iter([]), size_hw=(4, 4)).frames())


@pytest.mark.parametrize(
    "source", [None, True, -1, 1.5, b"a.mp4", object(), io, np.zeros((4, 4, 3), np.uint8)]
)
def test_sources_of_another_kind(source: Any) -> None:
    message = refused(source)
    assert message.startswith("A video must be the path of a file or folder, a glob, pictures")
    assert len(message) < 300


# ----------------------------------------------------------------------------------------------------- camera


def test_no_camera() -> None:
    message = refused(99)
    assert message.startswith("The camera 99 does not open (")
    assert "Check that it is connected" in message


def test_camera(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "_camera_address", lambda index: ("mov", str(clip), {}))
    with open_video(0) as source:
        assert (source.num_frames, source.size_hw, source.fps, source.seekable) == (None, (48, 64), 25, False)
        frames: list[Frame] = []
        with pytest.raises(
            InputError, match=r"The camera 0 stopped after 30 frames\. Check that it is connected"
        ):
            frames.extend(source.frames())
        assert [frame.index for frame in frames] == numbers(frames) == list(range(N))
        assert [frame.time for frame in frames] == pytest.approx([index / 25 for index in range(N)])
    source = open_video(0)
    frame = next(source.frames())
    source.close()
    assert number(frame.pixels) == 0
    with pytest.raises(InputError, match="was closed"):
        source.frames()


def test_camera_without_pictures(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = remux(clip, tmp_path / "a.mp4", lambda _, packet: with_data(packet, b"\xff" * packet.size))
    monkeypatch.setattr(video, "_camera_address", lambda index: ("mov", str(path), {}))
    assert "The camera 0 stopped after 0 frames" in refused(0)


@pytest.mark.parametrize(
    ("platform", "expected"),
    [
        ("linux", ("v4l2", "/dev/video2")),
        ("darwin", ("avfoundation", "2:none")),
        ("win32", ("dshow", "video=c")),
    ],
)
def test_camera_addresses(monkeypatch: pytest.MonkeyPatch, platform: str, expected: tuple[str, str]) -> None:
    class Device:
        def __init__(self, name: str, kind: str) -> None:
            self.name, self.media_types = name, [kind]

    devices = [Device("a", "video"), Device("sound", "audio"), Device("b", "video"), Device("c", "video")]
    monkeypatch.setattr(av.device, "enumerate_input_devices", lambda name: devices)
    monkeypatch.setattr(sys, "platform", platform)
    assert video._camera_address(2)[:2] == expected
