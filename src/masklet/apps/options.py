"""Options that several commands share, and the model that they describe.

In: text from the command line. Out: checked values, and a loaded `masklet.Model`. A value that cannot be meant is a
usage error (exit code 2) before any file is touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from masklet import Model

DEFAULT_MODEL = "sam2.1_hiera_tiny"
RUNNING = "Running the model"  # the title of these options in a command's help
_SIZE_MULTIPLE = 32


def parse_image_size(text: str | int) -> int:
    """The side of the model's input in pixels. Raises `typer.BadParameter`."""
    try:
        size = int(text)
    except ValueError:
        size = 0
    if size < _SIZE_MULTIPLE or size % _SIZE_MULTIPLE:
        raise typer.BadParameter(f"got {text!r}; give pixels in a multiple of {_SIZE_MULTIPLE}, such as 1024.")
    return size


ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A checkpoint file (.pt, .safetensors) or a published name, see masklet models.",
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        rich_help_panel=RUNNING,
        help="A checkpoint file (.pt, .safetensors) or a published name, downloaded when first used.",
    ),
]
ImageArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGE", show_default=False, help="A picture: PNG, JPEG, WebP, TIFF and others."),
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        rich_help_panel=RUNNING,
        help="Where to compute: cpu, cuda, tensorrt, openvino, coreml, webgpu, ...",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        rich_help_panel=RUNNING,
        show_default="all cores",
        help="CPU threads, at least 1.",
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="TYPE",
        rich_help_panel=RUNNING,
        help="Number type of the computation: f32.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        parser=parse_image_size,
        rich_help_panel=RUNNING,
        show_default="the model's own, 1024",
        help="Side of the square that the picture is scaled to, in pixels, a multiple of 32. Smaller is faster.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]


def load_model(
    name: str, *, device: str, threads: int | None, precision: str, image_size: int | None
) -> Model:
    """The model of a command's options; a published one is downloaded first, with a progress bar.

    Raises what `masklet.load` raises.
    """
    from masklet import load
    from masklet.apps import terminal

    path = local_file(name)
    with terminal.status(f"Loading {name}"):
        return load(path, device=device, threads=threads, precision=precision, image_size=image_size)


def local_file(name: str) -> Path:
    """The file of a path or published name, downloaded if need be, with a progress bar."""
    from masklet.pipeline.model import find_file

    return find_file(name)
