"""`masklet models`, `pull`, `info` and `cache`: what there is, on the hub, in a file and on this disk.

In: names and files. Out: tables, fields or one JSON document on stdout. Nothing is computed here.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal
from masklet.errors import MaskletError, ModelNotFoundError
from masklet.registry import BundledModel

if TYPE_CHECKING:
    from masklet.io.checkpoints import Checkpoint
    from masklet.registry import PublishedModel

PICTURES = "pictures: points, a box or a mask as prompts; one mask or three candidates"
IN_PACKAGE = "in the package"
VIDEO = "video: objects followed through all frames"
FILE_SUFFIXES = (".pt", ".pth", ".safetensors", ".gguf", ".ggml")
LAYOUTS = {
    "meta": "Meta's tensor names",
    "transformers": "the tensor names of Hugging Face transformers",
    "sam3.cpp": "the tensor names of sam3.cpp",
    "short": "masklet's short tensor names",
}

# ----------------------------------------------------------------------------------------------- models, pull


def models(json: options.Json = False) -> None:
    """List the model in the package, and the published ones."""
    from masklet import registry
    from masklet.io import hub

    listed = [(model, hub.cached(model)) for model in (registry.BUNDLED, *registry.models())]
    if json:
        terminal.write_json({"models": [_listed_model(model, path) for model, path in listed]})
        return
    rows = [
        (
            model.name,
            f"{model.parameters / 1e6:.0f} M",
            terminal.human_size(model.size_bytes),
            model.licence,
            IN_PACKAGE if model is registry.BUNDLED else "no" if path is None else "yes",
        )
        for model, path in listed
    ]
    terminal.write_table(("name", "parameters", "download", "licence", "downloaded"), rows, right=" rr")


def _listed_model(model: BundledModel | PublishedModel, path: Path | None) -> dict[str, Any]:
    """One entry of the list; the model in the package has neither an address nor a hash to compare with."""
    published = not isinstance(model, BundledModel)
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "family": model.family,
        "version": model.version,
        "parameters": model.parameters,
        "bytes": model.size_bytes,
        "sha256": model.sha256 if published else None,
        "licence": model.licence,
        "url": model.url if published else None,
        "path": path and str(path),
    }


def pull(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", show_default=False, help="A name (see masklet models)."),
    ],
) -> None:
    """Download a published model and print its path.

    A download that was cut off is resumed. The file is verified, also when it
    is there already. It goes to Hugging Face's cache, which HF_HOME sets.
    """
    from masklet import registry
    from masklet.io import hub

    model = registry.find(name)
    path = hub.cached(model)
    if isinstance(model, BundledModel):
        terminal.note(f"{model.name} is here already: it is part of the package.")
    elif path is None:
        path = options.download(model)  # verified on arrival
    else:
        with terminal.status(f"Verifying {path.name}"):
            hub.verify(model, path)
    terminal.write(f"{path}\n")


# ------------------------------------------------------------------------------------------------------- info


@dataclass(frozen=True)
class FileReport:
    """What a checkpoint file holds; `info --json` prints it as it is. What is not known is None or empty."""

    file: str
    bytes: int
    format: str  # "torch", "safetensors", "gguf" or "ggml"
    parameters: int
    tensors: int
    dtypes: dict[str, int]  # tensors of each type, most frequent first
    ignored: tuple[str, ...]  # what was saved beside the tensors
    verified: bool | None = None  # False: there are no checksums to compare with
    model: str | None = None
    family: str | None = None
    version: str | None = None
    network: Network | None = None
    image_size: int | None = None  # pixels, the side of the model's own input
    layout: str | None = None  # whose names the tensors have
    abilities: tuple[str, ...] = ()
    calibrated_on: int | None = None  # pictures, for int8
    problem: str | None = None  # why masklet cannot run it
    listed: tuple[ListedTensor, ...] = ()  # if asked for


@dataclass(frozen=True)
class ListedTensor:
    """One tensor by its canonical name, with the type that it is stored in."""

    name: str
    type: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """What tells networks of one family apart: the trunk's width and blocks, the decoder's channels."""

    width: int
    blocks: tuple[int, ...]
    channels: int

    def __str__(self) -> str:
        blocks = " + ".join(map(str, self.blocks))
        return f"trunk {self.width} wide with {blocks} blocks, decoder {self.channels} channels"


def info(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", show_default=False, help="A model file, or the name of a model that is here."
        ),
    ],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole file and compare it with its checksums.")
    ] = False,
    tensors: Annotated[
        bool, typer.Option("--tensors", help="List the tensors, by Meta's names, with the type of each.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Tell what a checkpoint file holds and what it can do."""
    from masklet.io.checkpoints import open_checkpoint

    with open_checkpoint(_downloaded(file)) as checkpoint:
        report = _file_report(checkpoint)
        if verify:
            report = replace(report, verified=checkpoint.verify())
        report, problem = _with_model(report, checkpoint)
        if tensors:
            report = replace(report, listed=_listed(checkpoint))
    if json:
        terminal.write_json(asdict(report))
    else:
        terminal.write_fields(_fields(report))
    if report.listed and not json:
        rows = [(tensor.name, tensor.type, str(tensor.shape)) for tensor in report.listed]
        terminal.write("\n")
        terminal.write_table(("tensor", "type", "shape"), rows)
    if problem is not None:
        raise problem


def _downloaded(name: str) -> Path:
    """The file of a path or name, without the network."""
    from masklet import registry

    try:
        path = options.here(name)
    except ModelNotFoundError:
        path = Path(name).expanduser()
        if path.suffix in FILE_SUFFIXES:
            return path  # `open_checkpoint` says that there is no such file
        raise
    if path is None:
        model = registry.find(name)
        raise ModelNotFoundError(f"{model.name} is not downloaded yet; run: masklet pull {model.name}")
    return path


def _file_report(checkpoint: Checkpoint) -> FileReport:
    """What can be said of any model file."""
    from masklet.quant.smooth import calibrated_on

    tensors = checkpoint.tensors.values()
    return FileReport(
        file=str(checkpoint.path),
        bytes=checkpoint.path.stat().st_size,
        format=checkpoint.format,
        parameters=sum(math.prod(tensor.shape) for tensor in tensors),
        tensors=len(tensors),
        dtypes=dict(Counter(tensor.dtype for tensor in tensors).most_common()),
        ignored=checkpoint.extra,
        calibrated_on=calibrated_on(checkpoint.metadata),
    )


def _listed(checkpoint: Checkpoint) -> tuple[ListedTensor, ...]:
    from masklet.families.keymaps import canonical

    tensors = canonical(checkpoint)
    stored = ((key, tensors.stored(key)) for key in sorted(tensors.shapes))
    return tuple(ListedTensor(key, dtype, tensors.shapes[key]) for key, dtype in stored if dtype)


def _with_model(report: FileReport, checkpoint: Checkpoint) -> tuple[FileReport, MaskletError | None]:
    """The report with the model in the file; or with the reason why it cannot run, which comes along."""
    from masklet import load
    from masklet.families.keymaps import canonical

    try:
        model = load(checkpoint.path, profile=os.devnull)  # what is in the file, however it runs here
    except MaskletError as error:
        return replace(report, problem=str(error)), error
    config, tensors = model.config, canonical(checkpoint)
    tracks = any(name.startswith(model.family.video_tensors) for name in tensors.shapes)
    report = replace(
        report,
        model=options.model_name(model),
        family=config.family,
        version=config.version,
        network=Network(config.width, config.blocks, config.d_model),
        image_size=model.image_size,
        layout=tensors.layout,
        abilities=(PICTURES, VIDEO) if tracks and model.family.video_stages else (PICTURES,),
    )
    return report, None


def _fields(report: FileReport) -> dict[str, str]:
    """The report for people; what isn't known is left out."""
    dtypes = [dtype if len(report.dtypes) == 1 else f"{dtype} ({n})" for dtype, n in report.dtypes.items()]
    verified = "all checksums match" if report.verified else "the file carries no checksums"
    fields = {
        "file": f"{report.file} ({terminal.human_size(report.bytes)}, {report.format})",
        "model": report.model,
        "family": report.family and f"{report.family}, version {report.version}",
        "network": report.network and str(report.network),
        "parameters": f"{report.parameters:,} in {report.tensors} tensors",
        "dtypes": ", ".join(dtypes),
        "layout": report.layout and LAYOUTS[report.layout],
        "input": report.image_size and f"{report.image_size} x {report.image_size} pixels",
        "calibrated": report.calibrated_on and f"for int8, on {report.calibrated_on} pictures",
        "can do": "\n".join(report.abilities),
        "ignored": ", ".join(report.ignored),
        "verified": None if report.verified is None else verified,
    }
    return {name: text for name, text in fields.items() if text}


# ------------------------------------------------------------------------------------------------------ cache


def cache(
    clear: Annotated[bool, typer.Option("--clear", help="Delete all compiled graphs.")] = False,
    json: options.Json = False,
) -> None:
    """Show or clear the compiled graphs.

    They are written when a model is first used, and again when they are
    missing. They hold no weights. MASKLET_CACHE sets their folder.
    """
    from masklet.runtime import cache as compiled

    freed = compiled.clear() if clear else None
    entries = compiled.entries()
    total = sum(entry.size for entry in entries)
    if json:
        listed = [{"stage": e.stage, "bytes": e.size, "path": str(e.path)} for e in entries]
        document = {"folder": str(compiled.folder()), "entries": listed, "bytes": total}
        terminal.write_json(document if freed is None else {**document, "freed_bytes": freed})
    elif freed is not None:
        terminal.write(f"freed {terminal.human_size(freed)} in {compiled.folder()}\n")
    else:
        if entries:
            rows = [(entry.stage, terminal.human_size(entry.size), entry.path.name) for entry in entries]
            terminal.write_table(("stage", "size", "file"), rows, right=" r")
        terminal.write(f"{len(entries)} entries, {terminal.human_size(total)} in {compiled.folder()}\n")
