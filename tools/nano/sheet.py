"""A contact sheet: pictures and their masks in, one PNG with the masks' outlines in colour out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

_COLOURS = (
    (255, 40, 40),
    (40, 255, 40),
    (70, 120, 255),
    (255, 255, 0),
    (255, 0, 255),
    (0, 255, 255),
    (255, 150, 0),
)


def outlined(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """A copy of an image (h, w, 3) uint8 with the outlines of masks (N, h, w) bool."""
    marked = image.copy()
    for number, mask in enumerate(masks):
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(marked, outlines, -1, _COLOURS[number % len(_COLOURS)], 1)
    return marked


def save_sheet(path: Path, cells: Sequence[tuple[np.ndarray, np.ndarray]], columns: int) -> None:
    """Writes pictures with their outlines, row by row, then each row again without outlines below it."""
    rows = []
    for start in range(0, len(cells), columns):
        row = cells[start : start + columns]
        rows.append(np.concatenate([outlined(image, masks) for image, masks in row], 1))
        rows.append(np.concatenate([image for image, _ in row], 1))
    width = max(row.shape[1] for row in rows)
    page = [np.pad(row, ((0, 2), (0, width - row.shape[1]), (0, 0))) for row in rows]
    Image.fromarray(np.concatenate(page)).save(path)
