"""Makes a sprite of a picture with alpha: rasterised, cropped, scaled, or refused with a reason.

In: the bytes of an SVG, PNG or WebP. Out: an RGBA picture whose longest side is at most 320 px, or the reason
why it is none. Knows nothing about packages and splits.
"""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image

LONGEST = 320  # px of a sprite's longest side
SMALLEST = 64  # px: a sprite below this is mush when it is scaled up
COVER = (0.05, 0.95)  # share of the crop that is object: less is a line, more is a full rectangle
PIXELS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "pc": 16.0, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96.0}
SOLID = 128  # alpha from which a pixel is the object


def read(data: bytes, is_svg: bool) -> Image.Image:
    """The picture in `data` as RGBA; an SVG is drawn so large that it never has to be scaled up."""
    if is_svg:
        data = _draw(data.decode("utf-8", "replace"))
    picture = Image.open(io.BytesIO(data))
    return picture.convert("RGBA")


def crop(picture: Image.Image, longest: int = LONGEST) -> Image.Image:
    """An RGBA picture cut to the bounding box of its alpha and scaled down to `longest` px (never up)."""
    alpha = np.asarray(picture.getchannel("A"))
    rows, columns = np.flatnonzero((alpha > 8).any(1)), np.flatnonzero((alpha > 8).any(0))
    if not rows.size:
        return picture.crop((0, 0, 0, 0))
    cut = picture.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    scale = longest / max(cut.size)
    if scale >= 1:
        return cut
    size = (max(1, round(cut.width * scale)), max(1, round(cut.height * scale)))
    return cut.resize(size, Image.Resampling.LANCZOS)  # pillow weighs colours by alpha


def refusal(sprite: Image.Image) -> str | None:
    """Why a cropped picture is no sprite, or None: too small, a line, a full rectangle, mostly see-through,
    thin strokes only, or many pieces. A mask of such a thing would teach nothing."""
    if max(sprite.size) < SMALLEST:
        return "small"
    alpha = np.asarray(sprite.getchannel("A"))
    solid = alpha >= SOLID
    cover = float(solid.mean())
    if cover < COVER[0]:
        return "little cover"
    if cover > COVER[1]:
        return "rectangle"
    if float(((alpha > 16) & (alpha < 235)).sum()) > 0.5 * float(solid.sum()):
        return "see-through"
    if min(sprite.size) < 0.08 * max(sprite.size):
        return "line"
    if _core(solid, max(sprite.size) // 40) < 0.35:
        return "thin strokes"
    if _largest_piece(solid) < 0.6:
        return "many pieces"
    return None


def _core(solid: np.ndarray, radius: int) -> float:
    """The share of the object that is left when `radius` pixels are taken from its border."""
    padded = np.pad(solid, radius)
    size = 2 * radius + 1
    for axis in (0, 1):
        sums = np.cumsum(np.insert(padded, 0, 0, axis=axis), axis=axis, dtype=np.int64)
        upper, lower = (sums[size:], sums[:-size]) if axis == 0 else (sums[:, size:], sums[:, :-size])
        padded = (upper - lower) == size
    return float(padded.sum()) / max(1.0, float(solid.sum()))


def _largest_piece(solid: np.ndarray) -> float:
    """The share of the object's area in its largest connected piece (8 neighbours), on a grid of 40 cells."""
    step = max(1, max(solid.shape) // 40)
    grid = solid[::step, ::step]
    left, best, total = grid.copy(), 0, int(grid.sum())
    height, width = left.shape
    for start in zip(*np.nonzero(grid), strict=True):
        if not left[start]:
            continue
        left[start] = False
        stack, area = [start], 0
        while stack:
            row, column = stack.pop()
            area += 1
            for r in range(max(0, row - 1), min(height, row + 2)):
                for c in range(max(0, column - 1), min(width, column + 2)):
                    if left[r, c]:
                        left[r, c] = False
                        stack.append((r, c))
        best = max(best, area)
    return best / max(1, total)


def _draw(svg: str) -> bytes:
    """The SVG as PNG with a longest side of twice a sprite's, by resvg."""
    import resvg_py  # pyright: ignore[reportMissingImports]

    svg, wide = plain_size(svg)
    side = {"width": 2 * LONGEST} if wide else {"height": 2 * LONGEST}
    return bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, **side))


def plain_size(svg: str) -> tuple[str, bool]:
    """The SVG with a root size in pixels, and whether it is at least as wide as high.

    Old drawings give their size in points or millimetres, which the rasteriser refuses in places.
    """
    start = svg.find("<svg")
    end = svg.find(">", start) + 1
    head = svg[start:end]
    sizes = {}
    for side in ("width", "height"):
        found = re.search(rf'\s{side}\s*=\s*["\']\s*([\d.]+)\s*([a-z%]*)\s*["\']', head)
        if found:
            sizes[side] = float(found[1]) * PIXELS.get(found[2], 0.0)
            attribute = f' {side}="{sizes[side]:.4f}"' if sizes[side] else ""
            head = head.replace(found[0], attribute)
    box = re.search(
        r'viewBox\s*=\s*["\']\s*[-\d.eE]+[\s,]+[-\d.eE]+[\s,]+([\d.eE+-]+)[\s,]+([\d.eE+-]+)', head
    )
    width, height = (float(box[1]), float(box[2])) if box else (sizes.get("width", 0), sizes.get("height", 0))
    return svg[:start] + head + svg[end:], width >= height
