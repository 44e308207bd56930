"""Writers of folders, JSON lines and COCO documents: what they write, resume, refuse, and leave behind."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masklet.errors import OutputError
from masklet.io import result_text
from masklet.io.result_folder import SETTINGS as SETTINGS_FILE
from masklet.io.result_folder import MaskFolder
from masklet.io.result_text import CocoDocument, JsonLines, PrintedLines, frame_line
from masklet.io.results import ResultWriter, RunSettings
from masklet.rle import decode_rle
from masklet.types import FrameResult, TrackedObject

FillDisk = Callable[[ModuleType, int], None]
SIZE_HW = (40, 60)
VALUES = {"model": {"name": "tiny.pt", "bytes": 5}, "start": 0, "prompts": [{"frame": 0, "object": 1}]}
SETTINGS = RunSettings(VALUES)
OTHERS = RunSettings({**VALUES, "start": 3})


def mask_of(object_id: int, index: int) -> np.ndarray:
    """A moving rectangle; object 2 is away in frame 2, and behind object 1 in part of the others."""
    mask = np.zeros(SIZE_HW, bool)
    if not (object_id == 2 and index == 2):
        mask[5 * object_id : 5 * object_id + 12, 3 + 2 * index : 20 + 2 * index] = True
    return mask


def result(index: int, time: float | None = None) -> FrameResult:
    objects = []
    for object_id in (1, 2):
        mask = mask_of(object_id, index)
        left, top = 3 + 2 * index, 5 * object_id
        objects.append(
            TrackedObject(
                object_id=object_id,
                mask=mask,
                box_xyxy=(left, top, left + 17, top + 12) if mask.any() else None,
                area=int(mask.sum()),
                predicted_iou=np.float32(0.9 - object_id / 10),  # type: ignore[arg-type]
                object_score=3.25 if mask.any() else -4.5,
                stability=0.875,
                state="tracked" if mask.any() else "occluded",
            )
        )
    return FrameResult(index, index / 10 if time is None else time, tuple(objects))


def write(writer: ResultWriter, *indices: int) -> None:
    """Frames of a run, without those that are there; finished also after an error."""
    try:
        for index in indices:
            if not writer.has(index):
                writer.write(result(index))
    finally:
        writer.finish()


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# ---------------------------------------------------------------------------------------------------- folders


def test_a_folder_of_label_maps(tmp_path: Path) -> None:
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2]), 0, 1, 2)
    assert sorted(content(tmp_path / "out")) == ["00000.png", "00001.png", "00002.png", SETTINGS_FILE]
    with Image.open(tmp_path / "out" / "00001.png") as image:
        labels = np.asarray(image)
    assert np.array_equal(labels == 1, mask_of(1, 1))  # the higher predicted IoU
    assert np.array_equal(labels == 2, mask_of(2, 1) & ~mask_of(1, 1))


def test_a_folder_for_each_object(tmp_path: Path) -> None:
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2], per_object=True), 1, 2)
    names = ["1/00001.png", "1/00002.png", "2/00001.png", "2/00002.png", SETTINGS_FILE]
    assert sorted(content(tmp_path / "out")) == names
    for object_id in (1, 2):
        for index in (1, 2):
            with Image.open(tmp_path / "out" / str(object_id) / f"0000{index}.png") as image:
                assert image.mode == "L"
                assert np.array_equal(np.asarray(image), mask_of(object_id, index) * np.uint8(255))


def test_frames_beyond_five_digits(tmp_path: Path) -> None:
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2]), 123456)
    assert "123456.png" in content(tmp_path / "out")
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2], start="overwrite"), 0)
    assert sorted(content(tmp_path / "out")) == ["00000.png", SETTINGS_FILE]


@pytest.mark.parametrize("per_object", [False, True])
def test_a_resumed_folder_is_the_uninterrupted_one(tmp_path: Path, per_object: bool) -> None:
    write(MaskFolder(tmp_path / "whole", SETTINGS, [1, 2], per_object=per_object), 0, 1, 2, 3)
    write(MaskFolder(tmp_path / "cut", SETTINGS, [1, 2], per_object=per_object), 0, 1)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cut").rglob("*.png")}
    resumed = MaskFolder(tmp_path / "cut", SETTINGS, [1, 2], per_object=per_object, start="resume")
    assert [resumed.has(index) for index in range(4)] == [True, True, False, False]
    write(resumed, 0, 1, 2, 3)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before  # not written again


def test_a_frame_that_lacks_an_object_is_written_again(tmp_path: Path) -> None:
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2], per_object=True), 0, 1)
    (tmp_path / "out" / "2" / "00001.png").unlink()
    resumed = MaskFolder(tmp_path / "out", SETTINGS, [1, 2], per_object=True, start="resume")
    assert [resumed.has(0), resumed.has(1)] == [True, False]


def test_nothing_is_made_before_the_first_frame(tmp_path: Path) -> None:
    MaskFolder(tmp_path / "out", SETTINGS, [1]).finish()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_results_is_not_touched_unasked(tmp_path: Path) -> None:
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2]), 0)
    before = content(tmp_path / "out")
    with pytest.raises(OutputError, match=r"--resume .* --overwrite"):
        MaskFolder(tmp_path / "out", SETTINGS, [1, 2])
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("start", ["new", "resume", "overwrite"])
def test_a_folder_with_other_things_is_never_touched(tmp_path: Path, start: Any) -> None:
    (tmp_path / "00000.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match="not empty"):
        MaskFolder(tmp_path, SETTINGS, [1], start=start)
    assert content(tmp_path) == {"00000.png": b"mine"}


def test_overwriting_removes_earlier_results_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(MaskFolder(out, SETTINGS, [1, 2], per_object=True), 0, 1)
    (out / "notes.txt").write_bytes(b"mine")
    (out / "2" / "notes.txt").write_bytes(b"mine")
    writer = MaskFolder(out, OTHERS, [1], start="overwrite")
    assert "1/00000.png" in content(out)  # until there is something to replace it
    write(writer, 5)
    assert sorted(content(out)) == ["00005.png", "2/notes.txt", SETTINGS_FILE, "notes.txt"]
    assert not (out / "1").exists()
    assert json.loads((out / SETTINGS_FILE).read_text())["start"] == 3


def test_a_folder_is_resumed_with_the_same_settings_only(tmp_path: Path) -> None:
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2]), 0)
    with pytest.raises(OutputError, match="start was 0, now 3"):
        MaskFolder(tmp_path / "out", OTHERS, [1, 2], start="resume")
    with pytest.raises(OutputError, match='layout was "label maps", now "folder per object"'):
        MaskFolder(tmp_path / "out", SETTINGS, [1, 2], per_object=True, start="resume")
    (tmp_path / "out" / SETTINGS_FILE).write_text("{}")
    with pytest.raises(OutputError, match="no earlier results"):
        MaskFolder(tmp_path / "out", SETTINGS, [1, 2], start="resume")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(OutputError, match="it is a file"):
        MaskFolder(tmp_path / "out", SETTINGS, [1])


def test_a_full_disk_leaves_whole_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MaskFolder(tmp_path / "out", SETTINGS, [1, 2])
    writer.write(result(0))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OutputError, match="full"):
        writer.write(result(1))
    writer.finish()
    assert sorted(content(tmp_path / "out")) == ["00000.png", SETTINGS_FILE]


# ------------------------------------------------------------------------------------------------- JSON lines


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_holds_all_about_a_frame() -> None:
    line = json.loads(frame_line(result(2)))
    assert (line["index"], line["time"]) == (2, 0.2)
    first, second = line["objects"]
    assert np.array_equal(decode_rle(first.pop("rle")), mask_of(1, 2))
    assert not decode_rle(second.pop("rle")).any()
    assert first == {
        "id": 1, "state": "tracked", "box": [7, 5, 24, 17], "area": 12 * 17, "predicted_iou": 0.8,
        "object_score": 3.25, "stability": 0.875,
    }  # fmt: skip
    assert (second["state"], second["box"], second["area"]) == ("occluded", None, 0)


def test_a_line_without_masks_and_time() -> None:
    line = json.loads(frame_line(FrameResult(0, None, result(0).objects), masks=False))
    assert line["time"] is None
    assert "rle" not in line["objects"][0]


def test_printed_lines_come_one_by_one() -> None:
    printed: list[str] = []
    writer = PrintedLines(printed.append)
    writer.write(result(0))
    assert [json.loads(line)["index"] for line in printed] == [0]
    writer.write(result(1))
    writer.finish()
    assert printed == [frame_line(result(0)) + "\n", frame_line(result(1)) + "\n"]


def test_a_file_of_lines_begins_with_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(JsonLines(path, SETTINGS), 0, 1)
    header, *frames = lines(path)
    assert header == SETTINGS.header("lines")
    assert frames == [json.loads(frame_line(result(index))) for index in (0, 1)]


def test_a_reader_sees_each_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    writer = JsonLines(path, SETTINGS, masks=False)
    assert not path.exists()
    writer.write(result(0))
    assert [line.get("index") for line in lines(path)] == [None, 0]
    writer.finish()


@pytest.mark.parametrize("cut", [0, 10, 200, 700, 1200, -1, -2, -40])
def test_resumed_lines_are_the_uninterrupted_ones(tmp_path: Path, cut: int) -> None:
    """Wherever the run before was cut off: in the settings, in a line, before its end, between lines."""
    write(JsonLines(tmp_path / "whole.jsonl", SETTINGS), 0, 1, 2, 3)
    whole = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "cut.jsonl"
    path.write_bytes(whole[:cut])
    write(JsonLines(path, SETTINGS, start="resume"), 0, 1, 2, 3)
    assert path.read_bytes() == whole


def test_resuming_what_is_not_there_begins(tmp_path: Path) -> None:
    write(JsonLines(tmp_path / "out.jsonl", SETTINGS, start="resume"), 0)
    write(MaskFolder(tmp_path / "out", SETTINGS, [1, 2], start="resume"), 0)
    assert len(lines(tmp_path / "out.jsonl")) == 2
    assert "00000.png" in content(tmp_path / "out")


def test_resuming_a_complete_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(JsonLines(path, SETTINGS), 0, 1)
    before = path.read_bytes()
    writer = JsonLines(path, SETTINGS, start="resume")
    assert [writer.has(index) for index in range(3)] == [True, True, False]
    writer.finish()
    assert path.read_bytes() == before


def test_a_line_that_was_cut_off_is_dropped_also_if_nothing_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(JsonLines(path, SETTINGS), 0, 1)
    before = path.read_bytes()
    path.write_bytes(before + b'{"index": 2, "ti')
    write(JsonLines(path, SETTINGS, start="resume"), 0, 1)
    assert path.read_bytes() == before


def test_what_follows_a_resumed_line_is_dropped(tmp_path: Path) -> None:
    """The line that was cut off may be longer than what is written in its place."""
    path = tmp_path / "out.jsonl"
    write(JsonLines(path, SETTINGS), 0, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: whole[:-1].rindex(b"\n") + 1] + b"x" * 10_000)
    write(JsonLines(path, SETTINGS, start="resume"), 0, 1)
    assert path.read_bytes() == whole


def test_lines_are_resumed_with_the_same_settings_only(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write(JsonLines(path, SETTINGS), 0)
    before = path.read_bytes()
    with pytest.raises(OutputError, match="start was 0, now 3"):
        JsonLines(path, OTHERS, start="resume")
    with pytest.raises(OutputError, match='layout was "lines", now "lines without masks"'):
        JsonLines(path, SETTINGS, masks=False, start="resume")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("damaged", "words"),
    [
        (b"hello\n", "did not write it"),
        (b"hello", "did not write it"),
        (b'{"a": 1}\n{"index": 0}\n', "did not write it"),
        (None, "line 2 is not one"),
    ],
)
def test_lines_that_something_else_wrote_are_not_resumed(
    tmp_path: Path, damaged: bytes | None, words: str
) -> None:
    path = tmp_path / "out.jsonl"
    write(JsonLines(path, SETTINGS), 0, 1)
    if damaged is None:
        header, first, second = path.read_bytes().splitlines(keepends=True)
        damaged = header + first[:-30] + b"\n" + second
    path.write_bytes(damaged)
    with pytest.raises(OutputError, match=words):
        JsonLines(path, SETTINGS, start="resume")
    assert path.read_bytes() == damaged


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, fill_disk: FillDisk) -> None:
    path = tmp_path / "out.jsonl"
    write(JsonLines(path, SETTINGS), 0, 1, 2)
    whole = path.read_bytes()
    two = whole[: whole[:-1].rindex(b"\n") + 1]
    fill_disk(result_text, len(two) + 20)
    writer = JsonLines(path, SETTINGS, start="overwrite")
    writer.write(result(0))
    writer.write(result(1))
    with pytest.raises(OutputError, match="full"):
        writer.write(result(2))
    writer.finish()
    assert path.read_bytes() == two


@pytest.mark.parametrize("kind", [JsonLines, CocoDocument])
def test_a_file_is_replaced_only_when_asked(tmp_path: Path, kind: Callable[..., ResultWriter]) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="--overwrite"):
        kind(path, SETTINGS)
    writer = kind(path, SETTINGS, start="overwrite")
    writer.finish()
    assert path.read_bytes() == b"mine"  # nothing came to replace it
    write(kind(path, SETTINGS, start="overwrite"), 0)
    assert b"mine" not in path.read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(OutputError, match="not a plain file"):
        kind(path, SETTINGS)


@pytest.mark.parametrize("kind", [JsonLines, CocoDocument])
def test_a_folder_that_is_gone(tmp_path: Path, kind: Callable[..., ResultWriter]) -> None:
    writer = kind(tmp_path / "nowhere" / "out", SETTINGS)
    with pytest.raises(OutputError, match="does not exist"):
        writer.write(result(0))
    writer.finish()


# ---------------------------------------------------------------------------------------------- COCO document


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_cocos_own_tools_read_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    write(CocoDocument(tmp_path / "out.json", SETTINGS), 1, 2, 3)
    document = coco.COCO(str(tmp_path / "out.json"))  # prints
    assert document.getImgIds() == [1, 2, 3]
    image = document.loadImgs(2)[0]
    assert (image["height"], image["width"], image["time"]) == (40, 60, 0.2)
    assert len(document.loadAnns(document.getAnnIds())) == 6
    assert [annotation["id"] for annotation in document.loadAnns(document.getAnnIds())] == list(range(1, 7))
    for annotation in document.loadAnns(document.getAnnIds()):
        mask = mask_of(annotation["track_id"], annotation["image_id"])
        assert np.array_equal(document.annToMask(annotation).astype(bool), mask)
        assert annotation["area"] == mask.sum()
        box = coco.maskUtils.toBbox(annotation["segmentation"]).tolist()
        assert annotation["bbox"] == box
    assert document.loadCats(1) == [{"id": 1, "name": "object"}]
    assert document.dataset["info"]["model"] == {"name": "tiny.pt", "bytes": 5}


def test_the_document_appears_when_it_is_finished(tmp_path: Path) -> None:
    writer = CocoDocument(tmp_path / "out.json", SETTINGS)
    writer.write(result(0))
    assert not (tmp_path / "out.json").exists()
    writer.finish()
    assert len(json.loads((tmp_path / "out.json").read_text())["annotations"]) == 2
    writer.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_a_frame_without_objects_is_no_image(tmp_path: Path) -> None:
    writer = CocoDocument(tmp_path / "out.json", SETTINGS)
    writer.write(FrameResult(0, None, ()))
    writer.write(result(1))
    writer.finish()
    assert [image["id"] for image in json.loads((tmp_path / "out.json").read_text())["images"]] == [1]


@pytest.mark.parametrize("missing", [1, 300, 3000])
def test_a_full_disk_leaves_a_valid_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fill_disk: FillDisk, missing: int
) -> None:
    """Too little room for the last annotations, or only for the end of the document."""
    monkeypatch.setattr(result_text, "_BLOCK", 0)
    path = tmp_path / "out.json"
    write(CocoDocument(path, SETTINGS), *range(20))
    fill_disk(result_text, len(path.read_bytes()) - missing)
    writer = CocoDocument(path, SETTINGS, start="overwrite")
    with pytest.raises(OutputError, match="full") as error:
        write(writer, *range(20))
    document = json.loads(path.read_text())
    kept = [image["id"] for image in document["images"]]
    assert 1 < len(kept) < 20
    assert kept == list(range(len(kept)))
    assert {annotation["image_id"] for annotation in document["annotations"]} == set(kept)
    assert f"the first {len(kept)} of" in str(error.value)


def test_a_disk_that_is_full_at_once_leaves_nothing(tmp_path: Path, fill_disk: FillDisk) -> None:
    fill_disk(result_text, 10)
    writer = CocoDocument(tmp_path / "out.json", SETTINGS)
    with pytest.raises(OutputError, match="full"):
        writer.write(result(0))
    with pytest.raises(OutputError, match="full"):
        writer.finish()
    assert list(tmp_path.iterdir()) == []
