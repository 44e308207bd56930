"""`masklet dump` and `masklet compare`: find where two runs of one network first part.

In: a model, a picture and prompts; two .npz files. Out: an .npz file; on stdout a table or one JSON document,
and an exit code that says whether the two agree.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal

if TYPE_CHECKING:
    from masklet import Model
    from masklet.pipeline.compare import Comparison, Difference


def dump(
    model: options.ModelArgument,
    image: Annotated[
        Path | None,
        typer.Argument(
            metavar="IMAGE", show_default=False, help="A picture: PNG, JPEG, WebP, TIFF and others."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.npz",
            show_default=False,
            help="Where to write the steps, for NumPy.",
        ),
    ] = None,
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            metavar="NAME",
            show_default="all that the prompts reach",
            help="A step, all below a name, or a pattern: image_encoder.neck.2, image_encoder.trunk, "
            "'*.blocks.1?'. Repeat for more. Only what they need is computed.",
        ),
    ] = None,
    list_steps: Annotated[
        bool, typer.Option("--list", help="Print the names of all steps and stop.")
    ] = False,
    point: options.Points = None,
    box: options.Boxes = None,
    mask_input: options.MaskInput = None,
    multimask: Annotated[
        bool,
        typer.Option(
            "--multimask", rich_help_panel=options.PROMPTS, help="Three candidates instead of the one best."
        ),
    ] = False,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    image_size: options.ImageSize = None,
    profile: options.Profile = None,
) -> None:
    """Write what goes on inside the network, step by step.

    Names and layouts are those of Meta's code, so that masklet compare finds
    where two runs part. What runs is the plain graph: standard operators,
    nothing fused or folded. Without a prompt it ends with the image encoder.
    """
    if not list_steps and image is None:
        raise typer.BadParameter(
            "give a picture, or --list for the names of all steps.", param_hint="'IMAGE'"
        )
    if not list_steps and output is None:
        raise typer.BadParameter("say where to write: -o FILE.npz.", param_hint="'--output' / '-o'")
    prompt = options.one_prompt(point, box, mask_input)
    loaded = options.load_model(options.Computation(model, device, threads, precision, image_size, profile))
    if image is None or output is None or list_steps:
        _list(loaded)
    else:
        _dump(loaded, image, output, prompt, multimask, stage)


def _list(model: Model) -> None:
    from masklet.pipeline.dump import step_names

    names = step_names(model)
    terminal.write("".join(f"{name}\n" for name in (*names.image, *names.prompt)))


def _dump(
    model: Model,
    image: Path,
    output: Path,
    prompt: options.Prompt | None,
    multimask: bool,
    stages: list[str] | None,
) -> None:
    import numpy as np

    from masklet.io.atomic import open_atomic
    from masklet.io.masks import read_mask_input
    from masklet.pipeline.dump import dump as dump_steps

    arguments: dict[str, Any] = prompt.arguments() if prompt else {}
    if prompt and prompt.mask_input:
        arguments["mask_input"] = read_mask_input(prompt.mask_input, model.image_size // 4)
    with open_atomic(output) as file:  # before the work: a folder that isn't there shows at once
        with terminal.status("Running the plain graph"):
            steps = dump_steps(model, image, **arguments, multimask_output=multimask, stages=stages)
        np.savez(file, **steps)  # type: ignore[arg-type]
    size = terminal.human_size(sum(array.nbytes for array in steps.values()))
    terminal.note(f"{len(steps)} steps, {size}, in {output}")


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.npz", show_default=False, help="The run in question.")],
    b: Annotated[Path, typer.Argument(metavar="B.npz", show_default=False, help="The run to trust.")],
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance",
            metavar="X",
            min=0.0,
            help="The largest |A - B| that is still the same, relative to the largest |B| of the tensor.",
        ),
    ] = 1e-4,
    json: options.Json = False,
) -> None:
    """Compare two .npz files tensor by tensor, and name the first that differs.

    The order is that of A, which in a dump is the order of the data. The exit
    code is 0 if all tensors that both have agree within the tolerance, else 1.
    Tensors that only one of them has are listed and do not count.
    """
    from masklet.pipeline.compare import compare_files

    result = compare_files(a, b, tolerance)
    if json:
        terminal.write_json(_document(a, b, result))
    else:
        _write_table(result)
    if result.first_divergence is not None:
        raise typer.Exit(1)


def _write_table(result: Comparison) -> None:
    rows = [_row(difference, result.tolerance) for difference in result.differences]
    terminal.write_table(("TENSOR", "SHAPE", "COSINE", "MAX |A-B|", "RELATIVE", ""), rows, right="  rrr")
    for side, names in (("A", result.only_a), ("B", result.only_b)):
        if names:
            terminal.write(f"Only in {side}: {', '.join(names)}\n")
    first = result.first_divergence
    if first is None:
        terminal.write(f"All {len(rows)} tensors agree within {result.tolerance:g}.\n")
    else:
        terminal.write(f"First divergence: {first.name}\n")


def _row(difference: Difference, tolerance: float) -> tuple[str, ...]:
    name, shape = difference.name, _shape(difference.shape_a)
    if difference.relative is None or difference.cosine is None or difference.maximum is None:
        return name, f"{shape}, B {_shape(difference.shape_b)}", "", "", "", "shapes differ"
    mark = "" if difference.within(tolerance) else "differs"
    numbers = f"{difference.cosine:.9f}", f"{difference.maximum:.2e}", f"{difference.relative:.2e}"
    return name, shape, *numbers, mark


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"


def _document(a: Path, b: Path, result: Comparison) -> dict[str, Any]:
    first = result.first_divergence
    return {
        "a": str(a),
        "b": str(b),
        "tolerance": result.tolerance,
        "within": first is None,
        "first_divergence": first.name if first else None,
        "only_a": list(result.only_a),
        "only_b": list(result.only_b),
        "tensors": [
            {
                "name": difference.name,
                "shape_a": list(difference.shape_a),
                "shape_b": list(difference.shape_b),
                "cosine": difference.cosine,
                "max_difference": _finite(difference.maximum),
                "relative": _finite(difference.relative),
                "within": difference.within(result.tolerance),
            }
            for difference in result.differences
        ],
    }


def _finite(number: float | None) -> float | None:
    """JSON has no infinity: null, as where the shapes differ; `within` is false in both cases."""
    return number if number is not None and math.isfinite(number) else None
