"""A picture with its masks and prompts drawn over it, to be looked at.

In: a picture (H, W, 3) uint8, masks, and the prompts in the picture's pixels. Out: a new picture of the same
size. Knows nothing about models or files. Widths follow the picture's size, so that a thumbnail and a
photograph look alike.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.errors import InputError
from masklet.io.image import read_image

if TYPE_CHECKING:
    from PIL import Image

Colour = tuple[int, int, int]

# Far apart from each other and from the greens and browns of most photographs; the first is the field's own
# blue.
PALETTE: tuple[Colour, ...] = (
    (30, 144, 255),  # blue
    (255, 92, 40),  # orange red
    (255, 200, 30),  # amber
    (178, 102, 255),  # violet
    (32, 214, 120),  # green
    (255, 82, 168),  # pink
    (0, 208, 220),  # cyan
    (168, 224, 32),  # lime
)
_WHITE: Colour = (255, 255, 255)
_ON_OBJECT: Colour = (22, 163, 74)
_OFF_OBJECT: Colour = (220, 38, 38)
_DARK_TEXT_FROM = 140  # brightness (of 255) of a colour on which black is read better than white

_LINES_PER_SIDE = 440  # line widths that fit along the picture's (geometric mean) side
_SUPERSAMPLING = 4  # markers are drawn this much larger, then reduced: smooth edges


def draw_overlay(
    image: np.ndarray,
    masks: Any,
    *,
    points: Any = None,
    labels: Any = None,
    boxes: Any = None,
    names: Sequence[str] | None = None,
    colours: Sequence[Colour] | None = None,
    alpha: float = 0.5,
) -> np.ndarray:
    """Masks as translucent colour with a sharp outline, boxes, and points (green + on the object, red - off).

    `masks` is (H, W), (..., H, W) or a list of such: bool, or numbers of which the positive ones count. Each
    has a colour of its own, from `colours` or else the palette, and smaller ones lie on top. `names` are
    short texts, one for each mask, drawn beside those that are not empty. `points` (..., 2) are (x, y) in
    pixels with `labels` 1 or 0 (others are not drawn; all 1 if None), `boxes` (..., 4) xyxy in pixels.
    `alpha` (0 to 1) is how much of the picture the colour hides. Returns a new (H, W, 3) uint8 array; raises
    `InputError` where shapes do not fit.
    """
    from PIL import Image

    image = read_image(image)
    size_hw = (image.shape[0], image.shape[1])
    planes = _mask_planes(masks, size_hw)
    xy, signs = _points(points, labels)
    corners = _numbers("boxes", boxes, 4)
    if not 0 <= alpha <= 1:
        raise InputError(f"The alpha of an overlay must be 0 to 1, got {alpha}.")

    for what, given in (("names", names), ("colours", colours)):
        if given is not None and len(given) != len(planes):
            raise InputError(
                f"Got {len(planes)} masks to draw and {len(given)} {what}; give one for each mask."
            )

    def colour(index: int) -> Colour:
        return colours[index] if colours and index < len(colours) else palette_colour(index)

    canvas = Image.fromarray(image)
    line = _line_width(size_hw)
    largest_first = sorted(range(len(planes)), key=lambda index: -np.count_nonzero(planes[index]))
    for index in largest_first:
        _draw_mask(canvas, planes[index], colour(index), line, alpha)
    for index, box in enumerate(corners):
        _draw_box(canvas, box, colour(index), line)
    for index, name in enumerate(names or ()):  # above all masks, so that each can be read
        _draw_name(canvas, planes[index], name, colour(index), line)
    for point, sign in zip(xy, signs, strict=True):
        if sign in (0, 1):
            _draw_point(canvas, point, bool(sign), line)
    return np.array(canvas)


def draw_parts(
    image: np.ndarray, parts: Iterable[tuple[tuple[int, int], np.ndarray]], *, alpha: float = 0.5
) -> np.ndarray:
    """`draw_overlay` for many masks, each given as the (x, y) where it begins and its pixels (h, w) bool.

    They are drawn in the order given, so the largest should come first; one at a time is in memory.
    """
    from PIL import Image

    canvas = Image.fromarray(image)
    line = _line_width((image.shape[0], image.shape[1]))
    for index, (corner_xy, pixels) in enumerate(parts):
        _draw_mask(canvas, pixels, palette_colour(index), line, alpha, corner_xy)
    return np.array(canvas)


def palette_colour(index: int) -> Colour:
    """The colour of the mask with that number: the palette's, then hues in golden-ratio steps."""
    if index < len(PALETTE):
        return PALETTE[index]
    hue = (index * 0.6180339887) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.3 * (index % 2), 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


# ---------------------------------------------------------------------------------------------------- drawing


def _line_width(size_hw: tuple[int, int]) -> float:
    return max(1.5, math.sqrt(size_hw[0] * size_hw[1]) / _LINES_PER_SIDE)


def _draw_mask(
    canvas: Image.Image,
    mask: np.ndarray,
    colour: Colour,
    line: float,
    alpha: float,
    corner_xy: tuple[int, int] = (0, 0),
) -> None:
    """Fill the mask as it is, and draw a smooth outline over its stairs. `corner_xy` is where in the picture
    the mask begins, which is empty around it.

    Across an edge, a mask blurred with width sigma rises as the normal distribution does, so its inverse
    turns each grey value into a distance from the edge. Tables from grey values to opacity then draw lines of
    any width. Specks too small for an outline keep their fill.
    """
    from PIL import Image, ImageFilter

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size == 0:
        return
    outline, halo = 1.3 * line, 0.6 * line
    sigma = (outline / 2 + halo + 0.5) / 2.2  # beyond 2.2 sigma, 8-bit grey no longer tells distances apart
    margin = math.ceil(3 * sigma)
    top, left = corner_xy[1] + int(rows[0]), corner_xy[0] + int(columns[0])
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    above, before = min(margin, top), min(margin, left)
    below = min(margin, canvas.height - top - tight.shape[0])
    behind = min(margin, canvas.width - left - tight.shape[1])
    crop = np.pad(tight, ((above, below), (before, behind)))
    at = (left - before, top - above)
    canvas.paste(colour, at, Image.fromarray(crop.astype(np.uint8) * round(255 * alpha)))

    blurred = Image.fromarray(crop.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(sigma))
    normal = NormalDist(0, sigma)
    inside = np.array([normal.inv_cdf((grey + 0.5) / 256) for grey in range(256)])  # pixels, < 0 outside
    white = np.clip(halo / 2 + 0.5 - np.abs(inside + outline / 2 + halo / 2), 0, 1)
    coloured = np.clip(outline / 2 + 0.5 - np.abs(inside), 0, 1)
    for paint, opacity in ((_WHITE, white), (colour, coloured)):
        canvas.paste(paint, at, blurred.point((255 * opacity).round().astype(int).tolist()))


def _draw_name(canvas: Image.Image, mask: np.ndarray, name: str, colour: Colour, line: float) -> None:
    """A small tag on the mask's top edge, moved into the picture where it would leave it."""
    from PIL import ImageDraw, ImageFont

    rows = np.flatnonzero(mask.any(axis=1))
    if rows.size == 0 or not name:
        return
    top = int(rows[0])
    columns = np.flatnonzero(mask[top])
    font = ImageFont.load_default(max(10.0, 8 * line))
    draw = ImageDraw.Draw(canvas)
    x0, y0, x1, y1 = draw.textbbox((0, 0), name, font=font)
    pad = max(2, round(1.5 * line))
    width, height = x1 - x0 + 2 * pad, y1 - y0 + 2 * pad
    left = min(max(0, float(columns[columns.size // 2]) - width / 2), max(0, canvas.width - width))
    above = min(max(0, top - height - line), max(0, canvas.height - height))
    draw.rounded_rectangle(
        (left, above, left + width, above + height), radius=pad, fill=colour, outline=_WHITE
    )
    brightness = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
    text = (0, 0, 0) if brightness > _DARK_TEXT_FROM else _WHITE
    draw.text((left + pad - x0, above + pad - y0), name, font=font, fill=text)


def _draw_box(canvas: Image.Image, box: np.ndarray, colour: Colour, line: float) -> None:
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    thin, rim = max(1, round(1.2 * line)), max(1, round(0.6 * line))
    # Far corners are brought near: Pillow draws in 32-bit integers.
    reach = 4 * (thin + rim)
    corners = np.clip(box, -reach, np.array([canvas.width, canvas.height] * 2) + reach)
    x0, x1 = sorted(round(float(x)) for x in corners[0::2])
    y0, y1 = sorted(round(float(y)) for y in corners[1::2])
    for paint, width in ((_WHITE, thin + 2 * rim), (colour, thin)):
        out = width // 2
        draw.rectangle((x0 - out, y0 - out, x1 + out, y1 + out), outline=paint, width=width)


def _draw_point(canvas: Image.Image, xy: np.ndarray, on_object: bool, line: float) -> None:
    from PIL import Image, ImageDraw

    radius = max(6.0, 5.5 * line)
    half = math.ceil(radius * 1.3)
    if not (-half <= xy[0] <= canvas.width + half and -half <= xy[1] <= canvas.height + half):
        return
    centre = half * _SUPERSAMPLING
    tile = Image.new("RGBA", (2 * centre, 2 * centre))
    draw = ImageDraw.Draw(tile)

    def disc(share: float, fill: tuple[int, int, int, int]) -> None:
        reach = share * radius * _SUPERSAMPLING
        draw.ellipse((centre - reach, centre - reach, centre + reach, centre + reach), fill=fill)

    def bar(width: float, height: float) -> None:
        x, y = (share * radius * _SUPERSAMPLING for share in (width, height))
        draw.rounded_rectangle(
            (centre - x, centre - y, centre + x, centre + y), radius=min(x, y), fill=_WHITE
        )

    disc(1.15, (0, 0, 0, 96))
    disc(1.0, (*_WHITE, 255))
    disc(0.78, (*(_ON_OBJECT if on_object else _OFF_OBJECT), 255))
    bar(0.5, 0.14)
    if on_object:
        bar(0.14, 0.5)
    tile = tile.resize((2 * half, 2 * half), Image.Resampling.BOX)
    canvas.paste(tile, (round(float(xy[0])) - half, round(float(xy[1])) - half), mask=tile)


# -------------------------------------------------------------------------------------------------- arguments


def _mask_planes(masks: Any, size_hw: tuple[int, int]) -> list[np.ndarray]:
    """Each mask as (H, W) bool."""
    parts = [masks] if isinstance(masks, np.ndarray) else list(masks)
    if parts and isinstance(parts[0], list) and not np.iterable(parts[0][0]):  # the rows of one mask
        parts = [parts]
    planes = []
    for part in parts:
        try:
            array = np.asarray(part)
        except ValueError:  # rows of unequal length
            array = np.empty(0)
        if array.shape[-2:] != size_hw or array.dtype.kind not in "biuf":
            raise InputError(
                f"Masks to draw must be bool or numbers, of the picture's size {size_hw}, "
                f"got {array.shape} {array.dtype}."
            )
        planes += list(array.reshape(-1, *size_hw) > 0)
    return planes


def _points(points: Any, labels: Any) -> tuple[np.ndarray, list[int]]:
    xy = _numbers("points", points, 2)
    signs = [1] * len(xy) if labels is None else np.asarray(labels).reshape(-1).tolist()
    if len(signs) != len(xy):
        raise InputError(
            f"Got {len(xy)} points to draw and {len(signs)} labels; give one label for each point."
        )
    return xy, signs


def _numbers(name: str, given: Any, width: int) -> np.ndarray:
    """Points or boxes as (N, width) finite floats; none if None."""
    try:
        values = np.empty(0) if given is None else np.asarray(given, np.float64)
    except (TypeError, ValueError):
        values = np.full(1, np.nan)
    if values.size == 0:
        return np.empty((0, width))
    if values.ndim == 0 or values.shape[-1] != width or not np.isfinite(values).all():
        raise InputError(
            f"The {name} to draw must be finite numbers of shape (..., {width}), got {str(given)[:80]}."
        )
    return values.reshape(-1, width)
