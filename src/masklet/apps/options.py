"""Options that several commands share, what their text means, and the model that they describe.

In: text from the command line. Out: checked values, and a loaded `masklet.Model`. A value that cannot be
meant is a usage error (exit code 2) before any file is touched.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from masklet import Model
    from masklet.pipeline.profile import Settings
    from masklet.registry import BundledModel, PublishedModel

BETTER = "sam2.1_hiera_tiny"  # the published model that is named to those who chose none
PROMPTS = "Prompts"  # titles of options in a command's help
OUTPUT = "Output"
RUNNING = "Running the model"

# -------------------------------------------------------------------------------------------- what text means


@dataclass(frozen=True)
class Point:
    """A click at (x, y) in pixels of the picture; `label` 1 on the object, 0 off it."""

    x: float
    y: float
    label: int


@dataclass(frozen=True)
class Box:
    """A box around the object, in pixels of the picture."""

    xyxy: tuple[float, float, float, float]


@dataclass(frozen=True)
class Prompt:
    """All that is said about one object. `mask_input` is a file."""

    points: tuple[Point, ...]
    box: Box | None
    mask_input: Path | None

    def arguments(self) -> dict[str, Any]:
        """Points and box under the names of `ImagePredictor.predict`."""
        return {
            "point_coords": [(point.x, point.y) for point in self.points] or None,
            "point_labels": [point.label for point in self.points] or None,
            "box": self.box.xyxy if self.box else None,
        }


def parse_point(text: str) -> Point:
    """The point of "X,Y" or "X,Y,LABEL". Raises `typer.BadParameter`."""
    numbers = _numbers(text)
    if len(numbers) not in (2, 3) or numbers[2:] not in ([], [0], [1]):
        raise typer.BadParameter(
            f"got {text!r}; give X,Y in pixels, and ,1 on the object (or nothing) or ,0 off it."
        )
    return Point(numbers[0], numbers[1], int(numbers[2]) if len(numbers) == 3 else 1)


def parse_box(text: str) -> Box:
    """The box of "X0,Y0,X1,Y1". Raises `typer.BadParameter`."""
    numbers = _numbers(text)
    if len(numbers) != 4:
        raise typer.BadParameter(f"got {text!r}; give X0,Y0,X1,Y1 in pixels, top left corner first.")
    return Box((numbers[0], numbers[1], numbers[2], numbers[3]))


def one_prompt(points: list[Point] | None, boxes: list[Box] | None, mask_input: Path | None) -> Prompt | None:
    """What was said about the object, None for nothing. Raises `typer.BadParameter`."""
    if boxes and len(boxes) > 1:
        raise typer.BadParameter(
            f"got {len(boxes)} boxes, but a call is about one object. Call again for the next object, or use "
            "masklet.ImagePredictor in Python, which encodes the picture once.",
            param_hint="'--box'",
        )
    if not points and not boxes and mask_input is None:
        return None
    return Prompt(tuple(points or ()), boxes[0] if boxes else None, mask_input)


def _numbers(text: str) -> list[float]:
    """Finite numbers between commas; empty if there is anything else."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


# ---------------------------------------------------------------------------------------------------- options

ImageArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGE", show_default=False, help="A picture: PNG, JPEG, WebP, TIFF and others."),
]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="A model file (.pt, .safetensors, .gguf, .ggml) or a name (see masklet models).",
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        rich_help_panel=RUNNING,
        show_default="masklet-nano, a small one in the package",
        help="A model file (.pt, .safetensors, .gguf, .ggml) or a published name, downloaded once.",
    ),
]
Points = Annotated[
    list[Point] | None,
    typer.Option(
        "--point",
        metavar="X,Y[,0|1]",
        parser=parse_point,
        show_default=False,
        rich_help_panel=PROMPTS,
        help="A pixel on the object (1, also without a label) or off it (0). Repeat it for more.",
    ),
]
Boxes = Annotated[
    list[Box] | None,
    typer.Option(
        "--box",
        metavar="X0,Y0,X1,Y1",
        parser=parse_box,
        show_default=False,
        rich_help_panel=PROMPTS,
        help="A box around the object in pixels: left, top, right, bottom.",
    ),
]
MaskInput = Annotated[
    Path | None,
    typer.Option(
        "--mask-input",
        metavar="FILE",
        show_default=False,
        rich_help_panel=PROMPTS,
        help="A rough mask: a black and white picture, or .npy logits of an earlier prediction.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        rich_help_panel=RUNNING,
        show_default="cpu",
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
    str | None,
    typer.Option(
        "--precision",
        metavar="TYPE",
        rich_help_panel=RUNNING,
        show_default="auto",
        help="Numbers to compute with: f32, f16 (weights in 16 bits), int8 (faster, on the CPU) or auto, "
        "which loses nothing that the file has.",
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        min=1,
        rich_help_panel=RUNNING,
        show_default="the model's own, mostly 1024",
        help="Side of the square that the picture is scaled to, in steps of 32 pixels, with SAM of 16. Less "
        "is faster.",
    ),
]
Profile = Annotated[
    Path | None,
    typer.Option(
        "--profile",
        metavar="FILE",
        rich_help_panel=RUNNING,
        show_default="masklet.toml beside the model, if it is there",
        help="Settings for what these options leave open; masklet bench --tune writes one.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]

# ----------------------------------------------------------------------------------------------------- models


@dataclass(frozen=True)
class Computation:
    """Which model, None for the one in the package, and how it runs; None for what is left to the profile or
    to the model."""

    model: str | None
    device: str | None = None
    threads: int | None = None
    precision: str | None = None
    image_size: int | None = None
    profile: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """What was given, under the names of `masklet.load`, but for the profile."""
        return {name: value for name, value in vars(self).items() if name not in ("model", "profile")}

    def settings(self) -> tuple[Settings, Path | None]:
        """The settings as `masklet.load` finds them, without loading, and the profile in use."""
        from masklet.pipeline.profile import settings_of

        return settings_of(here(self.model), self.profile, self.arguments())


def load_model(computation: Computation) -> Model:
    """The model of a command's options; a published one is downloaded first, with a progress bar. Says so
    when nobody chose a model.

    Raises what `masklet.load` raises.
    """
    from masklet import load, registry
    from masklet.apps import terminal
    from masklet.pipeline.profile import profile_beside

    path = local_file(computation.model)
    if computation.model is None:
        terminal.note(
            f"Model: {registry.BUNDLED.name}, for trying out and simple scenes; photographs need a published "
            f"one, such as --model {BETTER}."
        )
    beside = profile_beside(path)
    if computation.profile is None and beside is not None:
        terminal.note(f"Settings from {beside}")
    with terminal.status(f"Loading {computation.model or registry.BUNDLED.name}"):
        return load(path, **computation.arguments(), profile=computation.profile)


def here(name: str | None) -> Path | None:
    """The file of a path or name, None for a published model that is not downloaded yet. Raises
    ModelNotFoundError."""
    from masklet import registry
    from masklet.io import hub

    path = registry.BUNDLED.path if name is None else Path(name).expanduser()
    return path if path.exists() else hub.cached(registry.find(str(name)))


def local_file(name: str | None) -> Path:
    """The file of a path or name, downloaded with a progress bar if it is not there yet."""
    from masklet import registry
    from masklet.errors import ModelNotFoundError
    from masklet.pipeline.model import find_file

    if name is not None and not Path(name).expanduser().exists():
        try:
            return download(registry.find(name))
        except ModelNotFoundError:
            pass  # `find_file` says it with the path in mind
    return find_file(name)


def download(model: BundledModel | PublishedModel) -> Path:
    """The file of a model, from the package, the cache or the network. Raises DownloadError."""
    from masklet.apps import terminal
    from masklet.io import hub

    path = hub.cached(model)
    if path is not None:
        return path
    terminal.note(f"Downloading {model.name} ({terminal.human_size(model.size_bytes)})")
    with terminal.download_bar(model.name) as progress:
        return hub.fetch(model, progress=progress)


def model_name(model: Model) -> str:
    """What a person calls a model: its published name, or "custom"."""
    return model.family.preset_name(model.config) or "custom"
