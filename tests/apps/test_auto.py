from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import masklet as library
from masklet.apps import auto_outputs
from masklet.apps.auto_outputs import Output, write_outputs
from masklet.io.overlay import draw_overlay
from masklet.pipeline.found import FoundMask
from masklet.rle import decode_rle
from masklet.testing import Scene

Command = Callable[..., Any]


@pytest.fixture
def expected(finding_checkpoint: Path, scene: Scene) -> Callable[..., list[dict[str, Any]]]:
    """Records from the library itself, best first."""

    def generate(tile: int | None = None, overlap: int = 128, **settings: Any) -> list[dict[str, Any]]:
        model = library.load(finding_checkpoint, threads=1)
        generator = library.AutomaticMaskGenerator(model, **settings)
        records = generator.generate(scene.image, tile=tile, overlap=overlap)
        return sorted(records, key=lambda record: -record["predicted_iou"])

    return generate


@pytest.fixture
def auto(masklet: Command, workplace: Path, finding_checkpoint: Path) -> Command:
    """Calls `masklet auto scene.png`."""

    def call(*arguments: object) -> Any:
        return masklet("auto", "scene.png", *arguments, "--model", finding_checkpoint, "--threads", 1)

    return call


def read(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def masks_of(listed: list[dict[str, Any]]) -> list[np.ndarray]:
    return [decode_rle(entry["segmentation"]) for entry in listed]


# ---------------------------------------------------------------------------------------------------- results


def test_without_options_everything_goes_to_a_folder_here(auto: Command, scene: Scene, expected: Any) -> None:
    result = auto("--preset", "fast")
    assert result.exit_code == 0
    records = expected(points_per_side=16)
    assert len(records) >= 20
    assert sorted(os.listdir()) == ["scene-masks", "scene.png"]
    assert sorted(os.listdir("scene-masks")) == ["labels.png", "masks.json", "overlay.png"]
    header, line = result.stdout.splitlines()
    assert header.split()[0] == "masks"
    assert line.split()[0] == str(len(records))
    assert line.endswith("scene-masks")

    document = json.loads(Path("scene-masks/masks.json").read_text())
    assert document["images"] == [{"id": 1, "file_name": "scene.png", "width": 160, "height": 120}]
    listed = document["annotations"]
    assert [entry["id"] for entry in listed] == list(range(1, len(records) + 1))
    for entry, mask, record in zip(listed, masks_of(listed), records, strict=True):
        np.testing.assert_array_equal(mask, record["segmentation"])
        assert entry["score"] == pytest.approx(record["predicted_iou"], abs=1e-6)
        assert entry["stability"] == pytest.approx(record["stability_score"], abs=1e-6)
        assert entry["point"] == pytest.approx(record["point_coords"][0], abs=0.01)
        assert entry["category_id"] == entry["image_id"] == 1

    labels, overlay = read("scene-masks/labels.png"), read("scene-masks/overlay.png")
    painted = np.zeros((120, 160), int)
    for index in sorted(range(len(records)), key=lambda index: -records[index]["area"]):
        painted[records[index]["segmentation"]] = index + 1
    np.testing.assert_array_equal(labels, painted)
    assert overlay.shape == scene.image.shape
    changed = (overlay != scene.image).any(axis=2)
    assert changed[painted > 0].mean() > 0.9
    assert not changed.all()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools' own
def test_pycocotools_reads_the_document(auto: Command) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    auto("--preset", "fast", "-o", "out.json")
    for entry in json.loads(Path("out.json").read_text())["annotations"]:
        assert coco.area(entry["segmentation"]) == entry["area"]
        assert coco.toBbox(entry["segmentation"]).tolist() == entry["bbox"]


def test_several_outputs_and_json_on_stdout(auto: Command) -> None:
    result = auto("--preset", "fast", "-o", "found.json", "-o", "seen.jpg", "--json")
    assert result.exit_code == 0
    assert sorted(os.listdir()) == ["found.json", "scene.png", "seen.jpg"]
    document = json.loads(result.stdout)
    assert document["image"] == "scene.png"
    assert document["size"] == [120, 160]
    listed = json.loads(Path("found.json").read_text())["annotations"]
    keys = ("score", "stability", "area", "bbox", "point", "segmentation")
    assert document["masks"] == [{key: entry[key] for key in keys} for entry in listed]


def test_json_alone_writes_no_files(auto: Command) -> None:
    assert auto("--preset", "fast", "--json").exit_code == 0
    assert os.listdir() == ["scene.png"]


@pytest.mark.parametrize(
    ("preset", "settings"),
    [
        ("fast", {"points_per_side": 16}),
        ("default", {}),
        ("fine", {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2}),
    ],
)
def test_presets(auto: Command, monkeypatch: pytest.MonkeyPatch, preset: str, settings: dict) -> None:
    given: list[dict[str, Any]] = []

    class Generator:
        def __init__(self, _: Any, **arguments: Any) -> None:
            given.append(arguments)

        def find(self, *_: Any, **__: Any) -> list[FoundMask]:
            return []

    monkeypatch.setattr(library, "AutomaticMaskGenerator", Generator, raising=False)
    result = auto("--preset", preset, "--min-area", 7, "--json")
    assert result.exit_code == 0
    assert given == [{**settings, "min_mask_region_area": 7}]
    assert "No mask was good enough" in result.stderr


def test_small_masks_are_left_out_and_the_best_are_kept(auto: Command, expected: Any) -> None:
    result = auto("--preset", "fast", "--min-area", 6, "--max-masks", 3, "--json")
    masks = json.loads(result.stdout)["masks"]
    records = expected(points_per_side=16, min_mask_region_area=6)
    areas = [record["area"] for record in records if record["area"] >= 6]
    assert len(areas) > 3
    assert len(areas) < len(records)
    assert [mask["area"] for mask in masks] == areas[:3]


def test_tiles(auto: Command, expected: Any) -> None:
    result = auto("--preset", "fast", "--tile", 96, "--overlap", 24, "--json")
    masks = masks_of(json.loads(result.stdout)["masks"])
    records = expected(points_per_side=16, tile=96, overlap=24)
    assert len(records) >= 20
    for mask, record in zip(masks, records, strict=True):
        np.testing.assert_array_equal(mask, record["segmentation"])


# ------------------------------------------------------------------------------------------------------ files


def found(*masks: np.ndarray) -> list[FoundMask]:
    numbers = {"predicted_iou": 0.9, "stability": 0.9, "point_xy": (0.0, 0.0), "crop_xyxy": (0, 0, 40, 30)}
    return [FoundMask.of(mask, (0, 0), **numbers) for mask in masks]


def test_many_masks_have_labels_of_16_bits(tmp_path: Path) -> None:
    planes = np.zeros((300, 30, 40), bool)
    planes.reshape(300, -1)[np.arange(300), np.arange(300)] = True
    image = np.zeros((30, 40, 3), np.uint8)
    write_outputs([Output("folder", tmp_path / "out")], Path("a.png"), image, found(*planes), "x")
    labels = read(tmp_path / "out" / "labels.png")
    np.testing.assert_array_equal(labels.ravel()[:300], np.arange(1, 301))


def test_the_overlay_is_that_of_whole_masks(tmp_path: Path, scene: Scene) -> None:
    masks = sorted(scene.masks, key=lambda mask: -mask.sum())
    write_outputs([Output("overlay", tmp_path / "o.png")], Path("a"), scene.image, found(*masks), "x")
    np.testing.assert_array_equal(read(tmp_path / "o.png"), draw_overlay(scene.image, masks))


def test_a_folder_appears_as_a_whole(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(auto_outputs, "_write_coco", fail)
    with pytest.raises(KeyboardInterrupt):
        write_outputs(
            [Output("folder", tmp_path / "out")], Path("a.png"), scene.image, found(*scene.masks), "x"
        )
    assert os.listdir(tmp_path) == []


# ----------------------------------------------------------------------------------------------------- errors


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.bmp2"], "A document ends in .json; a folder has no suffix"),
        (["-o", "nowhere/out.json"], "the folder 'nowhere' does not exist"),
        (["-o", "scene.png"], "that is the picture itself"),
        (["-o", "a.json", "-o", "a.json"], "two results would go there"),
        (["-o", "file/"], "that is a file"),
        (["--tile", "64", "--overlap", "40"], "Tiles of 64 pixels with an overlap of 40"),
    ],
)
def test_what_cannot_work_is_found_before_a_model_is_loaded(
    auto: Command, arguments: list[str], message: str
) -> None:
    Path("file").write_text("")
    result = auto(*arguments)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    "arguments", [["--preset", "best"], ["--max-masks", "0"], ["--min-area", "-1"], ["--tile", "x"]]
)
def test_what_is_not_understood_is_a_usage_error(auto: Command, arguments: list[str]) -> None:
    assert auto(*arguments).exit_code == 2
