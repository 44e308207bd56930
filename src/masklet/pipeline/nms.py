"""Non-maximum suppression: of boxes that nearly coincide, the best.

In: boxes, scores, a limit. Out: the indices of those that stay. Knows nothing about masks or models.
"""

from __future__ import annotations

import numpy as np


def best_boxes(boxes_xyxy: np.ndarray, scores: np.ndarray, max_iou: float) -> np.ndarray:
    """Indices of boxes (N, 4) that stay, best score first, of equal ones the earlier.

    A box goes when its IoU with a better one that stays is over `max_iou`. Areas are width x height from edge
    to edge, float32, as `torchvision.ops.nms` computes them; two boxes without area do not overlap.
    """
    order = np.argsort(-np.asarray(scores, np.float32), kind="stable")
    boxes = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept, rest = [], np.arange(len(boxes))
    while rest.size:
        best, rest = rest[0], rest[1:]
        kept.append(order[best])
        top_left = np.maximum(boxes[rest, :2], boxes[best, :2])
        bottom_right = np.minimum(boxes[rest, 2:], boxes[best, 2:])
        both = np.maximum(bottom_right - top_left, np.float32(0)).prod(axis=1)
        either = areas[rest] + areas[best] - both
        # In double precision, as there: the limit is not rounded to float32.
        iou = np.divide(both, either, out=np.zeros_like(both), where=either > 0).astype(np.float64)
        rest = rest[iou <= max_iou]
    return np.array(kept, np.intp)
