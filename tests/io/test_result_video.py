"""Overlay videos: what is in them, when it is shown, and what stays after a failure."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from masklet.errors import InputError, OutputError
from masklet.io import result_video
from masklet.io.overlay import draw_overlay, palette_colour
from masklet.io.result_video import VIDEO_SUFFIXES, OverlayVideo, ReplayedOverlay
from masklet.types import Frame, FrameResult, TrackedObject

av = pytest.importorskip("av")

FillDisk = Callable[[ModuleType, int], None]
SIZE_HW = (120, 160)
TOLERANCE = 6.0  # thin outlines lose colour, two by two pixels share one; frames differ by 15


def picture(index: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    """A slope of colours that grows brighter from frame to frame."""
    row, column = np.mgrid[: size_hw[0], : size_hw[1]]
    return (np.stack([row, column, row + column], axis=-1) // 3 + 60 + 15 * index).astype(np.uint8)


def result(index: int, time: float | None, size_hw: tuple[int, int] = SIZE_HW) -> FrameResult:
    objects = []
    for object_id in (3, 12):
        mask = np.zeros(size_hw, bool)
        mask[20 + 3 * object_id : 60 + 3 * object_id, 10 + 4 * index : 70 + 4 * index] = True
        objects.append(TrackedObject(object_id, mask, None, int(mask.sum()), 0.9, 2.0, 0.9, "tracked"))
    return FrameResult(index, time, tuple(objects))


def drawn(index: int, size_hw: tuple[int, int] = SIZE_HW) -> np.ndarray:
    tracked = result(index, None, size_hw).objects
    return draw_overlay(
        picture(index, size_hw),
        [one.mask for one in tracked],
        names=["3", "12"],
        colours=[palette_colour(2), palette_colour(11)],
    )


def distance(shown: np.ndarray, index: int) -> float:
    """Mean difference to the frame of that index as it was drawn, in steps of 0 .. 255."""
    return float(np.abs(shown.astype(int) - drawn(index, (shown.shape[0], shown.shape[1]))).mean())


def write(
    writer: OverlayVideo | ReplayedOverlay, times: list[float | None], size_hw: tuple[int, int] = SIZE_HW
) -> None:
    """Frames 0, 1, ... at these times; finished also after an error."""
    try:
        for index, time in enumerate(times):
            writer.write(result(index, time, size_hw), picture(index, size_hw))
    finally:
        writer.finish()


def read(path: Path) -> tuple[list[float], list[np.ndarray], float]:
    """Times, pictures and the length in seconds."""
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        times = [float(frame.time) for frame in frames]
        return (
            times,
            [frame.to_ndarray(format="rgb24") for frame in frames],
            (container.duration or 0) / av.time_base,
        )


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_pictures_and_times(tmp_path: Path, suffix: str) -> None:
    """A variable frame rate: the times stay, from the first frame on; the last one is shown for 1 / fps."""
    times = [5.0, 5.04, 5.1, 5.4, 5.41, 6.0]
    writer = OverlayVideo(tmp_path / f"out{suffix}", fps=20)
    write(writer, [*times])
    assert [path.name for path in tmp_path.iterdir()] == [f"out{suffix}"]
    seen, pictures, seconds = read(tmp_path / f"out{suffix}")
    np.testing.assert_allclose(seen, np.array(times) - 5, atol=0.0011)  # .mkv and .webm count milliseconds
    assert seconds == pytest.approx(1.05, abs=0.002)
    for index, shown in enumerate(pictures):
        assert distance(shown, index) < TOLERANCE < distance(shown, index + 1)


@pytest.mark.parametrize("size_hw", [(121, 161), (120, 161), (1, 1)])
def test_odd_sides_get_a_pixel(tmp_path: Path, size_hw: tuple[int, int]) -> None:
    write(OverlayVideo(tmp_path / "out.mp4"), [0.0, 0.1], size_hw)
    _, pictures, _ = read(tmp_path / "out.mp4")
    height, width = (side + side % 2 for side in size_hw)
    assert pictures[0].shape == (height, width, 3)
    assert distance(pictures[0][: size_hw[0], : size_hw[1]], 0) < TOLERANCE


def test_without_times_the_rate_counts(tmp_path: Path) -> None:
    write(OverlayVideo(tmp_path / "default.mp4"), [None] * 3)
    np.testing.assert_allclose(read(tmp_path / "default.mp4")[0], [0, 0.04, 0.08], atol=1e-4)
    write(OverlayVideo(tmp_path / "ten.mp4", fps=10), [None] * 3)
    np.testing.assert_allclose(read(tmp_path / "ten.mp4")[0], [0, 0.1, 0.2], atol=1e-4)


def test_equal_times_are_no_error(tmp_path: Path) -> None:
    write(OverlayVideo(tmp_path / "out.mp4"), [0.0, 0.1, 0.1, 0.05, 0.3])
    times, _, _ = read(tmp_path / "out.mp4")
    assert len(times) == 5
    assert times == sorted(times)


def test_the_file_is_a_plain_one_in_the_colours_of_video(tmp_path: Path) -> None:
    write(OverlayVideo(tmp_path / "out.mp4", fps=30), [index / 30 for index in range(5)])
    assert b"moof" not in (tmp_path / "out.mp4").read_bytes()[:64]
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.codec_context.colorspace, stream.codec_context.color_range) == (1, 1)
        assert stream.average_rate == 30
        assert stream.frames == 5


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_colours_stay_what_they_are(tmp_path: Path, suffix: str) -> None:
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (30, 144, 255), (128, 128, 128)], np.uint8)
    pixels = np.repeat(np.tile(colours, (120, 1, 1)), 32, axis=1)  # five columns of 32 pixels
    writer = OverlayVideo(tmp_path / f"out{suffix}")
    writer.write(FrameResult(0, 0.0, ()), pixels)
    writer.finish()
    _, (shown,), _ = read(tmp_path / f"out{suffix}")
    np.testing.assert_allclose(shown[60, 16::32].astype(int), colours, atol=6)


def test_without_h264_there_is_mpeg4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec = av.Codec

    def lacking(name: str, mode: str) -> Any:
        if "264" in name:
            raise av.codec.codec.UnknownCodecError(name)
        return codec(name, mode)

    monkeypatch.setattr(av, "Codec", lacking)
    write(OverlayVideo(tmp_path / "out.mp4"), [0.0, 0.13, 0.2])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    times, pictures, _ = read(tmp_path / "out.mp4")
    np.testing.assert_allclose(times, [0, 0.13, 0.2], atol=1e-4)
    assert distance(pictures[1], 1) < TOLERANCE


def test_without_any_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(name: str, mode: str) -> Any:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av, "Codec", lacking)
    with pytest.raises(OutputError, match="libvpx"):
        write(OverlayVideo(tmp_path / "out.webm"), [0.0])
    assert list(tmp_path.iterdir()) == []


def test_reverse_results_play_forward(tmp_path: Path) -> None:
    times = [0.0, 0.04, 0.3, 0.31]

    def frames(start: int, stop: int) -> Iterator[Frame]:
        return (Frame(index, times[index], picture(index)) for index in range(start, stop))

    writer = ReplayedOverlay(OverlayVideo(tmp_path / "out.mp4", fps=20), frames)
    for index in (3, 2, 1):
        writer.write(result(index, times[index]))
    writer.finish()
    seen, pictures, _ = read(tmp_path / "out.mp4")
    np.testing.assert_allclose(seen, [0, 0.26, 0.27], atol=1e-4)
    for index, shown in enumerate(pictures, 1):
        assert distance(shown, index) < TOLERANCE < distance(shown, index + 1)


def test_nothing_is_made_of_no_frames(tmp_path: Path) -> None:
    OverlayVideo(tmp_path / "out.mp4").finish()
    ReplayedOverlay(OverlayVideo(tmp_path / "out.mp4"), lambda start, stop: iter(())).finish()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_when_asked_and_finished(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="--overwrite"):
        OverlayVideo(path)
    writer = OverlayVideo(path, start="overwrite")
    writer.write(result(0, 0.0), picture(0))
    assert path.read_bytes() == b"mine"
    writer.finish()
    assert len(read(path)[0]) == 1


def test_a_picture_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="without its picture"):
        OverlayVideo(tmp_path / "out.mp4").write(result(0, 0.0))


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_a_full_disk_leaves_a_playable_file(tmp_path: Path, fill_disk: FillDisk, suffix: str) -> None:
    rng = np.random.default_rng(0)
    fill_disk(result_video, 350_000)
    path = tmp_path / f"out{suffix}"
    writer = OverlayVideo(path, fps=30)

    def until_full() -> None:
        for index in range(200):
            noise = rng.integers(0, 255, (*SIZE_HW, 3), dtype=np.uint8)
            writer.write(result(index % 20, index / 30), noise)

    with pytest.raises(OutputError, match=r"full.* has the first \d+ frames") as error:
        until_full()
    writer.finish()  # does nothing more
    assert [path.name for path in tmp_path.iterdir()] == [path.name]
    times, _, _ = read(path)
    assert f"the first {len(times)} frames" in str(error.value)
    assert len(times) >= 20
    np.testing.assert_allclose(times, np.arange(len(times)) / 30, atol=0.0011)


def test_a_disk_that_is_full_at_once_leaves_nothing(tmp_path: Path, fill_disk: FillDisk) -> None:
    fill_disk(result_video, 10)
    with pytest.raises(OutputError, match=r"full.*Nothing was left behind"):
        write(OverlayVideo(tmp_path / "out.mp4"), [0.0, 0.1])
    assert list(tmp_path.iterdir()) == []


def test_a_failed_sync_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="full"):
        write(OverlayVideo(tmp_path / "out.mp4"), [0.0, 0.1])
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_finishing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: Any) -> None:
        raise KeyboardInterrupt

    writer = OverlayVideo(tmp_path / "out.mp4")
    writer.write(result(0, 0.0), picture(0))
    monkeypatch.setattr(result_video._VideoFile, "close", interrupt)
    with pytest.raises(KeyboardInterrupt) as caught:
        writer.finish()
    assert list(tmp_path.iterdir()) == []
    del caught


@pytest.mark.parametrize("fps", [23.976, 24, 25, 29.97, 30, 50, 60, Fraction(1, 2), 1000])
def test_any_rate(tmp_path: Path, fps: Any) -> None:
    rate = float(fps)
    write(OverlayVideo(tmp_path / "out.mp4", fps=rate), [index / rate for index in range(4)])
    times, _, seconds = read(tmp_path / "out.mp4")
    np.testing.assert_allclose(times, np.arange(4) / rate, atol=1e-5)
    assert seconds == pytest.approx(4 / rate, rel=1e-3, abs=1e-4)
