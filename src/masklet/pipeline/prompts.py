"""Prompts from what users give, and the choice among the candidates that come back.

In: points, boxes and masks in the picture's frame. Out: `Prompts` in the frame of the model input; and for
decoded candidates the ones that are kept. Policy only: no network maths, no engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.errors import InputError
from masklet.pipeline.preprocess import mask_input, padded_size
from masklet.types import Candidates, Prompts

BOX_LABELS = (2, 3)
PADDING_LABEL = -1
LABELS = {-1: "padding", 0: "background", 1: "foreground", 2: "box top left", 3: "box bottom right"}

# A single mask is stable when its area hardly depends on the threshold; the numbers are the published ones.
STABILITY_DELTA = 0.05
STABILITY_THRESHOLD = 0.98


def make_prompts(
    point_coords: Any,
    point_labels: Any,
    box: Any,
    mask_input: Any,
    *,
    size_hw: tuple[int, int],
    image_size: int,
    normalize_coords: bool = True,
) -> Prompts:
    """Points (N, 2) or (B, N, 2), labels likewise, boxes (4) or (B, 4) xyxy, mask logits (1, h, w) or (B, 1,
    h, w).

    Coordinates are pixels of the picture, or fractions of it when `normalize_coords` is False. A box becomes
    two points before the others; a padding point closes the list unless there are no points at all. Raises
    InputError for anything that can't be meant.
    """
    given = check_prompts(point_coords, point_labels, box, mask_input, size_hw, image_size, normalize_coords)
    frame_wh = np.array(given.frame_hw[::-1], np.float32)
    return given.in_order(("box", "points", "padding"), lambda xy: xy / frame_wh * np.float32(image_size))


def make_padded_prompts(
    point_coords: Any,
    point_labels: Any,
    box: Any,
    mask_input: Any,
    *,
    size_hw: tuple[int, int],
    image_size: int,
    normalize_coords: bool = True,
) -> Prompts:
    """`make_prompts` for SAM, where the picture keeps its shape: points come before a box's corners, and are
    padded if there is no box."""
    given = check_prompts(point_coords, point_labels, box, mask_input, size_hw, image_size, normalize_coords)
    height, width = padded_size(size_hw, image_size)
    scale = np.array([width / given.frame_hw[1], height / given.frame_hw[0]])
    order = ("points", "padding") if given.corners is None else ("points", "box")
    return given.in_order(order, lambda xy: xy * scale)


@dataclass(frozen=True, eq=False)
class GivenPrompts:
    """Prompts of B objects as users give them, checked: `coords` (B, N, 2) and `labels` (B, N), `corners` (B,
    2, 2) of boxes, `mask` (1 or B, 1, h, w); each may be None. `frame_hw` is what coordinates are relative
    to."""

    coords: np.ndarray | None
    labels: np.ndarray | None
    corners: np.ndarray | None
    mask: np.ndarray | None
    frame_hw: tuple[int, int]

    def in_order(self, order: Sequence[str], to_input: Callable[[np.ndarray], np.ndarray]) -> Prompts:
        """Of "points", "box" and "padding" (one point) those that are there, in this order; with only a mask,
        none of them. `to_input` takes coordinates to pixels of the model input."""
        parts: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        if self.coords is not None and self.labels is not None:
            parts["points"] = self.coords, self.labels
        if self.corners is not None:
            parts["box"] = self.corners, np.tile(np.array(BOX_LABELS), (len(self.corners), 1))
        batch = next(
            (len(coords) for coords, _ in parts.values()), 1 if self.mask is None else len(self.mask)
        )
        if not parts:
            return Prompts(np.zeros((batch, 0, 2), np.float32), np.zeros((batch, 0), np.int64), self.mask)
        parts["padding"] = np.zeros((batch, 1, 2)), np.full((batch, 1), PADDING_LABEL)
        chosen = [parts[name] for name in order if name in parts]
        coords = np.concatenate([to_input(coords) for coords, _ in chosen], axis=1)
        labels = np.concatenate([labels for _, labels in chosen], axis=1)
        return Prompts(coords.astype(np.float32), labels.astype(np.int64), self.mask)


def check_prompts(
    point_coords: Any,
    point_labels: Any,
    box: Any,
    mask_input: Any,
    size_hw: tuple[int, int],
    image_size: int,
    normalize_coords: bool,
) -> GivenPrompts:
    """Prompts that can be meant, as arrays. Raises InputError."""
    frame = size_hw if normalize_coords else (1, 1)
    coords, labels = _points(point_coords, point_labels, frame)
    corners = _boxes(box, frame)
    mask = _mask(mask_input, image_size // 4)
    if corners is not None and coords is not None and len(coords) != len(corners):
        raise InputError(
            f"Got points for {len(coords)} object(s) and {len(corners)} box(es); give as many of each."
        )
    objects = corners if coords is None else coords
    if mask is not None and objects is not None and len(mask) not in (1, len(objects)):
        raise InputError(
            f"Got {len(mask)} mask inputs for {len(objects)} object(s); give one, or one for each."
        )
    return GivenPrompts(coords, labels, corners, mask, frame)


def object_points(
    points: Any,
    labels: Any,
    box: Any,
    *,
    clear_old_points: bool,
    size_hw: tuple[int, int],
    image_size: int,
    normalize_coords: bool = True,
) -> Prompts:
    """Points and a box of one object in a video, as `make_prompts` takes them. Raises InputError."""
    if points is None and box is None:
        raise InputError("Got neither points nor a box; give at least one.")
    if box is not None and not clear_old_points:
        raise InputError("A box comes before all points; give it with clear_old_points=True.")
    prompts = make_prompts(
        points,
        labels,
        box,
        None,
        size_hw=size_hw,
        image_size=image_size,
        normalize_coords=normalize_coords,
    )
    if len(prompts.coords) != 1:
        raise InputError(f"Got prompts of {len(prompts.coords)} objects; add one at a time.")
    return prompts


def is_whole(number: Any) -> bool:
    """Whether this is an integer, of Python or NumPy, and no truth value."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def more_points(earlier: Prompts, later: Prompts) -> Prompts:
    """The points of both, padded once."""
    return Prompts(
        np.concatenate([earlier.coords[:, :-1], later.coords], axis=1),
        np.concatenate([earlier.labels[:, :-1], later.labels], axis=1),
        None,
    )


def object_mask(mask: Any, image_size: int) -> np.ndarray:
    """A mask prompt for video, (H, W) bool or zeros and ones of any size: (1, 1, S, S) float32 of zeros and
    ones.

    Raises InputError.
    """
    array = _numbers(mask, "mask")
    if array.ndim != 2 or array.size == 0:
        raise InputError(f"mask has shape {array.shape}; give (H, W), True or 1 on the object.")
    if not np.isin(array, (0, 1)).all():
        raise InputError("mask holds other values than False and True or 0 and 1; for logits, give mask > 0.")
    return mask_input(array != 0, image_size)


def choose_masks(candidates: Candidates, multimask_output: bool) -> tuple[np.ndarray, np.ndarray]:
    """Logits (B, M, H, W) and predicted IoU (B, M) of the kept candidates: M = 3, or 1.

    A single mask that isn't stable gives way to the best of the three (dynamic multimask, Ravi et al. 2024).
    """
    logits, iou = candidates.logits, candidates.iou
    if multimask_output:
        return logits[:, 1:], iou[:, 1:]
    best = 1 + iou[:, 1:].argmax(axis=1)
    chosen = np.where(stability(logits[:, 0]) >= STABILITY_THRESHOLD, 0, best)
    rows = np.arange(len(logits))
    return logits[rows, chosen][:, None], iou[rows, chosen][:, None]


def choose_by_token(candidates: Candidates, multimask_output: bool) -> tuple[np.ndarray, np.ndarray]:
    """`choose_masks` for SAM: a single mask is always the single-mask token's."""
    kept = slice(1, None) if multimask_output else slice(0, 1)
    return candidates.logits[:, kept], candidates.iou[:, kept]


def stability(logits: np.ndarray) -> np.ndarray:
    """IoU of a mask (..., H, W) cut a little above and a little below zero; 1 where nothing is above."""
    above = (logits > STABILITY_DELTA).sum(axis=(-2, -1), dtype=np.float32)
    below = (logits > -STABILITY_DELTA).sum(axis=(-2, -1), dtype=np.float32)
    return np.divide(above, below, out=np.ones_like(above), where=below > 0)


def _points(coords: Any, labels: Any, frame: tuple[int, int]) -> tuple[np.ndarray | None, np.ndarray | None]:
    if coords is None:
        if labels is not None:
            raise InputError("Got point_labels without point_coords; give both or neither.")
        return None, None
    if labels is None:
        raise InputError(
            "Got point_coords without point_labels; give one label per point: 1 on the object, 0 off it."
        )
    coords, labels = _numbers(coords, "point_coords"), _numbers(labels, "point_labels")
    if coords.ndim not in (2, 3) or coords.shape[-1] != 2 or coords.size == 0:
        raise InputError(f"point_coords has shape {coords.shape}; give (N, 2), or (B, N, 2) for B objects.")
    if labels.shape != coords.shape[:-1]:
        raise InputError(
            f"Got {coords.shape[:-1]} points and {labels.shape} labels; give one label per point."
        )
    if not np.isin(labels, list(LABELS)).all():
        allowed = ", ".join(f"{label} {meaning}" for label, meaning in LABELS.items())
        raise InputError(f"point_labels holds {sorted(set(labels.ravel().tolist()))}; allowed are {allowed}.")
    inside = coords[labels != PADDING_LABEL]
    _check_inside(inside, "point", frame)
    return coords.reshape(-1, *coords.shape[-2:]), labels.reshape(-1, labels.shape[-1])


def _boxes(box: Any, frame: tuple[int, int]) -> np.ndarray | None:
    """Corners (B, 2, 2)."""
    if box is None:
        return None
    boxes = _numbers(box, "box")
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 or boxes.size == 0:
        raise InputError(
            f"box has shape {boxes.shape}; give (4,), or (B, 4) for B objects, as x0, y0, x1, y1."
        )
    corners = boxes.reshape(-1, 2, 2)
    if (corners[:, 0] > corners[:, 1]).any():
        wrong = boxes.reshape(-1, 4)[(corners[:, 0] > corners[:, 1]).any(axis=1)][0]
        fixed = [*np.minimum(wrong[:2], wrong[2:]).tolist(), *np.maximum(wrong[:2], wrong[2:]).tolist()]
        raise InputError(
            f"The box {wrong.tolist()} has its corners swapped; x0, y0, x1, y1 would be {fixed}."
        )
    _check_inside(corners, "box corner", frame)
    return corners


def _mask(mask: Any, side: int) -> np.ndarray | None:
    if mask is None:
        return None
    logits = _numbers(mask, "mask_input")
    if logits.ndim == 3:
        logits = logits[None]
    if logits.ndim != 4 or logits.shape[1:] != (1, side, side) or len(logits) == 0:
        raise InputError(
            f"mask_input has shape {np.shape(mask)}; give low-resolution logits (1, {side}, {side}), "
            f"or (B, 1, {side}, {side}) for B objects, as an earlier prediction returned them."
        )
    return logits


def _numbers(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers: {error}") from error
    if not np.isfinite(array).all():
        raise InputError(f"{name} holds NaN or infinite values; give finite numbers.")
    return array


def _check_inside(points: np.ndarray, what: str, frame: tuple[int, int]) -> None:
    points = points.reshape(-1, 2)
    limit = np.array([frame[1], frame[0]], np.float32)
    outside = points[((points < 0) | (points > limit)).any(axis=1)]
    if len(outside):
        x, y = outside[0].tolist()
        raise InputError(
            f"The {what} ({x:g}, {y:g}) is outside the picture, {frame[1]} wide and {frame[0]} high."
        )
