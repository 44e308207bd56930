"""`masklet track` from the command line to its files, with a small model and a small clip."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import masklet as library
from masklet import testing
from masklet.apps import terminal, track_run
from masklet.errors import EngineError
from masklet.io.label_map import write_label_map
from masklet.rle import decode_rle
from masklet.types import Frame, FrameResult

av = pytest.importorskip("av")

Command = Callable[..., Any]
SIZE_HW = (48, 64)
NUM_FRAMES = 8
FPS = 10
PROMPTS = ("--point", "0:1:20,20", "--box", "2:5:30,10,60,40")


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that sees every object that it is asked for."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config(), object_score_bias=5.0)
    return path


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic scene that moves to the left."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_clip(path, NUM_FRAMES)
    return path


def write_clip(path: Path, num_frames: int) -> None:
    scene = testing.synthetic_scene(seed=3, size_hw=SIZE_HW).image
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "10"})
        stream.height, stream.width = SIZE_HW
        stream.pix_fmt = "yuv420p"
        for index in range(num_frames):
            picture = np.ascontiguousarray(np.roll(scene, -index, axis=1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def track(
    masklet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip: Path, model: Path
) -> Command:
    """Calls `masklet track` on the clip, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object, video: object = clip) -> Any:
        return masklet("track", video, *arguments, "--model", model, "--threads", 1)

    return call


@pytest.fixture(scope="session")
def expected(clip: Path, model: Path) -> Callable[..., list[FrameResult]]:
    """What the library gives for `PROMPTS`."""

    def results(
        start: int = 0, num_frames: int | None = None, reverse: bool = False, **settings: Any
    ) -> list[FrameResult]:
        predictor = library.VideoPredictor(library.load(model, threads=1), **settings)
        with predictor.init_state(clip) as state:
            predictor.add_new_points_or_box(state, 0, 1, points=[[20, 20]], labels=[1])
            predictor.add_new_points_or_box(state, 2, 5, box=[30, 10, 60, 40])
            return list(predictor.track(state, start, num_frames, reverse))

    return results


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is a failure: what is wrong must be found before."""

    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr("masklet.apps.options.load_model", refuse)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def times_of(path: Path | str) -> list[float]:
    with av.open(str(path)) as container:
        return [float(frame.time) for frame in container.decode(video=0)]


def content(folder: Path | str) -> dict[str, bytes]:
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def read(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


# --------------------------------------------------------------------------------------------------- results


def test_every_output_has_what_the_library_gives(track: Command, expected: Any) -> None:
    outputs = ("-o", "masks", "-o", "out.jsonl", "-o", "out.json", "-o", "out.mp4")
    result = track(*PROMPTS, *outputs)
    assert (result.exit_code, result.stderr) == (0, "")
    header, *found = lines(Path("out.jsonl").read_text())
    document = json.loads(Path("out.json").read_text())
    wanted = expected()
    assert [line["index"] for line in found] == list(range(NUM_FRAMES))
    for line, frame in zip(found, wanted, strict=True):
        assert line["time"] == pytest.approx(frame.time)
        labels = read(f"masks/{frame.index:05d}.png")
        for entry, tracked in zip(line["objects"], frame.objects, strict=True):
            assert entry["id"] == tracked.object_id
            assert entry["state"] == tracked.state
            assert entry["area"] == tracked.area
            assert entry["box"] == list(tracked.box_xyxy)
            assert entry["predicted_iou"] == pytest.approx(tracked.predicted_iou, abs=1e-6)
            assert entry["object_score"] == pytest.approx(tracked.object_score, abs=1e-6)
            assert entry["stability"] == pytest.approx(tracked.stability, abs=1e-6)
            assert np.array_equal(decode_rle(entry["rle"]), tracked.mask)
        first, second = frame.objects
        assert np.array_equal(labels > 0, first.mask | second.mask)
        winner = max(frame.objects, key=lambda tracked: tracked.predicted_iou)
        assert np.array_equal(labels == winner.object_id, winner.mask)
    assert [annotation["track_id"] for annotation in document["annotations"]] == [1, 5] * NUM_FRAMES
    assert [image["id"] for image in document["images"]] == list(range(NUM_FRAMES))
    np.testing.assert_allclose(times_of("out.mp4"), np.arange(NUM_FRAMES) / FPS, atol=1e-4)
    assert header["prompts"][1] == {
        "frame": 2,
        "object": 5,
        "points": [],
        "box": [30, 10, 60, 40],
        "mask": None,
    }
    assert sorted(os.listdir()) == ["masks", "out.json", "out.jsonl", "out.mp4"]


def test_a_table_sums_up(track: Command, expected: Any) -> None:
    result = track(*PROMPTS, "-o", "out.jsonl", "--no-masks", "--frames", 3)
    header, first, second = result.stdout.splitlines()
    assert header.split() == ["object", "frames", "seen", "in", "mean", "score", "mean", "area", "px"]
    areas = [frame[1].area for frame in expected(0, 3)]
    assert first.split()[:3] == ["1", "3", "3"]
    assert first.split()[4] == f"{sum(areas) / 3:.0f}"
    assert second.split()[0] == "5"


def test_a_folder_for_each_object(track: Command, expected: Any) -> None:
    assert track(*PROMPTS, "-o", "out", "--per-object", "--frames", 2).exit_code == 0
    assert sorted(content("out")) == [
        "1/00000.png",
        "1/00001.png",
        "5/00000.png",
        "5/00001.png",
        "masklet.json",
    ]
    for frame in expected(0, 2):
        for tracked in frame.objects:
            mask = read(f"out/{tracked.object_id}/{frame.index:05d}.png")
            assert np.array_equal(mask, tracked.mask * np.uint8(255))


def test_lines_on_stdout_are_the_frames_and_nothing_else(track: Command) -> None:
    result = track(*PROMPTS, "-o", "-", "-o", "out.jsonl")
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines(result.stdout) == lines(Path("out.jsonl").read_text())[1:]
    assert len(lines(result.stdout)) == NUM_FRAMES
    bare = lines(track(*PROMPTS, "-o", "-", "--no-masks").stdout)
    for line, whole in zip(bare, lines(result.stdout), strict=True):
        for entry in whole["objects"]:
            del entry["rle"]
        assert line == whole


@pytest.mark.parametrize(
    ("arguments", "indices"),
    [
        ((), [0, 1, 2, 3, 4, 5, 6, 7]),
        (("--frames", 3), [0, 1, 2]),
        (("--frames", 1), [0]),
        (("--frames", 100), [0, 1, 2, 3, 4, 5, 6, 7]),
        (("--start", 5), [5, 6, 7]),
        (("--start", 5, "--frames", 2), [5, 6]),
        (("--reverse",), [2, 1, 0]),  # from the last prompted frame
        (("--reverse", "--start", 6, "--frames", 3), [6, 5, 4]),
        (("--reverse", "--start", 0), [0]),
    ],
)
def test_which_frames(track: Command, arguments: tuple[object, ...], indices: list[int]) -> None:
    result = track(*PROMPTS, *arguments, "-o", "-", "--no-masks")
    assert [line["index"] for line in lines(result.stdout)] == indices


def test_reverse_is_the_librarys_and_plays_forward(track: Command, expected: Any) -> None:
    result = track(*PROMPTS, "--reverse", "--start", 6, "--frames", 3, "-o", "-", "-o", "out.mp4")
    assert result.exit_code == 0
    for line, frame in zip(lines(result.stdout), expected(6, 3, reverse=True), strict=True):
        for entry, tracked in zip(line["objects"], frame.objects, strict=True):
            assert np.array_equal(decode_rle(entry["rle"]), tracked.mask)
    np.testing.assert_allclose(times_of("out.mp4"), [0, 0.1, 0.2], atol=1e-4)


def test_the_first_prompted_frame_is_the_start(track: Command) -> None:
    result = track("--point", "4:1:20,20", "--point", "6:1:20,20,0", "-o", "-", "--no-masks")
    assert [line["index"] for line in lines(result.stdout)] == [4, 5, 6, 7]


def test_all_ways_to_prompt_mean_the_same(track: Command) -> None:
    labels = np.zeros(SIZE_HW, np.uint8)
    labels[5:25, 5:30], labels[20:44, 35:60] = 2, 9
    write_label_map("map.png", labels)
    for object_id in (2, 9):
        Image.fromarray((labels == object_id) * np.uint8(255)).save(f"{object_id}.png")
    entries = [
        {"frame": 1, "mask": "map.png"},
        {"frame": 4, "object": 2, "points": [[10, 12], [50, 40]], "labels": [1, 0], "box": [5, 5, 30, 25]},
    ]
    Path("prompts.json").write_text(json.dumps(entries))
    clicks = ("--point", "4:2:10,12", "--point", "4:2:50,40,0", "--box", "4:2:5,5,30,25")
    ways = [
        ("--mask", "1:map.png", *clicks),
        (*clicks, "--mask", "1:9:9.png", "--mask", "1:2:2.png"),
        ("--prompts", "prompts.json"),
    ]
    results = [track(*way, "-o", f"{number}.jsonl") for number, way in enumerate(ways)]
    assert [result.exit_code for result in results] == [0, 0, 0]
    written = [Path(f"{number}.jsonl").read_bytes() for number in range(3)]
    assert written[0] == written[1] == written[2]
    assert len(written[0].splitlines()) == NUM_FRAMES


@pytest.mark.parametrize("suffix", [".webm", ".mkv", ".mov"])
def test_other_videos(track: Command, suffix: str) -> None:
    assert track(*PROMPTS, "--frames", 2, "-o", f"out{suffix}").exit_code == 0
    np.testing.assert_allclose(times_of(f"out{suffix}"), [0, 0.1], atol=1e-3)


def test_folders_and_patterns_of_pictures(track: Command, tmp_path: Path) -> None:
    scene = testing.synthetic_scene(seed=3, size_hw=SIZE_HW).image
    Path("frames").mkdir()
    for index in range(3):
        Image.fromarray(np.roll(scene, -index, axis=1)).save(f"frames/{index}.png")
    for video in ("frames", "frames/*.png"):
        result = track("--point", "0:1:20,20", "-o", "-", "-o", "out.mp4", "--overwrite", video=video)
        assert [(line["index"], line["time"]) for line in lines(result.stdout)] == [
            (0, None),
            (1, None),
            (2, None),
        ]
        np.testing.assert_allclose(times_of("out.mp4"), [0, 0.04, 0.08], atol=1e-4)


def test_settings_reach_the_predictor(track: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    make, run = library.VideoPredictor.__init__, library.VideoPredictor.track

    def spy_make(self: Any, model: Any, **options: Any) -> None:
        seen.update(options, image_size=model.image_size)
        make(self, model, **options)

    def spy_run(self: Any, *arguments: Any, **options: Any) -> Any:
        seen["lost_after"] = options["lost_after"]
        return run(self, *arguments, **options)

    monkeypatch.setattr(library.VideoPredictor, "__init__", spy_make)
    monkeypatch.setattr(library.VideoPredictor, "track", spy_run)
    more = ("--fill-holes", 3, "--non-overlap", "--lost-after", 2, "--state", "memory", "--image-size", 96)
    assert track(*PROMPTS, "--frames", 2, "-o", "-", *more).exit_code == 0
    assert seen == {
        "fill_hole_area": 3, "non_overlap_masks": True, "lost_after": 2, "state": "memory", "image_size": 96,
    }  # fmt: skip


def test_where_past_frames_are_kept_changes_nothing(track: Command) -> None:
    results = [track(*PROMPTS, "-o", "-", "--state", state).stdout for state in ("forget", "disk", "memory")]
    assert len(results[0]) > 1000
    assert results[0] == results[1] == results[2]


# ---------------------------------------------------------------------------------------------------- resuming


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


@pytest.mark.parametrize("more", [(), ("--per-object",)])
def test_a_resumed_run_is_the_uninterrupted_one(track: Command, more: tuple[str, ...]) -> None:
    track(*PROMPTS, *more, "-o", "whole", "-o", "whole.jsonl")
    with after(3, fail):
        assert track(*PROMPTS, *more, "-o", "cut", "-o", "cut.jsonl").exit_code == 1
    assert 0 < len(content("cut")) < len(content("whole"))
    with open("cut.jsonl", "ab") as file:
        file.write(b'{"index": 3, "time": 0.3, "obj')  # as a killed process leaves it
    stamps = {path: path.stat().st_mtime_ns for path in Path("cut").rglob("*.png")}
    assert track(*PROMPTS, *more, "-o", "cut", "-o", "cut.jsonl", "--resume").exit_code == 0
    assert content("cut") == content("whole")
    assert Path("cut.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_a_resumed_run_may_be_longer(track: Command) -> None:
    track(*PROMPTS, "-o", "whole.jsonl", "--frames", 5)
    track(*PROMPTS, "-o", "out.jsonl", "--frames", 2)
    assert track(*PROMPTS, "-o", "out.jsonl", "--frames", 5, "--resume").exit_code == 0
    assert Path("out.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()


def test_nothing_is_computed_where_nothing_is_missing(
    track: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(*PROMPTS, "-o", "out", "-o", "out.jsonl", "--frames", 2)
    monkeypatch.setattr("masklet.apps.options.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = track(*PROMPTS, "-o", "out", "-o", "out.jsonl", "--frames", 2, "--resume")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "All 2 frames are there already.\n")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--point", "1:1:20,20"), "prompts was"),
        (("--fill-holes", "0"), "fill_holes was 8.0, now 0.0"),
        (("--non-overlap",), "non_overlap was false, now true"),
        (("--reverse",), "reverse was false, now true"),
        (("--start", "1"), "start was 0, now 1"),
        (("--image-size", "96"), "image_size was null, now 96"),
        (("--lost-after", "3"), "lost_after was 30, now 3"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(
    track: Command, monkeypatch: pytest.MonkeyPatch, changed: tuple[str, ...], words: str
) -> None:
    track(*PROMPTS, "-o", "out", "--frames", 1)
    monkeypatch.setattr("masklet.apps.options.load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    result = track(*PROMPTS, *changed, "-o", "out", "--frames", 2, "--resume")
    assert result.exit_code == 1
    assert "other settings" in result.stderr
    assert words in result.stderr
    assert len(content("out")) == 2


def test_another_clip_of_the_same_name_is_not_resumed(track: Command, tmp_path: Path) -> None:
    track(*PROMPTS, "-o", "out", "--frames", 1)
    write_clip(tmp_path / "clip.mp4", 5)
    result = track(*PROMPTS, "-o", "out", "--resume", video="clip.mp4")
    assert result.exit_code == 1
    assert "video was" in result.stderr


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


def start(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, its streams buffered as usual."""
    command = [sys.executable, "-m", "masklet", "track", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **streams, **options)


@pytest.fixture
def long_clip(tmp_path: Path) -> Path:
    """A clip that takes far longer than a test waits."""
    (tmp_path / "clip").mkdir()
    scene = testing.synthetic_scene(seed=3, size_hw=SIZE_HW).image
    Image.fromarray(scene).save(tmp_path / "clip" / "0.png")
    for index in range(1, 2000):
        os.link(tmp_path / "clip" / "0.png", tmp_path / "clip" / f"{index}.png")
    return tmp_path / "clip"


def test_ctrl_c_in_a_terminal(long_clip: Path, tmp_path: Path, model: Path) -> None:
    """Lines come while the command runs; then Ctrl-C closes the video."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a child inherits what is ignored
    run = start(long_clip, "--point", "0:1:20,20", "-o", "-", "-o", "out.mp4", "--model", model, cwd=tmp_path)
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


def test_a_reader_that_goes_away_ends_the_run(long_clip: Path, tmp_path: Path, model: Path) -> None:
    run = start(long_clip, "--point", "0:1:20,20", "-o", "-", "-o", "out.mp4", "--model", model, cwd=tmp_path)
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
        ((*POINT, "-o", "out", "--image-size", "100"), "multiple of 32"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_usage_errors(track: Command, plain: Any, arguments: tuple[str, ...], words: str) -> None:
    result = track(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in plain(result.stderr)
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
    assert content(".") == {name: b"mine" for name in ("there/mine.txt", "there.mp4", "there.jsonl")}


@pytest.mark.usefixtures("no_model")
def test_the_video_itself_is_never_written_to(track: Command, tmp_path: Path) -> None:
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
    assert note == "Stopped: 2 of 8 frames are in 'out', 'out.mp4'."
    assert "full" in error
    assert sorted(content("out")) == ["00000.png", "00001.png", "masklet.json"]
    assert len(times_of("out.mp4")) == 2


# ----------------------------------------------------------------------------------------- cameras and bars


class Camera:
    """Pictures that come once and do not end."""

    seekable, num_frames, fps, size_hw = False, None, 10.0, SIZE_HW

    def frames(self) -> Iterator[Frame]:
        scene = testing.synthetic_scene(seed=3, size_hw=SIZE_HW).image
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
    track: Command, camera: list[Any], model: Path
) -> None:
    prompts = ("--point", "2:1:20,20", "--box", "4:5:30,10,60,40")
    result = track(*prompts, "-o", "-", "-o", "out.mp4", "--frames", 4, video=0)
    assert (result.exit_code, camera) == (0, [0])
    found = lines(result.stdout)
    assert [line["index"] for line in found] == [2, 3, 4, 5]
    assert [line["time"] for line in found] == [0.2, 0.3, 0.4, 0.5]
    assert [[entry["id"] for entry in line["objects"]] for line in found] == [[1], [1], [1, 5], [1, 5]]
    np.testing.assert_allclose(times_of("out.mp4"), [0, 0.1, 0.2, 0.3], atol=1e-4)

    tracker = library.Tracker(library.load(model, threads=1))
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
