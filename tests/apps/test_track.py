"""`masklet track` from the command line to its files, with a small model and a small clip."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tracked import PROMPTS, content, lines, times_of

import masklet as library
from masklet import testing
from masklet.io.label_map import write_label_map
from masklet.rle import decode_rle
from masklet.types import FrameResult

av = pytest.importorskip("av")

Command = Callable[..., Any]
CLIP_HW = (48, 64)  # pixels, of the clip
NUM_FRAMES = 8
FPS = 10


@pytest.fixture(scope="session")
def expected(clip: Path, seeing_checkpoint: Path) -> Callable[..., list[FrameResult]]:
    """What the library gives for `PROMPTS`."""

    def results(
        start: int = 0, num_frames: int | None = None, reverse: bool = False, **settings: Any
    ) -> list[FrameResult]:
        predictor = library.VideoPredictor(library.load(seeing_checkpoint, threads=1), **settings)
        with predictor.init_state(clip) as state:
            predictor.add_new_points_or_box(state, 0, 1, points=[[20, 20]], labels=[1])
            predictor.add_new_points_or_box(state, 2, 5, box=[30, 10, 60, 40])
            return list(predictor.track(state, start, num_frames, reverse))

    return results


def read(path: Path | str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


# -------------------------------------------------------------------------------------------------- results


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
    labels = np.zeros(CLIP_HW, np.uint8)
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
    scene = testing.synthetic_scene(seed=3, size_hw=CLIP_HW).image
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


# --------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("more", [(), ("--per-object",)])
def test_a_resumed_run_is_the_uninterrupted_one(track: Command, more: tuple[str, ...]) -> None:
    track(*PROMPTS, *more, "-o", "whole", "-o", "whole.jsonl")
    assert track(*PROMPTS, *more, "-o", "cut", "-o", "cut.jsonl", "--frames", 3).exit_code == 0
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
    track: Command, refuse_models: Callable[[], None]
) -> None:
    track(*PROMPTS, "-o", "out", "-o", "out.jsonl", "--frames", 2)
    refuse_models()
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
        (("--profile", "small.toml"), "image_size was null, now 96"),
    ],
)
def test_a_run_with_other_settings_is_not_resumed(
    track: Command, refuse_models: Callable[[], None], changed: tuple[str, ...], words: str
) -> None:
    track(*PROMPTS, "-o", "out", "--frames", 1)
    Path("small.toml").write_text("image_size = 96")
    refuse_models()
    result = track(*PROMPTS, *changed, "-o", "out", "--frames", 2, "--resume")
    assert result.exit_code == 1
    assert "other settings" in result.stderr
    assert words in result.stderr
    assert len(content("out")) == 2


def test_another_clip_of_the_same_name_is_not_resumed(
    track: Command, tmp_path: Path, write_clip: Callable[[Path, int], None]
) -> None:
    track(*PROMPTS, "-o", "out", "--frames", 1)
    write_clip(tmp_path / "clip.mp4", 5)
    result = track(*PROMPTS, "-o", "out", "--resume", video="clip.mp4")
    assert result.exit_code == 1
    assert "video was" in result.stderr
