"""Masks of everything in a picture, with the interface of Meta's `SAM2AutomaticMaskGenerator`.

In: a picture. Out: records of masks, numpy or run lengths. For each crop (the picture itself is the first):
encode -> for points of a grid: rate, drop, draw, measure -> of masks that coincide, the best. The method is
that of SAM (Kirillov et al. 2023, arXiv:2304.02643, appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from masklet.errors import Cancelled, InputError
from masklet.io.image import read_image
from masklet.pipeline.conventions import conventions_of
from masklet.pipeline.crops import Crop, checked_grids, coarse_to_fine, crops_of, layer_grids
from masklet.pipeline.found import Box, FoundMask, Limits, is_cut_off, without_small_regions
from masklet.pipeline.model import Model
from masklet.pipeline.nms import best_boxes
from masklet.pipeline.point_decoder import POINTS_AT_ONCE, PointDecoder
from masklet.pipeline.point_search import PointSearch, Rules
from masklet.pipeline.tiles import TileJoiner, tiles_of
from masklet.rle import encode_part

OUTPUT_MODES = ("binary_mask", "uncompressed_rle", "coco_rle")
Progress = Callable[[int, int], Any]

# In an adaptive search a mask larger than this share of the crop, such as the background, does not make other
# points in it needless.
_COVERING_SHARE = 0.25


class AutomaticMaskGenerator:
    """Finds the masks of everything in a picture.

    Names, arguments, defaults and records are those of `SAM2AutomaticMaskGenerator`; arrays are numpy. One
    generator belongs to one thread; any number may share a `Model`.
    """

    def __init__(
        self,
        model: Model,
        points_per_side: int | None = 32,
        points_per_batch: int = 64,
        pred_iou_thresh: float = 0.8,
        stability_score_thresh: float = 0.95,
        stability_score_offset: float = 1.0,
        mask_threshold: float = 0.0,
        box_nms_thresh: float = 0.7,
        crop_n_layers: int = 0,
        crop_nms_thresh: float = 0.7,
        crop_overlap_ratio: float = 512 / 1500,
        crop_n_points_downscale_factor: int = 1,
        point_grids: list[Any] | None = None,
        min_mask_region_area: float = 0,
        output_mode: str = "binary_mask",
        use_m2m: bool = False,
        multimask_output: bool = True,
        adaptive: bool = False,
    ) -> None:
        """Points form a square grid of `points_per_side`, or `point_grids`: one array (N, 2) of fractions (x,
        y) for the picture and one for each of `crop_n_layers`. At most `points_per_batch` are decoded at a
        time; results don't depend on it.

        A mask stays if its predicted IoU is over `pred_iou_thresh`, if its stability (the IoU of the mask cut
        `stability_score_offset` above and below `mask_threshold`) is at least `stability_score_thresh`, and
        if no better mask's box overlaps its own with an IoU over `box_nms_thresh` (between crops
        `crop_nms_thresh`, smaller crops first). Holes and islands under `min_mask_region_area` pixels are
        removed, as SAM's generator does. `use_m2m` decodes each mask a second time, as its own prompt.
        `adaptive` begins with every fourth point of the grid and leaves out points in what was found: faster,
        and some masks are missed.

        `output_mode` "binary_mask" gives (H, W) bool, "uncompressed_rle" and "coco_rle" give COCO run
        lengths. Raises InputError.
        """
        self.model = model
        self.points_per_batch = _whole("points_per_batch", points_per_batch, 1)
        self.pred_iou_thresh = _number("pred_iou_thresh", pred_iou_thresh, 0, 1)
        self.stability_score_thresh = _number("stability_score_thresh", stability_score_thresh, 0, 1)
        self.stability_score_offset = _number("stability_score_offset", stability_score_offset, 0)
        self.mask_threshold = _number("mask_threshold", mask_threshold)
        self.box_nms_thresh = _number("box_nms_thresh", box_nms_thresh, 0, 1)
        self.crop_n_layers = _whole("crop_n_layers", crop_n_layers, 0)
        self.crop_nms_thresh = _number("crop_nms_thresh", crop_nms_thresh, 0, 1)
        self.crop_overlap_ratio = _number("crop_overlap_ratio", crop_overlap_ratio, 0, 1)
        self.min_mask_region_area = _number("min_mask_region_area", min_mask_region_area, 0)
        self.use_m2m, self.multimask_output = bool(use_m2m), bool(multimask_output)
        if output_mode not in OUTPUT_MODES:
            raise InputError(f"output_mode is {output_mode!r}; give one of {', '.join(OUTPUT_MODES)}.")
        self.output_mode = output_mode

        downscale = _whole("crop_n_points_downscale_factor", crop_n_points_downscale_factor, 1)
        if (points_per_side is None) == (point_grids is None):
            raise InputError("Give either points_per_side or point_grids, and None for the other.")
        if points_per_side is None:
            if adaptive:
                raise InputError("adaptive needs a square grid; give points_per_side.")
            self.point_grids = checked_grids(point_grids, self.crop_n_layers)
        else:
            side = _whole("points_per_side", points_per_side, 1)
            self.point_grids = layer_grids(side, self.crop_n_layers, downscale)
        self.adaptive = bool(adaptive)
        limits = Limits(self.mask_threshold, self.stability_score_offset, self.stability_score_thresh)
        self._rules = Rules(self.pred_iou_thresh, limits, self.multimask_output, self.use_m2m)
        self._conventions = conventions_of(model.config)
        self._decoder = PointDecoder(model)

    def generate(
        self,
        image: Any,
        *,
        tile: int | None = None,
        overlap: int = 128,
        progress: Progress | None = None,
        cancel: Callable[[], bool] = lambda: False,
    ) -> list[dict[str, Any]]:
        """The masks in a picture: a path, a PIL image, or an array (H, W, 3) uint8 RGB. Best first, or from
        the smallest crop on if there are crops. Each is a dictionary:

        `segmentation` as `output_mode` says; `area` in pixels; `bbox` [x, y, width, height] from outermost to
        outermost pixel, so one less than COCO's; `predicted_iou`; `point_coords` [[x, y]]; `stability_score`;
        `crop_box` [x, y, width, height]. Lengths are pixels of the picture.

        `tile` searches tiles of so many pixels a side, which share `overlap`, each with the whole grid, and
        joins what crosses from one into the next: for pictures so large that their small things would vanish
        in the model's input. `progress` is told how many of how many points are done. `cancel` is asked
        before each few points and ends the search with `Cancelled`. Raises InputError.
        """
        pixels = read_image(image)
        size_hw = (pixels.shape[0], pixels.shape[1])
        found = self.find(pixels, tile=tile, overlap=overlap, progress=progress, cancel=cancel)
        return [self._record(one, size_hw) for one in found]

    def find(
        self,
        pixels: np.ndarray,
        *,
        tile: int | None = None,
        overlap: int = 128,
        progress: Progress | None = None,
        cancel: Callable[[], bool] = lambda: False,
    ) -> list[FoundMask]:
        """`generate` for (H, W, 3) uint8, with masks that take little memory."""
        size_hw = (pixels.shape[0], pixels.shape[1])
        tiles: list[Box] = [(0, 0, size_hw[1], size_hw[0])]
        if tile is not None:
            tiles = tiles_of(size_hw, _whole("tile", tile, 1), _whole("overlap", overlap, 0))
        crops = [self._crops(box) for box in tiles]
        total = sum(len(self.point_grids[crop.layer]) for of_tile in crops for crop in of_tile)
        counter = _Counter(total, progress, cancel)

        joiner = TileJoiner()
        for (x0, y0, x1, y1), of_tile in zip(tiles, crops, strict=True):
            found = self._search(pixels[y0:y1, x0:x1], of_tile, counter)
            joiner.add((x0, y0, x1, y1), found)
        found = joiner.joined()
        if len(tiles) > 1:
            found = _best(found, [one.predicted_iou for one in found], self.box_nms_thresh)
        return self._cleaned(found, size_hw) if self.min_mask_region_area > 0 else found

    def _crops(self, box_xyxy: Box) -> list[Crop]:
        width, height = _size_wh(box_xyxy)
        return crops_of((height, width), self.crop_n_layers, self.crop_overlap_ratio)

    def _search(self, pixels: np.ndarray, crops: list[Crop], counter: _Counter) -> list[FoundMask]:
        """The masks in all crops of a picture, smaller crops first."""
        found = [one for crop in crops for one in self._of_crop(pixels, crop, counter)]
        if len(crops) == 1:
            return found
        areas = [math.prod(_size_wh(one.crop_xyxy)) for one in found]
        return _best(found, 1 / np.array(areas, np.float32), self.crop_nms_thresh)

    def _cleaned(self, found: list[FoundMask], size_hw: tuple[int, int]) -> list[FoundMask]:
        """Without small holes and islands; where that makes masks alike, the one that had none stays."""
        cleaned = [without_small_regions(one, self.min_mask_region_area, size_hw) for one in found]
        unchanged = [not changed for _, changed in cleaned]
        max_iou = max(self.box_nms_thresh, self.crop_nms_thresh)
        return _best([one for one, _ in cleaned], unchanged, max_iou)

    def _of_crop(self, pixels: np.ndarray, crop: Crop, counter: _Counter) -> list[FoundMask]:
        """The masks of a crop, in the picture's frame, duplicates removed."""
        x0, y0, x1, y1 = crop.box_xyxy
        counter.check()
        model_input = self._conventions.picture(
            np.ascontiguousarray(pixels[y0:y1, x0:x1]), self.model.image_size
        )
        features = self.model.encode_image(model_input, crop.size_hw)
        search = PointSearch(self.model, features, self._decoder.on(features), self._rules)
        points = self.point_grids[crop.layer] * np.array([x1 - x0, y1 - y0])

        found: list[FoundMask] = []
        workers = min(self._decoder.workers, self.points_per_batch)
        size = min(self.points_per_batch // workers, POINTS_AT_ONCE)
        with ThreadPoolExecutor(workers) as pool:
            for part in self._parts(points, crop, found):
                chunks = [part[start : start + size] for start in range(0, len(part), size)]
                waiting = [pool.submit(search.masks_at, chunk) for chunk in chunks]
                try:
                    for chunk, future in zip(chunks, waiting, strict=True):
                        moved = [one.moved((x0, y0)) for one in future.result()]
                        found += [one for one in moved if not is_cut_off(one, pixels.shape[:2])]
                        counter.add(len(chunk))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        counter.finish_crop(len(points))
        return _best(found, [one.predicted_iou for one in found], self.box_nms_thresh)

    def _parts(self, points: np.ndarray, crop: Crop, found: list[FoundMask]) -> Iterator[np.ndarray]:
        """The crop's points (N, 2), in its pixels: all, or in an adaptive search one part after the other
        without those that lie in masks that were `found` meanwhile."""
        if not self.adaptive:
            yield points
            return
        covered, seen = np.zeros(crop.size_hw, np.bool_), 0
        for part in coarse_to_fine(math.isqrt(len(points))):
            for one in found[seen:]:
                _cover(covered, one, crop)
            seen = len(found)
            column, row = points[part].astype(np.intp).T
            yield points[part][~covered[row, column]]

    def _record(self, found: FoundMask, size_hw: tuple[int, int]) -> dict[str, Any]:
        x0, y0, x1, y1 = found.box_xyxy
        if self.output_mode == "binary_mask":
            segmentation: Any = np.zeros(size_hw, np.bool_)
            segmentation[y0:y1, x0:x1] = found.pixels()
        else:
            compressed = self.output_mode == "coco_rle"
            segmentation = encode_part(found.pixels(), (x0, y0), size_hw, compressed=compressed)
        left, top, right, bottom = map(float, found.outermost_xyxy())
        return {
            "segmentation": segmentation,
            "area": found.area,
            "bbox": [left, top, right - left, bottom - top],
            "predicted_iou": found.predicted_iou,
            "point_coords": [list(found.point_xy)],
            "stability_score": found.stability,
            "crop_box": [*map(float, found.crop_xyxy[:2]), *map(float, _size_wh(found.crop_xyxy))],
        }


class _Counter:
    """Says how many points are done, also those that were left out, and asks whether to go on."""

    def __init__(self, total: int, progress: Progress | None, cancel: Callable[[], bool]) -> None:
        self._total, self._progress, self._cancel = total, progress, cancel
        self._before, self._done = 0, 0  # points of earlier crops, and all

    def check(self) -> None:
        if self._cancel():
            raise Cancelled("The search for masks was cancelled.")

    def add(self, points: int) -> None:
        self._done += points
        self._tell()
        self.check()

    def finish_crop(self, points: int) -> None:
        self._before += points
        self._done = self._before
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total)


def _best(found: list[FoundMask], scores: Any, max_iou: float) -> list[FoundMask]:
    """Of masks whose boxes nearly coincide the one with the best score, best first."""
    boxes = np.array([one.outermost_xyxy() for one in found], np.float32).reshape(-1, 4)
    return [found[index] for index in best_boxes(boxes, np.asarray(scores, np.float32), max_iou)]


def _cover(covered: np.ndarray, found: FoundMask, crop: Crop) -> None:
    """Mark the mask's pixels in the crop's frame, unless it is too large to say that all in it is known."""
    if found.area > _COVERING_SHARE * covered.size:
        return
    x0, y0, x1, y1 = found.box_xyxy
    x, y = crop.box_xyxy[:2]
    covered[y0 - y : y1 - y, x0 - x : x1 - x] |= found.pixels()


def _size_wh(box_xyxy: Box) -> tuple[int, int]:
    x0, y0, x1, y1 = box_xyxy
    return x1 - x0, y1 - y0


def _number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` if it is a number within the limits. Raises InputError."""
    is_number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:
        allowed = "a finite number"
        if high < math.inf:
            allowed = f"a number from {low:g} to {high:g}"
        elif low > -math.inf:
            allowed = f"a finite number of at least {low:g}"
        raise InputError(f"{name} is {value!r}; give {allowed}.")
    return float(value)


def _whole(name: str, value: Any, low: int) -> int:
    """`value` if it is a whole number of at least `low`. Raises InputError."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < low:
        raise InputError(f"{name} is {value!r}; give a whole number of at least {low}.")
    return int(value)
