"""`masklet segment`: one picture, prompts for one object, its mask.

In: a picture file and prompts. Out: mask and overlay pictures, and on stdout a table or one JSON document.
All that can be checked beforehand (prompts, output folders, the picture) is checked before a model is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal
from masklet.errors import OutputError

if TYPE_CHECKING:
    import numpy as np

    from masklet import Model

CANDIDATES = 3  # masks that --multimask gives


@dataclass(frozen=True)
class Files:
    """Where one mask goes; None for what is not wanted."""

    mask: Path | None
    overlay: Path | None


@dataclass(frozen=True, eq=False)
class Result:
    """One mask (H, W) bool, its predicted IoU, its box (x, y, width, height) and area in pixels."""

    mask: np.ndarray
    score: float
    bbox_xywh: tuple[int, int, int, int]
    area: int
    files: Files


def segment(
    image: options.ImageArgument,
    point: options.Points = None,
    box: options.Boxes = None,
    mask_input: options.MaskInput = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="OUT.png",
            rich_help_panel=options.OUTPUT,
            show_default="IMAGE-mask.png in this folder, unless --overlay or --json is given",
            help="Write the mask: 255 inside, 0 outside, as large as the picture.",
        ),
    ] = None,
    overlay: Annotated[
        Path | None,
        typer.Option(
            "--overlay",
            metavar="OUT.png",
            show_default=False,
            rich_help_panel=options.OUTPUT,
            help="Write the picture with mask and prompts drawn over it: .png, .jpg or .webp.",
        ),
    ] = None,
    json: Annotated[
        bool,
        typer.Option(
            "--json",
            rich_help_panel=options.OUTPUT,
            help="Print one JSON document: size, and for each mask score, area, bbox and COCO RLE.",
        ),
    ] = False,
    multimask: Annotated[
        bool,
        typer.Option(
            "--multimask",
            rich_help_panel=options.OUTPUT,
            help="Give three candidates, best first; output files are named OUT-1, OUT-2 and OUT-3.",
        ),
    ] = False,
    model: options.ModelOption = None,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    image_size: options.ImageSize = None,
    profile: options.Profile = None,
) -> None:
    """Mask one object in a picture.

    Points, a box and a rough mask may be combined: all are about that object.
    x counts right and y down from the top left corner, in pixels of the
    picture as a viewer shows it.
    """
    prompt = options.one_prompt(point, box, mask_input)
    if prompt is None:
        raise typer.BadParameter("which object? Give --point X,Y or --box X0,Y0,X1,Y1 or --mask-input FILE.")
    if output is None and overlay is None and not json:
        output = Path(f"{image.stem}-mask.png")
    files = _plan(output, overlay, CANDIDATES if multimask else 1)
    _check_writable(image, files)
    pixels = _read_picture(image, prompt)

    loaded = options.load_model(options.Computation(model, device, threads, precision, image_size, profile))
    results = _predict(loaded, pixels, prompt, files)
    for result in results:
        _write_pictures(pixels, result, prompt)
    if json:
        terminal.write_json(_document(image, loaded, pixels, results))
    else:
        _write_table(results)


def _plan(output: Path | None, overlay: Path | None, count: int) -> list[Files]:
    """The files of each mask, best first: the name itself for one mask, name-1, name-2, ... for several."""

    def numbered(path: Path | None, number: int) -> Path | None:
        return path and (path if count == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}"))

    return [Files(numbered(output, number), numbered(overlay, number)) for number in range(1, count + 1)]


def _check_writable(image: Path, files: Sequence[Files]) -> None:
    """Find out before the work what would fail after it. Raises `OutputError`, `InputError`."""
    from masklet.io.image import check_image_suffix

    paths = []
    for wanted in files:
        if wanted.mask:
            check_image_suffix(wanted.mask, (".png",))
            paths.append(wanted.mask)
        if wanted.overlay:
            check_image_suffix(wanted.overlay)
            paths.append(wanted.overlay)
    for path in paths:
        folder = path.parent
        if not folder.is_dir():
            reason = f"the folder {str(folder)!r} does not exist; create it first"
        elif path.is_dir():
            reason = "it is a folder; give the name of a file"
        elif not os.access(folder, os.W_OK):
            reason = f"no permission to write to the folder {str(folder)!r}; choose another one"
        elif path.resolve() == image.resolve():
            reason = "that is the picture itself; choose another name"
        elif [other.resolve() for other in paths].count(path.resolve()) > 1:
            reason = "two results would go to the same file; choose another name for one of them"
        else:
            continue
        raise OutputError(f"cannot write {str(path)!r}: {reason}.")


def _read_picture(image: Path, prompt: options.Prompt) -> np.ndarray:
    """(H, W, 3) uint8, after a check that the prompts lie in it. Raises `InputError`."""
    from masklet.io.image import read_image
    from masklet.pipeline.prompts import make_prompts

    pixels = read_image(image)
    # Any image_size would do: only the checks matter, and a slip must not cost the encoding.
    make_prompts(
        **prompt.arguments(), mask_input=None, size_hw=(pixels.shape[0], pixels.shape[1]), image_size=1024
    )
    return pixels


def _predict(
    model: Model, pixels: np.ndarray, prompt: options.Prompt, files: Sequence[Files]
) -> list[Result]:
    """As many results as there are files, best first."""
    from masklet import ImagePredictor
    from masklet.io.masks import mask_to_bbox_xywh, read_mask_input
    from masklet.pipeline.conventions import conventions_of

    mask_input = None
    if prompt.mask_input is not None:
        side = model.image_size // 4
        covered_hw = conventions_of(model.config).covered(pixels.shape[:2], side)
        mask_input = read_mask_input(prompt.mask_input, side, covered_hw)
    predictor = ImagePredictor(model)
    with terminal.status("Encoding the picture"):
        predictor.set_image(pixels)
        masks, scores, _ = predictor.predict(
            **prompt.arguments(), mask_input=mask_input, multimask_output=len(files) > 1
        )
    best_first = (-scores).argsort(kind="stable")
    return [
        Result(
            masks[index],
            float(scores[index]),
            mask_to_bbox_xywh(masks[index]),
            int(masks[index].sum()),
            wanted,
        )
        for index, wanted in zip(best_first, files, strict=True)
    ]


def _write_pictures(pixels: np.ndarray, result: Result, prompt: options.Prompt) -> None:
    from masklet.io.image import write_image
    from masklet.io.masks import write_mask
    from masklet.io.overlay import draw_overlay

    if result.files.mask:
        write_mask(result.files.mask, result.mask)
    if result.files.overlay:
        given = prompt.arguments()
        drawn = draw_overlay(
            pixels,
            result.mask,
            points=given["point_coords"],
            labels=given["point_labels"],
            boxes=given["box"],
        )
        write_image(result.files.overlay, drawn)


def _document(image: Path, model: Model, pixels: np.ndarray, results: Sequence[Result]) -> dict[str, Any]:
    from masklet.rle import encode_rle

    return {
        "image": str(image),
        "size": [pixels.shape[0], pixels.shape[1]],
        "model": options.model_name(model),
        "masks": [
            {
                "score": result.score,
                "area": result.area,
                "bbox": list(result.bbox_xywh),
                "segmentation": encode_rle(result.mask),
                "mask_file": result.files.mask and str(result.files.mask),
                "overlay_file": result.files.overlay and str(result.files.overlay),
            }
            for result in results
        ],
    }


def _write_table(results: Sequence[Result]) -> None:
    rows = []
    for result in results:
        files = ", ".join(str(path) for path in (result.files.mask, result.files.overlay) if path)
        x, y, width, height = result.bbox_xywh
        share = f"{result.area / result.mask.size:.1%}"
        rows.append((f"{result.score:.3f}", str(result.area), share, f"{x},{y},{width},{height}", files))
    terminal.write_table(("score", "area px", "of picture", "x,y,w,h px", "files"), rows, right="rrr")
