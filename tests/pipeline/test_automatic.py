"""The generator against the obvious way: point by point through `ImagePredictor`, everything enlarged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.errors import Cancelled, InputError
from masklet.io.masks import mask_to_bbox_xywh
from masklet.pipeline import automatic
from masklet.pipeline.crops import crops_of
from masklet.pipeline.found import without_small_regions
from masklet.pipeline.nms import best_boxes
from masklet.pipeline.point_decoder import PicturePoints
from masklet.rle import decode_rle

SETTINGS: dict[str, Any] = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.3,
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.3,
    "mask_threshold": 5.0,
    "box_nms_thresh": 0.95,
}


@pytest.fixture(scope="module")
def image():
    return testing.synthetic_scene(3, (90, 120)).image


def generate(model, image, call=None, **settings):
    generator = masklet.AutomaticMaskGenerator(model, **(SETTINGS | settings))
    return generator.generate(image, **(call or {}))


def obvious(model, image, layers=0, several=True, refine=False) -> list[dict[str, Any]]:
    """Every mask at the picture's size before any is dropped."""
    predictor, size_hw = masklet.ImagePredictor(model), image.shape[:2]
    grid = (np.arange(SETTINGS["points_per_side"]) + 0.5) / SETTINGS["points_per_side"]
    records = []
    for crop in crops_of(size_hw, layers, 512 / 1500):
        x0, y0, x1, y1 = crop.box_xyxy
        predictor.set_image(image[y0:y1, x0:x1])
        of_crop = []
        for xy in ((x * (x1 - x0), y * (y1 - y0)) for y in grid for x in grid):
            arguments = {"point_coords": [xy], "point_labels": [1], "return_logits": True}
            logits, scores, low_res = predictor.predict(**arguments, multimask_output=several)
            if refine:
                again = [
                    predictor.predict(**arguments, mask_input=one[None], multimask_output=False)
                    for one in low_res
                ]
                logits, scores = (np.concatenate([one[part] for one in again]) for part in (0, 1))
            for plane, score in zip(logits, scores, strict=True):
                above, below = (np.count_nonzero(plane > 5.0 + offset) for offset in (0.3, -0.3))
                if score <= 0.3 or below == 0 or above / below < 0.5 or not (plane > 5.0).any():
                    continue
                mask = np.zeros(size_hw, bool)
                mask[y0:y1, x0:x1] = plane > 5.0
                x, y, width, height = mask_to_bbox_xywh(mask)
                outermost = np.array([x, y, x + width - 1, y + height - 1])
                of_edge = np.abs(outermost - crop.box_xyxy) <= 20
                of_picture = np.abs(outermost - [0, 0, size_hw[1], size_hw[0]]) <= 20
                if (of_edge & ~of_picture).any():
                    continue
                record = {"mask": mask, "box": outermost, "score": score, "stability": above / below}
                record |= {"xy": (xy[0] + x0, xy[1] + y0), "crop": [x0, y0, x1 - x0, y1 - y0]}
                of_crop.append(record)
        kept = best_boxes(
            np.array([r["box"] for r in of_crop]), np.array([r["score"] for r in of_crop]), 0.95
        )
        records += [of_crop[index] for index in kept]
    if layers:
        areas = np.array([r["crop"][2] * r["crop"][3] for r in records])
        kept = best_boxes(np.array([r["box"] for r in records]), 1 / areas, 0.7)
        records = [records[index] for index in kept]
    return records


def check(records: list[dict[str, Any]], expected: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    assert len(records) == len(expected)
    for got, wanted in zip(records, expected, strict=True):
        np.testing.assert_array_equal(got["segmentation"], wanted["mask"])
        assert got["area"] == wanted["mask"].sum()
        left, top, right, bottom = wanted["box"]
        assert got["bbox"] == [left, top, right - left, bottom - top]
        assert got["predicted_iou"] == pytest.approx(float(wanted["score"]), abs=tolerance)
        assert got["stability_score"] == pytest.approx(wanted["stability"], abs=1e-6)
        assert got["point_coords"] == [pytest.approx(wanted["xy"], abs=1e-4)]
        assert got["crop_box"] == wanted["crop"]


# ------------------------------------------------------------------------------------------------- the search


def test_the_same_masks_as_one_point_at_a_time(searching_model, image):
    expected = obvious(searching_model, image)
    assert len(expected) >= 15
    check(generate(searching_model, image), expected)


def test_crops(searching_model, image):
    expected = obvious(searching_model, image, layers=1)
    assert len({tuple(record["crop"]) for record in expected}) >= 3
    check(generate(searching_model, image, crop_n_layers=1), expected)


def test_one_mask_for_each_point(searching_model, image):
    expected = obvious(searching_model, image, several=False)
    assert len(expected) >= 4
    check(generate(searching_model, image, multimask_output=False), expected)


def test_masks_refined_by_themselves(searching_model, image):
    expected = obvious(searching_model, image, refine=True)
    assert len(expected) >= 4
    check(generate(searching_model, image, use_m2m=True), expected, tolerance=1e-4)  # decoded twice


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_batch_size_changes_nothing(searching_model, image, batch):
    expected = generate(searching_model, image)
    for got, wanted in zip(generate(searching_model, image, points_per_batch=batch), expected, strict=True):
        np.testing.assert_array_equal(got["segmentation"], wanted["segmentation"])


@pytest.mark.parametrize(
    "settings", [{}, {"adaptive": True}, {"use_m2m": True, "points_per_batch": 2}], ids=str
)
def test_the_number_of_threads_changes_nothing(searching_model, image, settings):
    expected = generate(searching_model, image, **settings)
    model = masklet.load(searching_model.source, threads=3)
    for got, wanted in zip(generate(model, image, **settings), expected, strict=True):
        np.testing.assert_array_equal(got["segmentation"], wanted["segmentation"])
        assert got["point_coords"] == wanted["point_coords"]


def test_points_whose_score_is_too_low_are_never_drawn(searching_model, image, monkeypatch):
    drawn = []
    draw = PicturePoints.draw
    monkeypatch.setattr(
        PicturePoints,
        "draw",
        lambda self, rated, kept: drawn.append((rated.iou[kept], kept)) or draw(self, rated, kept),
    )
    records = generate(searching_model, image, pred_iou_thresh=0.68)
    count = sum(len(kept) for _, kept in drawn)
    assert 0 < count < 36
    assert all((iou[:, 1:].max(axis=1) > 0.68).all() for iou, _ in drawn)
    assert all(record["predicted_iou"] > 0.68 for record in records)


def test_own_points(searching_model, image):
    grid = [[0.25, 0.75], [0.5, 0.5]]
    records = generate(searching_model, image, points_per_side=None, point_grids=[grid], box_nms_thresh=1.0)
    points = {tuple(record["point_coords"][0]) for record in records}
    assert points <= {(30.0, 67.5), (60.0, 45.0)}
    assert points


def test_a_picture_without_masks_gives_none(searching_model, image):
    assert generate(searching_model, image, mask_threshold=1e6) == []
    assert (
        generate(searching_model, image, pred_iou_thresh=1.0, crop_n_layers=1, min_mask_region_area=5) == []
    )


# --------------------------------------------------------------------------------------------- what comes out


@pytest.mark.parametrize("mode", ["uncompressed_rle", "coco_rle"])
def test_run_lengths_are_the_masks(searching_model, image, mode):
    masks = generate(searching_model, image)
    for record, mask in zip(generate(searching_model, image, output_mode=mode), masks, strict=True):
        rle = record["segmentation"]
        assert isinstance(rle["counts"], list if mode == "uncompressed_rle" else str)
        np.testing.assert_array_equal(decode_rle(rle), mask["segmentation"])


def test_small_regions_are_removed_and_what_becomes_alike_goes(searching_model, image):
    generator = masklet.AutomaticMaskGenerator(searching_model, **SETTINGS)
    cleaned = [without_small_regions(one, 40, image.shape[:2]) for one in generator.find(image)]
    unchanged = np.array([not changed for _, changed in cleaned])
    boxes = np.array([one.outermost_xyxy() for one, _ in cleaned])
    kept = best_boxes(boxes, unchanged.astype(float), 0.95)  # those that needed no change come first
    assert len(kept) < len(cleaned)
    records = generate(searching_model, image, min_mask_region_area=40)
    assert [record["area"] for record in records] == [cleaned[index][0].area for index in kept]
    assert [record["bbox"][:2] for record in records] == [[*boxes[index][:2]] for index in kept]


def test_an_adaptive_search_asks_less_and_finds_no_other_masks(searching_model, image, monkeypatch):
    asked = []
    rate = PicturePoints.rate
    monkeypatch.setattr(
        PicturePoints, "rate", lambda self, prompts: asked.append(len(prompts.coords)) or rate(self, prompts)
    )
    settings = {"points_per_side": 12, "mask_threshold": 4.0, "box_nms_thresh": 1.0}
    everything = generate(searching_model, image, **settings)
    whole, asked[:] = sum(asked), []
    found = generate(searching_model, image, **settings, adaptive=True)
    assert whole == 144
    assert 9 <= sum(asked) < 144
    keys = {(tuple(r["point_coords"][0]), r["predicted_iou"]) for r in everything}
    assert all(
        any(xy == other and iou == pytest.approx(score, abs=1e-5) for other, score in keys)
        for xy, iou in ((tuple(r["point_coords"][0]), r["predicted_iou"]) for r in found)
    )
    assert found


def test_an_adaptive_search_leaves_out_what_small_masks_cover(searching_model, image, monkeypatch):
    """With masks of our own: one that covers the left third, one that covers all."""

    class Search:
        def __init__(self, *_: Any) -> None: ...

        def masks_at(self, points_xy: np.ndarray) -> list[Any]:
            asked.extend(points_xy.tolist())
            if len(asked) > len(points_xy):
                return []
            third, all_ = np.zeros((2, 90, 120), bool)
            third[:, :24], all_[:] = True, True
            numbers = {
                "predicted_iou": 0.9,
                "stability": 1.0,
                "point_xy": (1.0, 1.0),
                "crop_xyxy": (0, 0, 120, 90),
            }
            return [automatic.FoundMask.of(mask, (0, 0), **numbers) for mask in (third, all_)]

    asked: list[list[float]] = []
    monkeypatch.setattr(automatic, "PointSearch", Search)
    generate(searching_model, image, points_per_side=8, adaptive=True)
    assert (np.array(asked[4:])[:, 0] >= 24).all()  # behind the four coarse points
    assert len(asked) == 48  # two of the eight columns lie in the third; what covers all does not count


def test_progress_and_cancel(searching_model, image):
    seen = []
    generate(
        searching_model, image, {"progress": lambda done, total: seen.append((done, total))}, crop_n_layers=1
    )
    assert seen[-1] == (180, 180)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert {total for _, total in seen} == {180}

    answers = iter([False, False, True])
    with pytest.raises(Cancelled, match="search for masks was cancelled"):
        generate(searching_model, image, {"cancel": lambda: next(answers)})


# ------------------------------------------------------------------------------------------------------ tiles


def test_a_tile_as_large_as_the_picture_changes_nothing(searching_model, image):
    expected = generate(searching_model, image)
    for got, wanted in zip(
        generate(searching_model, image, {"tile": 120, "overlap": 20}), expected, strict=True
    ):
        np.testing.assert_array_equal(got["segmentation"], wanted["segmentation"])


def test_tiles_see_what_pictures_of_their_own_would(searching_model, image, monkeypatch):
    """What is joined are the masks of each tile by itself."""
    added = []
    add = automatic.TileJoiner.add
    monkeypatch.setattr(
        automatic.TileJoiner,
        "add",
        lambda self, box, found: added.append((box, found)) or add(self, box, found),
    )
    records = generate(searching_model, image, {"tile": 64, "overlap": 16}, points_per_side=4)
    assert [box for box, _ in added] == [
        (x, y, x + 64, y + 64) for y in (0, 26) for x in (0, 48, 56)
    ]  # fmt: skip
    monkeypatch.undo()
    for (x0, y0, x1, y1), found in added:
        alone = generate(searching_model, image[y0:y1, x0:x1], points_per_side=4)
        assert [one.area for one in found] == [record["area"] for record in alone]
    assert records
    assert {record["segmentation"].shape for record in records} == {(90, 120)}


# -------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"points_per_side": 0}, "points_per_side is 0; give a whole number of at least 1"),
        ({"points_per_side": 2.5}, "points_per_side is 2.5"),
        ({"points_per_side": None}, "either points_per_side or point_grids"),
        ({"point_grids": [[[0.5, 0.5]]]}, "either points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [[]]}, "at least one point"),
        ({"points_per_side": None, "point_grids": [[[0.5, 0.5]]], "adaptive": True}, "adaptive needs"),
        ({"points_per_side": 1, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}, "for crop layer 1"),
        ({"points_per_batch": 0}, "points_per_batch is 0"),
        ({"pred_iou_thresh": 1.5}, "pred_iou_thresh is 1.5; give a number from 0 to 1"),
        ({"pred_iou_thresh": float("nan")}, "pred_iou_thresh is nan"),
        ({"stability_score_thresh": -0.1}, "stability_score_thresh is -0.1"),
        ({"stability_score_thresh": True}, "stability_score_thresh is True"),
        ({"stability_score_offset": -1}, "stability_score_offset is -1; give a finite number of at least 0"),
        ({"mask_threshold": float("inf")}, "mask_threshold is inf; give a finite number"),
        ({"box_nms_thresh": 2}, "box_nms_thresh is 2"),
        ({"crop_nms_thresh": "0.5"}, "crop_nms_thresh is '0.5'"),
        ({"crop_n_layers": -1}, "crop_n_layers is -1"),
        ({"crop_overlap_ratio": 1.1}, "crop_overlap_ratio is 1.1"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor is 0"),
        ({"min_mask_region_area": -5}, "min_mask_region_area is -5"),
        ({"output_mode": "png"}, "output_mode is 'png'; give one of binary_mask, uncompressed_rle, coco_rle"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_cannot_be_meant(searching_model, settings, message):
    with pytest.raises(InputError, match=message):
        masklet.AutomaticMaskGenerator(searching_model, **(SETTINGS | settings))


def test_pictures_that_cannot_be_searched(searching_model, image):
    generator = masklet.AutomaticMaskGenerator(searching_model, **SETTINGS)
    with pytest.raises(InputError, match="empty"):
        generator.generate(np.empty((0, 40, 3), np.uint8))
    with pytest.raises(InputError, match="must be uint8"):
        generator.generate(np.full((40, 40, 3), np.nan))
    with pytest.raises(InputError, match="overlap of 60"):
        generator.generate(image, tile=64, overlap=60)
    with pytest.raises(InputError, match="tile is 0"):
        generator.generate(image, tile=0)


def test_a_layer_of_crops_that_the_picture_has_no_pixels_for(searching_model, image):
    with pytest.raises(InputError, match="Crop layer 3 makes 8 x 8 parts"):
        generate(searching_model, image[:9, :9], crop_n_layers=4)


def test_the_defaults_are_the_references():
    """Those of `SAM2AutomaticMaskGenerator` in sam2 1.1.0."""
    import inspect

    parameters = inspect.signature(masklet.AutomaticMaskGenerator).parameters
    defaults = {name: p.default for name, p in parameters.items() if name not in ("model", "adaptive")}
    assert defaults == {
        "points_per_side": 32,
        "points_per_batch": 64,
        "pred_iou_thresh": 0.8,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "mask_threshold": 0.0,
        "box_nms_thresh": 0.7,
        "crop_n_layers": 0,
        "crop_nms_thresh": 0.7,
        "crop_overlap_ratio": 512 / 1500,
        "crop_n_points_downscale_factor": 1,
        "point_grids": None,
        "min_mask_region_area": 0,
        "output_mode": "binary_mask",
        "use_m2m": False,
        "multimask_output": True,
    }
