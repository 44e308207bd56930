"""Very large pictures in tiles that overlap: what crosses from one into the next comes out as one mask.

In: a picture's size; the masks found in each tile. Out: tiles, and the masks joined.
Two masks of neighbouring tiles are one when they agree in the strip that both tiles see. Memory grows with
the number of masks, which are packed, not with pixels. Knows nothing about models.
"""

from __future__ import annotations

import numpy as np

from masklet.errors import InputError
from masklet.pipeline.found import Box, FoundMask

MIN_OVERLAP = 8  # pixels; what two tiles see of a thing in less says little
_AGREEMENT = 0.5  # IoU within the strip


def tiles_of(size_hw: tuple[int, int], tile: int, overlap: int) -> list[Box]:
    """Boxes (x0, y0, x1, y1) of `tile` pixels a side, or the picture's if that is less, row by row.
    Neighbours share at least `overlap` pixels. Raises InputError."""
    if overlap < MIN_OVERLAP or 2 * overlap > tile:
        raise InputError(
            f"Tiles of {tile} pixels with an overlap of {overlap}: give an overlap from {MIN_OVERLAP} to "
            "half of the tile."
        )
    rows, columns = (_starts(size, tile, overlap) for size in size_hw)
    height, width = size_hw
    return [(x, y, min(x + tile, width), min(y + tile, height)) for y in rows for x in columns]


def _starts(size: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin along a side: equal steps, the last one moved back to end with the picture."""
    if size <= tile:
        return [0]
    count = -(-(size - overlap) // (tile - overlap))
    return [min(index * (tile - overlap), size - tile) for index in range(count)]


class TileJoiner:
    """Takes the masks of one tile after the other, and joins them.

    A joined mask has at most one part of each tile, so that a chain of likenesses never unites two masks
    that one tile told apart.
    """

    def __init__(self) -> None:
        self._tiles: list[tuple[Box, range]] = []  # with the numbers of their masks
        self._found: list[FoundMask] = []
        self._group: list[int] = []  # of each mask; the groups' numbers are those of their first masks
        self._members: dict[int, list[int]] = {}
        self._tile_of: list[int] = []

    def add(self, tile_xyxy: Box, found: list[FoundMask]) -> None:
        """Add a tile's masks, which are in its own frame."""
        numbers = range(len(self._found), len(self._found) + len(found))
        self._found += [one.moved(tile_xyxy[:2]) for one in found]
        for number in numbers:
            self._group.append(number)
            self._members[number] = [number]
            self._tile_of.append(len(self._tiles))
        for other_xyxy, others in self._tiles:
            strip = _shared(tile_xyxy, other_xyxy)
            if strip is not None:
                self._join_in(strip, others, numbers)
        self._tiles.append((tile_xyxy, numbers))

    def joined(self) -> list[FoundMask]:
        """All masks, those that belong together as one."""
        return [_united([self._found[number] for number in group]) for group in self._members.values()]

    def _join_in(self, strip: Box, first: range, second: range) -> None:
        """Join pairs that agree in the strip, the best first, each mask at most once."""
        for one, other in _agreeing(strip, self._found, first, second):
            a, b = self._group[one], self._group[other]
            tiles_a, tiles_b = ({self._tile_of[n] for n in self._members[group]} for group in (a, b))
            if a == b or tiles_a & tiles_b:
                continue
            for number in self._members[b]:
                self._group[number] = a
            self._members[a] += self._members.pop(b)


def _shared(a: Box, b: Box) -> Box | None:
    """What two boxes have in common."""
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _agreeing(strip: Box, found: list[FoundMask], first: range, second: range) -> list[tuple[int, int]]:
    """Pairs of one mask of each tile that cover nearly the same of the strip, best first, each mask once."""
    ones = [number for number in first if _shared(found[number].box_xyxy, strip)]
    others = [number for number in second if _shared(found[number].box_xyxy, strip)]
    if not ones or not others:
        return []
    a = np.stack([_within(found[number], strip) for number in ones])
    b = np.stack([_within(found[number], strip) for number in others])
    both = a @ b.T
    either = a.sum(axis=1)[:, None] + b.sum(axis=1) - both
    iou = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
    pairs, used = [], set()
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(others))
        if iou[row, column] < _AGREEMENT:
            break
        one, other = ones[row], others[column]
        if not used & {one, other}:
            used |= {one, other}
            pairs.append((one, other))
    return pairs


def _within(found: FoundMask, strip: Box) -> np.ndarray:
    """The mask's pixels in the strip, one after the other, as float32 for products."""
    x0, y0, x1, y1 = strip
    part = np.zeros((y1 - y0, x1 - x0), np.float32)
    _paint(part, (x0, y0), found)
    return part.ravel()


def _paint(canvas: np.ndarray, corner_xy: tuple[int, int], found: FoundMask) -> None:
    """Set the mask's pixels in an array whose first pixel is at `corner_xy`, as far as it reaches."""
    x, y = corner_xy
    height, width = canvas.shape
    part = _shared(found.box_xyxy, (x, y, x + width, y + height))
    if part is None:
        return
    left, top = found.box_xyxy[:2]
    x0, y0, x1, y1 = part
    pixels = found.pixels()[y0 - top : y1 - top, x0 - left : x1 - left]
    canvas[y0 - y : y1 - y, x0 - x : x1 - x][pixels] = True


def _united(parts: list[FoundMask]) -> FoundMask:
    """One mask of all parts; scores are their means by area, the point is that of the largest."""
    if len(parts) == 1:
        return parts[0]
    x0, y0, x1, y1 = _around([part.box_xyxy for part in parts])
    pixels = np.zeros((y1 - y0, x1 - x0), np.bool_)
    for part in parts:
        _paint(pixels, (x0, y0), part)
    areas = [part.area for part in parts]
    return FoundMask.of(
        pixels,
        (x0, y0),
        predicted_iou=float(np.average([part.predicted_iou for part in parts], weights=areas)),
        stability=float(np.average([part.stability for part in parts], weights=areas)),
        point_xy=parts[int(np.argmax(areas))].point_xy,
        crop_xyxy=_around([part.crop_xyxy for part in parts]),
    )


def _around(boxes: list[Box]) -> Box:
    """The box around boxes."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)
