"""`masklet track` where something is wrong with the command, the files or the disk, or somebody stops it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tracked import PROMPTS, content, lines, times_of

import masklet as library
from masklet import testing
from masklet.apps import terminal, track_run
from masklet.errors import EngineError
from masklet.rle import decode_rle
from masklet.types import Frame, FrameResult

av = pytest.importorskip("av")

Command = Callable[..., Any]
CLIP_HW = (48, 64)  # pixels, of the clip


@contextlib.contextmanager
def after(num_frames: int, action: Callable[[], None]) -> Iterator[None]:
    """Something happens when that many frames were handed out."""
    run = library.VideoPredictor.track

    def track(self: Any, *arguments: Any, **options: Any) -> Iterator[FrameResult]:
        for number, result in enumerate(run(self, *arguments, **options)):
            if number == num_frames:
                action()
            yield result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library.VideoPredictor, "track", track)
        yield


def fail() -> None:
    raise EngineError("the engine stopped.")


# ---------------------------------------------------------------------------------- errors and interruptions

OUTPUTS = ("-o", "out", "-o", "out.jsonl", "-o", "out.json", "-o", "out.mp4")


def check_files(num_frames: int) -> None:
    """Every file of `OUTPUTS` is complete and has that many frames."""
    assert sorted(os.listdir()) == ["out", "out.json", "out.jsonl", "out.mp4"]
    names = [f"{index:05d}.png" for index in range(num_frames)]
    assert sorted(content("out")) == [*names, "masklet.json"]
    assert [line["index"] for line in lines(Path("out.jsonl").read_text())[1:]] == list(range(num_frames))
    document = json.loads(Path("out.json").read_text())
    assert [image["id"] for image in document["images"]] == list(range(num_frames))
    assert len(times_of("out.mp4")) == num_frames


def test_an_error_keeps_the_frames_before_it(track: Command) -> None:
    with after(3, fail):
        result = track(*PROMPTS, *OUTPUTS)
    assert (result.exit_code, result.stdout) == (1, "")
    note, error = result.stderr.splitlines()
    assert note == "Stopped: 3 of 8 frames are in 'out', 'out.jsonl', 'out.json', 'out.mp4'."
    assert error == "error: the engine stopped."
    check_files(3)


def test_an_error_before_the_first_frame_leaves_nothing(track: Command) -> None:
    with after(0, fail):
        result = track(*PROMPTS, *OUTPUTS)
    assert result.exit_code == 1
    assert os.listdir() == []


def test_a_bug_keeps_the_frames_before_it(track: Command) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    with after(3, bug), pytest.raises(ZeroDivisionError):
        track(*PROMPTS, *OUTPUTS)
    check_files(3)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_files(track: Command, number: int, code: int) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    terminate = signal.getsignal(signal.SIGTERM)
    with after(2, lambda: signal.raise_signal(number)):  # while frame 2 is made
        result = track(*PROMPTS, *OUTPUTS)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr == "Interrupted: 3 of 8 frames are in 'out', 'out.jsonl', 'out.json', 'out.mp4'.\n"
    check_files(3)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is terminate


def test_a_signal_before_the_first_frame_leaves_nothing(track: Command) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        raise KeyboardInterrupt  # as the second Ctrl-C

    with after(0, interrupt):
        result = track(*PROMPTS, *OUTPUTS)
    assert (result.exit_code, result.stderr) == (130, "Interrupted before the first frame was done.\n")
    assert os.listdir() == []


def test_a_second_ctrl_c_does_not_wait_for_the_frame() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with track_run._signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_an_ignored_signal_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with track_run._signals() as received:
        signal.raise_signal(signal.SIGINT)
        assert received == []


def start(clip: Path, model: Path) -> subprocess.Popen[str]:
    """The command in a process of its own, its streams buffered as usual."""
    options = ["--point", "0:1:20,20", "-o", "-", "-o", "out.mp4", "--model", str(model)]
    command = [sys.executable, "-m", "masklet", "track", str(clip), *options]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, cwd=clip.parent, **streams)


@pytest.fixture
def long_clip(tmp_path: Path) -> Path:
    """A clip that takes far longer than a test waits."""
    (tmp_path / "clip").mkdir()
    scene = testing.synthetic_scene(seed=3, size_hw=CLIP_HW).image
    Image.fromarray(scene).save(tmp_path / "clip" / "0.png")
    for index in range(1, 2000):
        os.link(tmp_path / "clip" / "0.png", tmp_path / "clip" / f"{index}.png")
    return tmp_path / "clip"


def test_ctrl_c_in_a_terminal(long_clip: Path, tmp_path: Path, seeing_checkpoint: Path) -> None:
    """Lines come while the command runs; then Ctrl-C closes the video."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits what is ignored
    run = start(long_clip, seeing_checkpoint)
    assert run.stdout is not None
    seen = [json.loads(run.stdout.readline())["index"] for _ in range(2)]
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=120)
    seen += [line["index"] for line in lines(stdout)]
    assert run.returncode == 130
    assert seen == list(range(len(seen)))
    assert len(seen) < 2000
    assert stderr == f"Interrupted: {len(seen)} of 2000 frames are in standard output, 'out.mp4'.\n"
    assert len(times_of(tmp_path / "out.mp4")) == len(seen)


def test_a_reader_that_goes_away_ends_the_run(
    long_clip: Path, tmp_path: Path, seeing_checkpoint: Path
) -> None:
    run = start(long_clip, seeing_checkpoint)
    assert run.stdout is not None
    assert run.stderr is not None
    run.stdout.readline()
    run.stdout.close()
    assert run.stderr.read() == ""
    run.stderr.close()
    assert run.wait(timeout=120) == 1
    assert times_of(tmp_path / "out.mp4")


# ---------------------------------------------------------------------------------- wrong usage, exit code 2

POINT = ("--point", "0:1:20,20")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "out"), "which object? Give --point FRAME:OBJ:X,Y"),
        (POINT, "where to? Give -o OUT.mp4"),
        (("--point", "20,20", "-o", "out"), "give FRAME:OBJ:X,Y"),
        (("--box", "0:1:20,20", "-o", "out"), "X0,Y0,X1,Y1"),
        (("--mask", "mask.png", "-o", "out"), "give FRAME:OBJ:FILE"),
        (("--point", "8:1:20,20", "-o", "out"), "frame 8, object 1: there is no such frame; the video has 8"),
        (("--point", "0:1:65,20", "-o", "out"), "outside the picture, 64 wide and 48 high"),
        (("--box", "0:1:30,30,20,20", "-o", "out"), "corners swapped"),
        (("--box", "0:1:1,1,9,9", "--box", "0:1:2,2,9,9", "-o", "out"), "two boxes"),
        ((*POINT, "--start", "8", "-o", "out"), "--start 8: there is no such frame"),
        ((*POINT, "--start", "-1", "-o", "out"), "--start"),
        ((*POINT, "--frames", "0", "-o", "out"), "--frames"),
        ((*POINT, "-o", "out.mp4", "--resume"), "'out.mp4' cannot be resumed"),
        ((*POINT, "-o", "out", "-o", "-", "--resume"), "standard output cannot be resumed"),
        ((*POINT, "-o", "out", "--resume", "--overwrite"), "give one"),
        ((*POINT, "-o", "out.mp4", "--per-object"), "no -o names a folder"),
        ((*POINT, "-o", "out", "--no-masks"), "no -o names them"),
        (("--point", "0:256:20,20", "-o", "out"), "object 256 does not fit"),
        ((*POINT, "-o", "out", "--state", "cloud"), "--state"),
        ((*POINT, "-o", "out", "--image-size", "0"), "--image-size"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_usage_errors(track: Command, plain: Any, arguments: tuple[str, ...], words: str) -> None:
    result = track(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in plain(result.stderr)
    assert os.listdir() == []


def test_a_size_that_the_model_cannot_have(track: Command) -> None:
    result = track("--point", "0:1:20,20", "-o", "out", "--image-size", "100")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "multiple of 32 pixels" in result.stderr
    assert os.listdir() == []


def test_large_object_numbers_fit_elsewhere(track: Command) -> None:
    point = ("--point", "0:1000:20,20", "--frames", "1")
    assert track(*point, "-o", "out", "--per-object", "-o", "-", "-o", "out.mp4").exit_code == 0
    assert "1000/00000.png" in content("out")


@pytest.mark.usefixtures("no_model")
def test_a_prompts_file_with_a_slip(track: Command, plain: Any) -> None:
    Path("prompts.json").write_text('[{"frame": 0, "object": 1, "pionts": [[5, 6]]}]')
    result = track("--prompts", "prompts.json", "-o", "out")
    assert result.exit_code == 2
    assert "Did you mean 'points'?" in plain(result.stderr)


# ----------------------------------------------------------------------------------- our errors, exit code 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("-o", "nowhere/out.mp4"), "the folder 'nowhere' does not exist"),
        (("-o", "nowhere/out"), "the folder 'nowhere' does not exist"),
        (("-o", "out.avi"), "'.avi' is none of .mp4, .mov, .mkv, .webm, .json and .jsonl"),
        (("-o", "out.mp4", "-o", "./out.mp4"), "two results would go there"),
        (("-o", "there.mp4"), "there is such a file. Give --overwrite"),
        (("-o", "there.jsonl"), "there is such a file. Give --resume"),
        (("-o", "there"), "not empty"),
        (("-o", "out", "--mask", "0:2:missing.png"), "There is no file 'missing.png'"),
        (("-o", "out", "--prompts", "missing.json"), "Cannot read the prompts in 'missing.json'"),
        (("-o", "out", "--model", "sam2.1_hiera_tny"), "sam2.1_hiera_tiny"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_errors_that_are_found_before_the_model_is_loaded(
    masklet: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    clip: Path,
    arguments: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    for name in ("there/mine.txt", "there.mp4", "there.jsonl"):
        Path(name).write_bytes(b"mine")
    result = masklet("track", clip, *POINT, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert content(".") == dict.fromkeys(("there/mine.txt", "there.mp4", "there.jsonl"), b"mine")


@pytest.mark.usefixtures("no_model")
def test_the_video_itself_is_never_written_to(
    track: Command, tmp_path: Path, write_clip: Callable[[Path, int], None]
) -> None:
    write_clip(tmp_path / "clip.mp4", 2)
    before = content(".")
    result = track(*POINT, "-o", "clip.mp4", "--overwrite", video="clip.mp4")
    assert result.exit_code == 1
    assert "that is the video itself" in result.stderr
    assert content(".") == before


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize("video", ["missing.mp4", "bad.mp4", "empty"])
def test_videos_that_cannot_be_read(track: Command, video: str) -> None:
    Path("bad.mp4").write_bytes(b"no video at all")
    Path("empty").mkdir()
    result = track(*POINT, "-o", "out", video=video)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert video in result.stderr
    assert not Path("out").exists()


def test_overwriting(track: Command) -> None:
    for _ in range(2):
        assert track(*PROMPTS, *OUTPUTS, "--frames", 3, "--overwrite").exit_code == 0
        check_files(3)


def test_a_full_disk_keeps_the_frames_before_it(track: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is full at its third frame; other files are finished with what they have."""
    sync, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:  # the settings come first
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    result = track(*PROMPTS, "-o", "out", "-o", "out.mp4")
    assert result.exit_code == 1
    note, error = result.stderr.splitlines()
    assert note == "Stopped after 2 of 8 frames."
    assert "full" in error
    assert sorted(content("out")) == ["00000.png", "00001.png", "masklet.json"]
    assert len(times_of("out.mp4")) == 2


# ----------------------------------------------------------------------------------------- cameras and bars


class Camera:
    """Pictures that come once and do not end."""

    seekable, num_frames, fps, size_hw = False, None, 10.0, CLIP_HW

    def frames(self) -> Iterator[Frame]:
        scene = testing.synthetic_scene(seed=3, size_hw=CLIP_HW).image
        for index in range(1000):
            yield Frame(index, index / 10, np.roll(scene, -index, axis=1))

    def __enter__(self) -> Camera:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was opened; a number is a camera."""
    opened: list[Any] = []
    monkeypatch.setattr("masklet.io.video.open_video", lambda source: opened.append(source) or Camera())
    return opened


def test_a_camera_is_tracked_from_the_first_prompted_frame(
    track: Command, camera: list[Any], seeing_checkpoint: Path
) -> None:
    prompts = ("--point", "2:1:20,20", "--box", "4:5:30,10,60,40")
    result = track(*prompts, "-o", "-", "-o", "out.mp4", "--frames", 4, video=0)
    assert (result.exit_code, camera) == (0, [0])
    found = lines(result.stdout)
    assert [line["index"] for line in found] == [2, 3, 4, 5]
    assert [line["time"] for line in found] == [0.2, 0.3, 0.4, 0.5]
    assert [[entry["id"] for entry in line["objects"]] for line in found] == [[1], [1], [1, 5], [1, 5]]
    np.testing.assert_allclose(times_of("out.mp4"), [0, 0.1, 0.2, 0.3], atol=1e-4)

    tracker = library.Tracker(library.load(seeing_checkpoint, threads=1))
    for frame, line in zip(islice(Camera().frames(), 2, 6), found, strict=True):
        wanted = tracker.push(frame.pixels)
        if frame.index == 2:
            wanted = tracker.add_points_or_box(1, points=[[20, 20]], labels=[1])
        if frame.index == 4:
            wanted = tracker.add_points_or_box(5, box=[30, 10, 60, 40])
        for entry, tracked in zip(line["objects"], wanted.objects, strict=True):
            assert np.array_equal(decode_rle(entry["rle"]), tracked.mask)


def test_ctrl_c_ends_a_camera(track: Command, camera: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    push = library.Tracker.push

    def interrupted(self: Any, pixels: Any, time: Any) -> Any:
        if time >= 0.3:
            signal.raise_signal(signal.SIGINT)
        return push(self, pixels, time)

    monkeypatch.setattr(library.Tracker, "push", interrupted)
    result = track("--point", "1:1:20,20", "-o", "out.json", video=0)
    assert (result.exit_code, result.stderr) == (130, "Interrupted: 3 frames are in 'out.json'.\n")
    assert len(json.loads(Path("out.json").read_text())["images"]) == 3


@pytest.mark.parametrize("option", [("--reverse",), ("--start", "3"), ("--resume",)])
@pytest.mark.usefixtures("camera", "no_model")
def test_what_a_camera_cannot(track: Command, plain: Any, option: tuple[str, ...]) -> None:
    result = track(*POINT, *option, "-o", "out", video=0)
    assert result.exit_code == 2
    assert "a camera has no --start" in plain(result.stderr)


def test_a_folder_called_0_is_no_camera(track: Command, camera: list[Any]) -> None:
    Path("0").mkdir()
    track(*POINT, "-o", "-", "--frames", 1, video=0)
    assert camera == ["0"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo terminal")
def test_a_bar_leaves_the_lines_on_stdout(clip: Path, tmp_path: Path, seeing_checkpoint: Path) -> None:
    """Rich's bars catch what is written to stdout and show it on stderr, unless told not to."""
    master, slave = os.openpty()
    command = [sys.executable, "-m", "masklet", "track", str(clip), "--point", "0:1:20,20", "-o", "-"]
    run = subprocess.Popen(
        [*command, "--model", str(seeing_checkpoint)],
        stdout=subprocess.PIPE, stderr=slave, text=True, cwd=tmp_path,
        env={**os.environ, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    shown: list[str] = []
    reader = threading.Thread(target=lambda: shown.extend(read_terminal(master)))
    reader.start()
    stdout, _ = run.communicate(timeout=120)
    reader.join()
    os.close(master)
    assert run.returncode == 0
    assert [line["index"] for line in lines(stdout)] == list(range(8))
    assert "frames/s" in "".join(shown)
    assert "index" not in "".join(shown)


def read_terminal(master: int) -> Iterator[str]:
    with contextlib.suppress(OSError):  # the other end was closed
        while data := os.read(master, 4096):
            yield data.decode(errors="replace")


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    with terminal.frame_bar("Tracking", 4) as advance:
        advance(2)
        advance(4)
    with terminal.frame_bar("Watching", None) as advance:
        advance(1)
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    for words in ("Tracking", "4/4", "frames/s", "Watching", "1/?"):
        assert words in stderr
