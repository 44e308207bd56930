from __future__ import annotations

import numpy as np
import pytest

from masklet.pipeline.nms import best_boxes


def obvious(boxes: np.ndarray, scores: np.ndarray, max_iou: float) -> list[int]:
    """Pair by pair, as the definition says."""

    def iou(a: np.ndarray, b: np.ndarray) -> float:
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
        either = sum(areas) - width * height
        return width * height / either if either > 0 else 0.0

    kept: list[int] = []
    for index in sorted(range(len(boxes)), key=lambda i: -scores[i]):  # stable
        if all(iou(boxes[index], boxes[other]) <= max_iou for other in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("max_iou", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("seed", range(4))
def test_it_keeps_what_the_definition_keeps(seed, max_iou):
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 40, (60, 2))
    boxes = np.concatenate([corners, corners + rng.integers(0, 30, (60, 2))], axis=1)  # some without area
    scores = rng.integers(0, 8, 60) / 8  # with ties
    assert best_boxes(boxes, scores, max_iou).tolist() == obvious(boxes, scores, max_iou)


def test_of_no_boxes_none_stay():
    assert best_boxes(np.empty((0, 4)), np.empty(0), 0.5).tolist() == []


def test_of_equal_boxes_and_scores_the_first_stays():
    boxes = np.array([[0, 0, 4, 4], [0, 0, 4, 4], [9, 9, 12, 12]])
    assert best_boxes(boxes, np.array([0.5, 0.5, 0.9]), 0.5).tolist() == [2, 0]


def test_boxes_without_area_do_not_overlap():
    boxes = np.array([[3, 3, 3, 3], [3, 3, 3, 3]])
    assert best_boxes(boxes, np.array([1.0, 0.5]), 0.5).tolist() == [0, 1]
