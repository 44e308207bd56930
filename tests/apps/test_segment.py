from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import masklet as library
from masklet.io.masks import read_mask_input
from masklet.io.overlay import draw_overlay
from masklet.rle import decode_rle
from masklet.testing import Scene

Command = Callable[..., Any]
POINT = "60,50"


@pytest.fixture
def expected(tiny_checkpoint: Path, scene: Scene) -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    """Masks and scores from the library itself."""

    def predict(**prompts: Any) -> tuple[np.ndarray, np.ndarray]:
        predictor = library.ImagePredictor(library.load(tiny_checkpoint))
        predictor.set_image(scene.image)
        masks, scores, _ = predictor.predict(**prompts)
        return masks, scores

    return predict


def read(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


# ---------------------------------------------------------------------------------------------------- results


def test_without_options_the_mask_goes_here_and_a_table_to_stdout(
    masklet: Command, workplace: Path, tiny_checkpoint: Path, expected: Any
) -> None:
    result = masklet("segment", "scene.png", "--point", POINT, "--model", tiny_checkpoint)
    assert result.exit_code == 0
    masks, scores = expected(point_coords=[[60, 50]], point_labels=[1], multimask_output=False)
    assert np.array_equal(read("scene-mask.png"), masks[0] * np.uint8(255))
    header, line = result.stdout.splitlines()
    assert header.split()[0] == "score"
    assert line.split()[:2] == [f"{scores[0]:.3f}", str(masks[0].sum())]
    assert line.endswith("scene-mask.png")
    assert sorted(os.listdir()) == ["scene-mask.png", "scene.png"]


def test_the_default_mask_goes_to_the_current_folder_not_to_the_pictures(
    masklet: Command, workplace: Path, tiny_checkpoint: Path
) -> None:
    (workplace / "pictures").mkdir()
    (workplace / "scene.png").rename("pictures/scene.png")
    result = masklet("segment", "pictures/scene.png", "--point", POINT, "--model", tiny_checkpoint)
    assert result.exit_code == 0
    assert (workplace / "scene-mask.png").is_file()


def test_json_is_one_document_that_holds_the_mask(
    masklet: Command, workplace: Path, tiny_checkpoint: Path, expected: Any
) -> None:
    result = masklet("segment", "scene.png", "--box", "20,15,90,100", "--json", "--model", tiny_checkpoint)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    masks, scores = expected(box=[20, 15, 90, 100], multimask_output=False)
    rows, columns = np.nonzero(masks[0])
    left, top = int(columns.min()), int(rows.min())
    assert document["size"] == [120, 160]
    assert document["model"] == "custom"
    [mask] = document["masks"]
    assert np.array_equal(decode_rle(mask["segmentation"]), masks[0])
    assert mask["score"] == pytest.approx(float(scores[0]))
    assert mask["area"] == masks[0].sum()
    assert mask["bbox"] == [left, top, int(columns.max()) - left + 1, int(rows.max()) - top + 1]
    assert os.listdir() == ["scene.png"]  # no file that nobody asked for


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_pycocotools_decodes_the_same_mask(
    masklet: Command, workplace: Path, tiny_checkpoint: Path, expected: Any
) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    result = masklet("segment", "scene.png", "--point", POINT, "--json", "--model", tiny_checkpoint)
    [mask] = json.loads(result.stdout)["masks"]
    masks, _ = expected(point_coords=[[60, 50]], point_labels=[1], multimask_output=False)
    assert np.array_equal(coco.decode(mask["segmentation"]).astype(bool), masks[0])
    assert coco.toBbox(mask["segmentation"]).tolist() == mask["bbox"]
    assert coco.area(mask["segmentation"]) == mask["area"]


def test_all_prompts_together(
    masklet: Command, workplace: Path, tiny_checkpoint: Path, expected: Any
) -> None:
    rough = np.zeros((60, 80), np.uint8)
    rough[20:40, 10:50] = 255
    Image.fromarray(rough).save("rough.png")
    result = masklet(
        "segment", "scene.png", "--point", POINT, "--point", "10.5,100,0", "--box", "20,15,90,100",
        "--mask-input", "rough.png", "-o", "out.png", "--model", tiny_checkpoint,
    )  # fmt: skip
    assert result.exit_code == 0
    masks, _ = expected(
        point_coords=[[60, 50], [10.5, 100]],
        point_labels=[1, 0],
        box=[20, 15, 90, 100],
        mask_input=read_mask_input("rough.png", 32),
        multimask_output=False,
    )
    assert np.array_equal(read("out.png") > 0, masks[0])


def test_multimask_gives_three_best_first_in_numbered_files(
    masklet: Command, workplace: Path, tiny_checkpoint: Path, expected: Any
) -> None:
    result = masklet(
        "segment", "scene.png", "--point", POINT, "--multimask", "--json", "-o", "out.png",
        "--overlay", "seen.jpg", "--model", tiny_checkpoint,
    )  # fmt: skip
    assert result.exit_code == 0
    masks, scores = expected(point_coords=[[60, 50]], point_labels=[1], multimask_output=True)
    listed = json.loads(result.stdout)["masks"]
    best_first = np.argsort(-scores)
    assert [mask["score"] for mask in listed] == pytest.approx(scores[best_first].tolist())
    for number, (mask, index) in enumerate(zip(listed, best_first, strict=True), 1):
        assert mask["mask_file"] == f"out-{number}.png"
        assert mask["overlay_file"] == f"seen-{number}.jpg"
        assert np.array_equal(decode_rle(mask["segmentation"]), masks[index])
        assert np.array_equal(read(mask["mask_file"]) > 0, masks[index])
    assert not Path("out.png").exists()


def test_overlay_shows_mask_and_prompts(
    masklet: Command, workplace: Path, tiny_checkpoint: Path, scene: Scene, expected: Any
) -> None:
    arguments = (
        "--point",
        POINT,
        "--box",
        "20,15,90,100",
        "--overlay",
        "seen.png",
        "--model",
        tiny_checkpoint,
    )
    result = masklet("segment", "scene.png", *arguments)
    assert result.exit_code == 0
    box = [20, 15, 90, 100]
    masks, _ = expected(point_coords=[[60, 50]], point_labels=[1], box=box, multimask_output=False)
    drawn = draw_overlay(scene.image, masks[0], points=[[60, 50]], labels=[1], boxes=box)
    assert np.array_equal(read("seen.png"), drawn)
    assert sorted(os.listdir()) == ["scene.png", "seen.png"]


def test_options_of_the_model_reach_it(
    masklet: Command, workplace: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    load = library.load

    def spy(path: Path, **options: Any) -> Any:
        seen.update(options)
        return load(path, **options)

    monkeypatch.setattr(library, "load", spy)
    result = masklet(
        "segment", "scene.png", "--point", POINT, "--model", tiny_checkpoint,
        "--device", "cpu", "--threads", "1", "--precision", "f32", "--image-size", "96",
    )  # fmt: skip
    assert result.exit_code == 0
    expected = {"device": "cpu", "threads": 1, "precision": "f32", "image_size": 96, "profile": None}
    assert seen == expected


# ----------------------------------------------------------------------------------- wrong usage, exit code 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "which object? Give --point"),
        (("--point", "5"), "X,Y in pixels"),
        (("--point", "5,6,2"), "X,Y in pixels"),
        (("--point", "5,6,1,1"), "X,Y in pixels"),
        (("--point", "nan,6"), "X,Y in pixels"),
        (("--point", "5;6"), "X,Y in pixels"),
        (("--box", "1,2,3"), "X0,Y0,X1,Y1"),
        (("--box", "1,2,3,inf"), "X0,Y0,X1,Y1"),
        (("--box", "1,2,3,4", "--box", "1,2,3,4"), "one object"),
        (("--point", POINT, "--image-size", "0"), "--image-size"),
        (("--point", POINT, "--image-size", "big"), "--image-size"),
        (("--point", POINT, "--threads", "0"), "--threads"),
        (("--point", POINT, "--no-such-option"), "--no-such-option"),
    ],
)
@pytest.mark.usefixtures("no_model", "workplace")
def test_usage_errors(masklet: Command, plain: Any, arguments: tuple[str, ...], words: str) -> None:
    result = masklet("segment", "scene.png", *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert words in plain(result.stderr)


# ------------------------------------------------------------------------------------ our errors, exit code 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--point", "160.5,10"), "outside the picture"),
        (("--point", "10,-1"), "outside the picture"),
        (("--box", "90,15,20,100"), "swapped"),
        (("--point", POINT, "-o", "nowhere/out.png"), "the folder 'nowhere' does not exist"),
        (("--point", POINT, "--overlay", "nowhere/out.png"), "the folder 'nowhere' does not exist"),
        (("--point", POINT, "-o", "out.jpg"), ".png"),
        (("--point", POINT, "--overlay", "out.txt"), ".png, .jpg"),
        (("--point", POINT, "-o", "scene.png"), "the picture itself"),
        (("--point", POINT, "-o", "./a.png", "--overlay", "a.png"), "same file"),
        (("--point", POINT, "-o", "folder.png"), "it is a folder"),
    ],
)
@pytest.mark.usefixtures("no_model")
def test_errors_that_are_found_before_the_model_is_loaded(
    masklet: Command, workplace: Path, arguments: tuple[str, ...], words: str
) -> None:
    (workplace / "folder.png").mkdir()
    before = (workplace / "scene.png").read_bytes()
    result = masklet("segment", "scene.png", *arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert (workplace / "scene.png").read_bytes() == before
    assert sorted(os.listdir()) == ["folder.png", "scene.png"]


@pytest.mark.parametrize("content", [b"", b"no picture at all"])
@pytest.mark.usefixtures("no_model", "workplace")
def test_unreadable_pictures(masklet: Command, content: bytes) -> None:
    Path("bad.png").write_bytes(content)
    result = masklet("segment", "bad.png", "--point", POINT)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: 'bad.png' is ")


def test_one_pixel_is_a_picture(masklet: Command, workplace: Path, tiny_checkpoint: Path) -> None:
    Image.new("RGB", (1, 1)).save("dot.png")
    result = masklet("segment", "dot.png", "--point", "0,0", "--json", "--model", tiny_checkpoint)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["size"] == [1, 1]


@pytest.mark.usefixtures("workplace")
def test_logits_of_another_size(masklet: Command, tiny_checkpoint: Path) -> None:
    np.save("logits.npy", np.zeros((1, 256, 256), np.float32))
    result = masklet("segment", "scene.png", "--mask-input", "logits.npy", "--model", tiny_checkpoint)
    assert result.exit_code == 1
    assert "32 x 32" in result.stderr
    assert sorted(os.listdir()) == ["logits.npy", "scene.png"]


@pytest.mark.usefixtures("workplace")
def test_a_model_that_is_not_there_and_cannot_be_downloaded(
    masklet: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = masklet("segment", "scene.png", "--point", POINT, "--model", "sam2.1_hiera_tiny")
    assert result.exit_code == 1
    assert "masklet pull sam2.1_hiera_tiny" in result.stderr
    assert os.listdir() == ["scene.png"]


@pytest.mark.usefixtures("workplace")
def test_without_a_model_it_takes_the_one_in_the_package_and_says_so(masklet: Command) -> None:
    result = masklet("segment", "scene.png", "--point", POINT, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["model"] == "masklet-nano"
    [note] = result.stderr.splitlines()
    assert note.startswith("Model: masklet-nano, ")
    assert "--model sam2.1_hiera_tiny" in note
    chosen = masklet("segment", "scene.png", "--point", POINT, "--json", "--model", "masklet-nano")
    assert (chosen.exit_code, chosen.stdout, chosen.stderr) == (0, result.stdout, "")


@pytest.mark.usefixtures("workplace")
def test_a_folder_of_that_name_is_not_taken_for_the_model(masklet: Command) -> None:
    """Where masklet-nano's own files are kept in a folder of its name, a command without --model works."""
    os.mkdir("masklet-nano")
    assert masklet("segment", "scene.png", "--point", POINT, "--json").exit_code == 0


@pytest.mark.usefixtures("workplace")
def test_a_model_file_that_does_not_exist(masklet: Command) -> None:
    result = masklet("segment", "scene.png", "--point", POINT, "--model", "missing.pt")
    assert result.exit_code == 1
    assert "There is no file 'missing.pt'" in result.stderr


@pytest.mark.usefixtures("workplace")
def test_a_full_disk_leaves_nothing_behind(
    masklet: Command, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    Path("out.png").write_bytes(b"what was there before")
    monkeypatch.setattr("os.fsync", full)
    result = masklet("segment", "scene.png", "--point", POINT, "-o", "out.png", "--model", tiny_checkpoint)
    assert result.exit_code == 1
    assert "full" in result.stderr
    assert Path("out.png").read_bytes() == b"what was there before"
    assert sorted(os.listdir()) == ["out.png", "scene.png"]


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize("moment", ["masklet.ImagePredictor.set_image", "os.fsync"])
def test_ctrl_c_leaves_nothing_behind(
    masklet: Command, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupt)
    result = masklet("segment", "scene.png", "--point", POINT, "--model", tiny_checkpoint)
    assert result.exit_code == 130
    assert result.stdout == ""
    assert result.stderr == "Interrupted.\n"
    assert os.listdir() == ["scene.png"]
