"""`masklet auto`: a picture to the masks of everything in it.

In: a picture file. Out: a COCO document, a label map, an overlay, and on stdout a table or one JSON document.
All that can be checked beforehand (outputs, the picture, tiles) is checked before a model is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from masklet.apps import options, terminal
from masklet.apps.auto_outputs import check_writable, described, parse_output, write_outputs

if TYPE_CHECKING:
    import numpy as np

    from masklet.pipeline.found import FoundMask

SEARCH = "Search"

EXAMPLES = """Examples:

masklet auto photo.jpg

masklet auto photo.jpg -o masks.json -o seen.png --preset fine

masklet auto photo.jpg --tile 1024 --overlap 128 --min-area 200 -o found
"""


Preset = Literal["fast", "default", "fine"]  # how closely to look
PRESETS: dict[Preset, dict[str, Any]] = {
    "fast": {"points_per_side": 16},
    "default": {},
    "fine": {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2},
}


# ---------------------------------------------------------------------------------------------------- options

Outputs = Annotated[
    list[str] | None,
    typer.Option(
        "--output",
        "-o",
        metavar="OUT",
        rich_help_panel=options.OUTPUT,
        show_default="the folder IMAGE-masks here, unless --json is given",
        help="Where to: a folder for all of it, a COCO document (.json), or the picture with the masks "
        "drawn over it (.png, .jpg, .webp). Repeat it for several.",
    ),
]
Json = Annotated[
    bool,
    typer.Option(
        "--json",
        rich_help_panel=options.OUTPUT,
        help="Print one JSON document: size, and for each mask scores, area, bbox and COCO RLE.",
    ),
]
PresetOption = Annotated[
    Preset,
    typer.Option(
        "--preset",
        metavar="NAME",
        rich_help_panel=SEARCH,
        help="How closely to look: fast (16 x 16 points), default (32 x 32), or fine (these, and 16 x 16 "
        "in each of 2 x 2 crops).",
    ),
]
MinArea = Annotated[
    int,
    typer.Option(
        "--min-area",
        metavar="N",
        min=0,
        rich_help_panel=SEARCH,
        help="Leave out masks, and mend holes and specks in masks, that have fewer pixels.",
    ),
]
MaxMasks = Annotated[
    int | None,
    typer.Option(
        "--max-masks",
        metavar="N",
        min=1,
        show_default="all",
        rich_help_panel=SEARCH,
        help="Keep only so many, those with the best scores.",
    ),
]
Tile = Annotated[
    int | None,
    typer.Option(
        "--tile",
        metavar="PIXELS",
        min=16,
        show_default=False,
        rich_help_panel=SEARCH,
        help="For very large pictures: search tiles of so many pixels a side, and join what crosses.",
    ),
]
Overlap = Annotated[
    int,
    typer.Option(
        "--overlap",
        metavar="PIXELS",
        min=8,
        rich_help_panel=SEARCH,
        help="What neighbouring tiles share, at most half of a tile.",
    ),
]

# ---------------------------------------------------------------------------------------------------- command


def auto(
    image: options.ImageArgument,
    output: Outputs = None,
    json: Json = False,
    preset: PresetOption = "default",
    min_area: MinArea = 0,
    max_masks: MaxMasks = None,
    tile: Tile = None,
    overlap: Overlap = 128,
    model: options.ModelOption = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    image_size: options.ImageSize = None,
    profile: options.Profile = None,
) -> None:
    """Find the masks of everything in a picture.

    A folder gets masks.json (a COCO document), labels.png (at each pixel the
    id of the smallest mask there) and overlay.png. A mask's id is its rank
    by the model's own score.
    """
    outputs = [parse_output(text) for text in output or ()]
    if not outputs and not json:
        outputs = [parse_output(f"{image.stem}-masks/")]
    check_writable(outputs, image)
    pixels = _read_picture(image, tile, overlap)

    from masklet import AutomaticMaskGenerator

    loaded = options.load_model(options.Computation(model, device, threads, precision, image_size, profile))
    generator = AutomaticMaskGenerator(loaded, **PRESETS[preset], min_mask_region_area=min_area)
    with terminal.search_bar("Looking at points") as progress:
        found = generator.find(pixels, tile=tile, overlap=overlap, progress=progress)
    found = [one for one in found if one.area >= min_area]
    found = sorted(found, key=lambda one: -one.predicted_iou)[:max_masks]
    if not found:
        terminal.note("No mask was good enough; try --preset fine or another --model.")

    name = options.model_name(loaded)
    write_outputs(outputs, image, pixels, found, name)
    if json:
        size_hw = (pixels.shape[0], pixels.shape[1])
        masks = [described(one, size_hw) for one in found]
        terminal.write_json({"image": str(image), "size": [*size_hw], "model": name, "masks": masks})
    else:
        _write_table(pixels, found, ", ".join(str(one.path) for one in outputs))


def _read_picture(image: Path, tile: int | None, overlap: int) -> np.ndarray:
    """(H, W, 3) uint8, after a check that the tiles make sense. Raises `InputError`."""
    from masklet.io.image import read_image
    from masklet.pipeline.tiles import tiles_of

    pixels = read_image(image)
    if tile is not None:
        tiles_of((pixels.shape[0], pixels.shape[1]), tile, overlap)
    return pixels


def _write_table(pixels: np.ndarray, found: Sequence[FoundMask], files: str) -> None:
    import numpy as np

    covered = np.zeros(pixels.shape[:2], np.bool_)
    for one in found:
        x0, y0, x1, y1 = one.box_xyxy
        covered[y0:y1, x0:x1] |= one.pixels()
    areas = [one.area for one in found]
    row = (
        str(len(found)),
        f"{np.median(areas):.0f}" if areas else "-",
        f"{np.count_nonzero(covered) / covered.size:.1%}",
        files,
    )
    terminal.write_table(("masks", "median area px", "of picture", "files"), [row], right="rrr")
