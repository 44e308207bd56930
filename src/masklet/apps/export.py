"""`masklet export`: a model as portable ONNX files for other engines.

In: a model and a folder. Out: the files and their manifest; on stdout a table of them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from masklet.apps import options, terminal


def export(
    model: options.ModelArgument,
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", show_default=False, help="A folder, made if it is not there.")
    ],
    stage: Annotated[
        list[str] | None,
        typer.Option(
            "--stage",
            metavar="NAME",
            show_default="all",
            help="encode_image, encode_points, encode_mask, decode_masks; with --video also begin_frame, "
            "attend_memory, encode_memory, point_to_object, shrink_mask. Repeat for more.",
        ),
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="What tracking needs, too.")] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier export in that folder.")
    ] = False,
    image_size: options.ImageSize = None,
) -> None:
    """Write a model as ONNX files that run without masklet.

    One file for each stage, its weights inside, standard operators only, and
    manifest.json, which tells what goes in and out and what a program around
    the files must do.
    """
    from masklet.pipeline.export import export as export_model

    # No profile: what is exported shall not depend on how a model runs here.
    computation = options.Computation(model, "cpu", None, "f32", image_size, Path(os.devnull))
    loaded = options.load_model(computation)
    manifest = export_model(
        loaded,
        folder,
        stages=stage,
        video=video,
        overwrite=overwrite,
        on_stage=lambda name: terminal.note(f"Writing {name}"),
    )
    files = [path for path in sorted(manifest.parent.iterdir()) if path.is_file()]
    rows = [(str(path), terminal.human_size(path.stat().st_size)) for path in files]
    terminal.write_table(("FILE", "SIZE"), rows, right=" r")
