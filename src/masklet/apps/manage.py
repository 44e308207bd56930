"""`masklet models`, `pull`, `info` and `cache`: what there is, on the hub, in a file and on this disk.

In: names and files. Out: tables, fields or one JSON document on stdout. Nothing is computed here.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal
from masklet.errors import MaskletError, ModelNotFoundError

if TYPE_CHECKING:
    from masklet.io.checkpoints import Checkpoint
    from masklet.registry import PublishedModel

ABILITIES = ("pictures: points, a box or a mask as prompts; one mask or three candidates",)
LAYOUTS = {"meta": "Meta's tensor names", "transformers": "the tensor names of Hugging Face transformers"}

# ----------------------------------------------------------------------------------------------- models, pull


def models(json: options.Json = False) -> None:
    """List the published models."""
    from masklet import registry
    from masklet.io import hub

    listed = [(model, hub.cached(model)) for model in registry.models()]
    if json:
        terminal.write_json({"models": [_published(model, path) for model, path in listed]})
        return
    rows = [
        (
            model.name,
            f"{model.parameters / 1e6:.0f} M",
            terminal.human_size(model.size_bytes),
            model.licence,
            "no" if path is None else "yes",
        )
        for model, path in listed
    ]
    terminal.write_table(("name", "parameters", "download", "licence", "downloaded"), rows, right=" rr")


def _published(model: PublishedModel, path: Path | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "aliases": list(model.aliases),
        "family": model.family,
        "version": model.version,
        "parameters": model.parameters,
        "bytes": model.size_bytes,
        "sha256": model.sha256,
        "licence": model.licence,
        "url": model.url,
        "path": path and str(path),
    }


def pull(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", show_default=False, help="A published name (see masklet models)."),
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
    if path is None:
        path = options.download(model)  # verified on arrival
    else:
        with terminal.status(f"Verifying {path.name}"):
            hub.verify(model, path)
    terminal.write(f"{path}\n")


# ------------------------------------------------------------------------------------------------------- info


def info(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", show_default=False, help="A checkpoint file, or the name of a downloaded model."
        ),
    ],
    json: options.Json = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read the whole file and compare it with its checksums.")
    ] = False,
) -> None:
    """Tell what a checkpoint file holds and what it can do."""
    from masklet.io.checkpoints import open_checkpoint

    with open_checkpoint(_downloaded(file)) as checkpoint:
        report = _file_report(checkpoint)
        if verify:
            report["verified"] = checkpoint.verify()
        problem = _add_model_report(report, checkpoint)
    if json:
        terminal.write_json(report)
    else:
        terminal.write_fields(_fields(report))
    if problem is not None:
        raise problem


def _downloaded(name: str) -> Path:
    """The file of a path or published name, without the network."""
    from masklet import registry
    from masklet.io import hub

    path = Path(name).expanduser()
    if path.exists():
        return path
    model = registry.find(name)
    cached = hub.cached(model)
    if cached is None:
        raise ModelNotFoundError(f"{model.name} is not downloaded yet; run: masklet pull {model.name}")
    return cached


def _file_report(checkpoint: Checkpoint) -> dict[str, Any]:
    """What can be said of any model file. The keys are those of `--json`."""
    dtypes = Counter(tensor.dtype for tensor in checkpoint.tensors.values())
    elements = 0
    for tensor in checkpoint.tensors.values():
        count = 1
        for size in tensor.shape:
            count *= size
        elements += count
    return {
        "file": str(checkpoint.path),
        "bytes": checkpoint.path.stat().st_size,
        "format": checkpoint.format,
        "tensors": len(checkpoint.tensors),
        "parameters": elements,
        "dtypes": dict(dtypes.most_common()),
        "ignored": list(checkpoint.extra),
    }


def _add_model_report(report: dict[str, Any], checkpoint: Checkpoint) -> MaskletError | None:
    """Add what the model in the file is, and what it can do; returns the reason if masklet cannot run it."""
    from masklet import load
    from masklet.families.keymaps import canonical

    unknown = dict.fromkeys(("model", "family", "version", "network", "image_size", "layout"))
    report.update({**unknown, "abilities": [], "problem": None})
    try:
        report["layout"] = canonical(checkpoint).layout
        model = load(checkpoint.path)
    except MaskletError as error:
        report["problem"] = str(error)
        return error
    trunk = model.config.trunk
    report.update(
        model=options.model_name(model),
        family=model.config.family,
        version=model.config.version,
        network={"width": trunk.embed_dim, "blocks": list(trunk.stages), "channels": model.config.d_model},
        image_size=model.image_size,
        abilities=list(ABILITIES),
    )
    return None


def _fields(report: dict[str, Any]) -> dict[str, str]:
    """The report for people; what isn't known is left out."""
    dtypes = ", ".join(f"{dtype} ({count} tensors)" for dtype, count in report["dtypes"].items())
    network = report["network"]
    if network is not None:
        blocks = " + ".join(map(str, network["blocks"]))
        network = f"trunk {network['width']} wide with {blocks} blocks, {network['channels']} channels"
    verified = {True: "all checksums match", False: "the file carries no checksums"}.get(
        report.get("verified")
    )
    fields = {
        "file": f"{report['file']} ({terminal.human_size(report['bytes'])}, {report['format']})",
        "model": report["model"],
        "family": report["family"] and f"{report['family']}, version {report['version']}",
        "network": network,
        "parameters": f"{report['parameters']:,} in {report['tensors']} tensors",
        "dtypes": dtypes,
        "layout": LAYOUTS.get(report["layout"]),
        "input": report["image_size"] and f"{report['image_size']} x {report['image_size']} pixels",
        "can do": "\n".join(report["abilities"]),
        "ignored": ", ".join(report["ignored"]),
        "verified": verified,
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

    entries = compiled.entries()
    freed = compiled.clear() if clear else None
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
