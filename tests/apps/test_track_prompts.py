"""Prompts of `masklet track`, from options, mask files and prompts files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from masklet.apps.options import Box, Point
from masklet.apps.track_prompts import (
    Told,
    check_prompts,
    gather,
    parse_frame_box,
    parse_frame_mask,
    parse_frame_point,
    read_prompts_file,
)
from masklet.errors import InputError
from masklet.io.label_map import write_label_map

# --------------------------------------------------------------------------------------------------- options


def test_points() -> None:
    assert parse_frame_point("0:1:5,6.5") == Told(0, 1, point=Point(5, 6.5, 1))
    assert parse_frame_point("12:34:5,6,0") == Told(12, 34, point=Point(5, 6, 0))


def test_boxes() -> None:
    assert parse_frame_box("3:2:1,2,3,4.5") == Told(3, 2, box=Box((1, 2, 3, 4.5)))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("0:1:cup.png", Told(0, 1, mask=Path("cup.png"))),
        ("7:cup.png", Told(7, None, mask=Path("cup.png"))),
        ("7:C:\\masks\\cup.png", Told(7, None, mask=Path("C:\\masks\\cup.png"))),
        ("7:3:C:\\masks\\cup.png", Told(7, 3, mask=Path("C:\\masks\\cup.png"))),
        ("7:./3:cup.png", Told(7, None, mask=Path("./3:cup.png"))),
    ],
)
def test_masks(text: str, told: Told) -> None:
    assert parse_frame_mask(text) == told


@pytest.mark.parametrize(
    "text",
    [
        "", "5,6", "1:5,6", "0:1:5", "0:1:5,6,2", "0:1:5,6,1,1", "0:1:x,6", "a:1:5,6", "0:b:5,6", "-1:1:5,6",
        "0:1:5,6:7", "0:1:nan,6", "0.5:1:5,6",
    ],
)  # fmt: skip
def test_points_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"give FRAME:OBJ:X,Y\[,0\|1\], for example 0:1:520,375"):
        parse_frame_point(text)


@pytest.mark.parametrize("text", ["1,2,3,4", "0:1:1,2,3", "0:1:1,2,3,4,5", "0:1:1,2,3,inf", "0:x:1,2,3,4"])
def test_boxes_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="give FRAME:OBJ:X0,Y0,X1,Y1"):
        parse_frame_box(text)


@pytest.mark.parametrize("text", ["", "cup.png", "1:", "1:2:", ":1:cup.png", "a:cup.png"])
def test_masks_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"FRAME:OBJ:FILE"):
        parse_frame_mask(text)


@pytest.mark.parametrize("parse", [parse_frame_point, parse_frame_mask])
def test_objects_are_numbered_from_1(parse: Any) -> None:
    with pytest.raises(typer.BadParameter, match="from 1"):
        parse("0:0:5,6")


# --------------------------------------------------------------------------------------------- prompts files


def read(folder: Path, content: Any) -> list[Told]:
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / "prompts.json").write_text(text)
    return read_prompts_file(folder / "prompts.json")


def test_a_prompts_file(tmp_path: Path) -> None:
    told = read(
        tmp_path,
        [
            {"frame": 0, "object": 1, "points": [[5, 6], [7.5, 8]], "labels": [1, 0], "box": [1, 2, 3, 4]},
            {"frame": 4, "object": 2, "points": [[5, 6]]},
            {"frame": 5, "object": 3, "mask": "cup.png"},
            {"frame": 6, "mask": "sub/map.png"},
        ],
    )
    assert told == [
        Told(0, 1, box=Box((1, 2, 3, 4))),
        Told(0, 1, point=Point(5, 6, 1)),
        Told(0, 1, point=Point(7.5, 8, 0)),
        Told(4, 2, point=Point(5, 6, 1)),
        Told(5, 3, mask=tmp_path / "cup.png"),
        Told(6, None, mask=tmp_path / "sub" / "map.png"),
    ]


GOOD: dict[str, Any] = {"frame": 0, "object": 1, "points": [[5, 6]]}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"frame": 0}, "holds an object; a prompts file is a list"),
        (3, "holds a number"),
        ([GOOD, 3], "prompt 2 .* got a number"),
        ([{**GOOD, "point": [5, 6]}], "'point' is unknown.* Did you mean 'points'"),
        ([{**GOOD, "obj": 1}], "'obj' is unknown.* Did you mean 'object'"),
        ([{**GOOD, "colour": 1}], "'colour' is unknown; there are frame, object"),
        ([{"object": 1, "points": [[5, 6]]}], 'give "frame".*it has none'),
        ([{**GOOD, "frame": -1}], 'give "frame", a whole number from 0 on; it has -1'),
        ([{**GOOD, "frame": 1.5}], 'give "frame"'),
        ([{**GOOD, "frame": True}], 'give "frame"'),
        ([{**GOOD, "object": 0}], 'give "object", a whole number from 1 on'),
        ([{"frame": 0, "points": [[5, 6]]}], 'give "object"'),
        ([{"frame": 0, "object": 1}], "says nothing"),
        ([{**GOOD, "points": []}], "says nothing"),
        ([{**GOOD, "points": [5, 6]}], r"points hold 5; give a list of \[x, y\]"),
        ([{**GOOD, "points": "5,6"}], "points are text"),
        ([{**GOOD, "points": [[5, None]]}], "points hold"),
        ([{**GOOD, "points": [[5, True]]}], "points hold"),
        ('[{"frame": 0, "object": 1, "points": [[5, NaN]]}]', "points hold"),
        ('[{"frame": 0, "object": 1, "points": [[5, Infinity]]}]', "points hold"),
        ([{**GOOD, "labels": [1, 0]}], "2 points|for 1 points"),
        ([{**GOOD, "labels": [2]}], "1 on the object or 0 off it"),
        ([{**GOOD, "labels": 1}], "give one for each point"),
        ([{"frame": 0, "object": 1, "labels": [1], "box": [1, 2, 3, 4]}], "labels without points"),
        ([{**GOOD, "box": [1, 2, 3]}], r"box hold \[1, 2, 3\]; give \[x0, y0, x1, y1\]"),
        ([{**GOOD, "mask": 5}], "mask is a number"),
    ],
)
def test_entries_that_cannot_be_meant(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        read(tmp_path, content)


@pytest.mark.parametrize("content", ["", "[", "frame 0", "[" * 100_000])
def test_files_that_are_not_json(tmp_path: Path, content: str) -> None:
    with pytest.raises(InputError, match="is not JSON"):
        read(tmp_path, content)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Cannot read"):
        read_prompts_file(tmp_path / "missing.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not text"):
        read_prompts_file(tmp_path / "binary.json")


# --------------------------------------------------------------------------------------------------- gathered


def test_statements_are_gathered_by_object_and_frame() -> None:
    told = [
        Told(5, 2, point=Point(1, 1, 1)),
        Told(0, 1, point=Point(2, 2, 1)),
        Told(0, 1, box=Box((0, 0, 9, 9))),
        Told(0, 1, point=Point(3, 3, 0)),
        Told(3, 1, point=Point(4, 4, 1)),
    ]
    prompts = gather(told)
    assert [(prompt.object_id, prompt.frame) for prompt in prompts] == [(1, 0), (1, 3), (2, 5)]
    assert prompts[0].points == [Point(2, 2, 1), Point(3, 3, 0)]
    assert prompts[0].box == Box((0, 0, 9, 9))
    assert prompts[0].document() == {
        "frame": 0, "object": 1, "points": [[2, 2, 1], [3, 3, 0]], "box": [0, 0, 9, 9], "mask": None,
    }  # fmt: skip


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """A label map of objects 3 and 7, a black and white mask, logits, and an empty mask."""
    labels = np.zeros((8, 12), np.uint8)
    labels[:4, :4], labels[5:, 6:] = 3, 7
    write_label_map(tmp_path / "map.png", labels)
    Image.fromarray((labels == 3) * np.uint8(255)).save(tmp_path / "white.png")
    np.save(tmp_path / "logits.npy", np.where(labels == 7, 2.5, -2.5))
    Image.fromarray(labels * 0).save(tmp_path / "empty.png")
    return tmp_path


def test_masks_of_files(masks: Path) -> None:
    told = [
        Told(1, None, mask=masks / "map.png"),
        Told(0, 1, mask=masks / "white.png"),
        Told(0, 2, mask=masks / "logits.npy"),
    ]
    prompts: dict[Any, Any] = {(prompt.object_id, prompt.frame): prompt.mask for prompt in gather(told)}
    assert list(prompts) == [(1, 0), (2, 0), (3, 1), (7, 1)]
    for key in ((1, 0), (3, 1)):
        assert prompts[key].dtype == bool
        assert prompts[key].sum() == 16
    assert np.array_equal(prompts[2, 0], prompts[7, 1])


def test_a_masks_checksum_tells_masks_apart(masks: Path) -> None:
    first, second, third = (
        gather([Told(0, 1, mask=masks / name)])[0].document()["mask"]
        for name in ("white.png", "white.png", "logits.npy")
    )
    assert first == second != third


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([], "which object"),
        ([Told(0, 1, box=Box((0, 0, 1, 1)))] * 2, "frame 0, object 1 has two boxes"),
        ([Told(0, 3, mask=Path("white.png")), Told(0, None, mask=Path("map.png"))], "object 3 has two masks"),
        ([Told(0, 3, mask=Path("white.png")), Told(0, 3, point=Point(1, 1, 1))], "a mask stands alone"),
        ([Told(0, 3, box=Box((0, 0, 1, 1))), Told(0, None, mask=Path("map.png"))], "a mask stands alone"),
    ],
)
def test_statements_that_contradict_each_other(
    masks: Path, monkeypatch: pytest.MonkeyPatch, told: list[Told], words: str
) -> None:
    monkeypatch.chdir(masks)
    with pytest.raises(typer.BadParameter, match=words):
        gather(told)


def test_an_empty_mask_is_no_prompt(masks: Path) -> None:
    with pytest.raises(InputError, match="empty"):
        gather([Told(0, 1, mask=masks / "empty.png")])


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (Told(10, 1, point=Point(1, 1, 1)), "frame 10, object 1: there is no such frame; the video has 10"),
        (Told(0, 2, point=Point(61, 1, 1)), "frame 0, object 2: The point .* outside the picture"),
        (Told(0, 2, box=Box((0, 0, 61, 1))), "outside the picture"),
        (Told(0, 2, box=Box((9, 9, 1, 1))), "swapped"),
    ],
)
def test_prompts_that_the_video_has_no_place_for(told: Told, words: str) -> None:
    with pytest.raises(typer.BadParameter, match=words):
        check_prompts(gather([told]), 10, (40, 60))


def test_prompts_that_fit() -> None:
    told = [Told(9, 1, point=Point(60, 40, 0)), Told(0, 2, box=Box((0, 0, 60, 40)))]
    check_prompts(gather(told), 10, (40, 60))
    check_prompts(gather([Told(10_000, 1, point=Point(1, 1, 1))]), None, (40, 60))  # a camera has no end
