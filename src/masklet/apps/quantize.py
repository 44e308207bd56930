"""`masklet quantize`: a model file with its weights in fewer bits.

In: a checkpoint and a type, maybe a folder of pictures. Out: the new file; on stdout what became of the
tensors, or one JSON document.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal

if TYPE_CHECKING:
    from masklet.quant.convert import Report, StoredTensor
    from masklet.quant.smooth import Smoothing

WORST = 10
MOST_PICTURES = 64  # to calibrate on: largest values settle within a few pictures (benchmarks/LOG.md)


def parse_type(text: str) -> str:
    """A type that matrices can be stored in. Raises `typer.BadParameter`."""
    from masklet.quant.exact import TYPES

    if text not in TYPES:
        raise typer.BadParameter(f"got {text!r}; give one of {', '.join(TYPES)}.")
    return text


def quantize(
    model: options.ModelArgument,
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", show_default=False, help="The new file: .gguf, or .safetensors for f16 and bf16."
        ),
    ],
    dtype: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="TYPE",
            parser=parse_type,
            show_default=False,
            help="What matrices are stored as: f16, bf16, q8_0, q4_1 or q4_0.",
        ),
    ],
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="PATTERN",
            show_default=False,
            help="Tensors to leave as f16 (f32 with --type f16), such as 'memory_attention.*'. Repeatable.",
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="FOLDER",
            show_default=False,
            help=f"Make int8 lose less, by what pictures in FOLDER show; at most {MOST_PICTURES} are used.",
        ),
    ] = None,
    json: options.Json = False,
) -> None:
    """Write a model with its weights in fewer bits.

    The new file goes wherever a checkpoint goes. Some tensors are left exact,
    each for a reason; docs/quantisation.md tells which, and what it costs.
    """
    from masklet import load
    from masklet.io.video import pictures_in
    from masklet.quant import convert

    path = options.local_file(model)
    convert.check_target(path, out, dtype)
    pictures = _spread(pictures_in(str(calibrate))) if calibrate is not None else None
    with terminal.status(f"Checking {path.name}"):
        load(path)  # a file that does not run is refused here, with the reason
    smoothing = _calibrated(path, pictures) if pictures is not None else None
    with terminal.search_bar(f"Writing {out.name}") as progress:
        report = convert.quantize(path, out, dtype, keep=keep or (), smoothing=smoothing, on_tensor=progress)
    if json:
        terminal.write_json(_document(report, path, out, dtype, smoothing))
    else:
        _write_text(report, path, out, smoothing)


def _spread(files: list[str]) -> list[str]:
    """At most `MOST_PICTURES` of them, evenly spread."""
    count = min(len(files), MOST_PICTURES)
    return [files[index * len(files) // count] for index in range(count)]


def _calibrated(path: Path, pictures: list[str]) -> Smoothing:
    """What the model says to the pictures, on the CPU whatever its profile says."""
    from masklet import load
    from masklet.pipeline.calibrate import calibrate

    model = load(path, device="cpu", precision="f32", dialect="fused")
    with terminal.search_bar("Looking at pictures") as progress:
        return calibrate(model, pictures, on_picture=progress)


def _document(
    report: Report, source: Path, out: Path, dtype: str, smoothing: Smoothing | None
) -> dict[str, Any]:
    return {
        "file": str(out),
        "bytes": report.target_bytes,
        "source": str(source),
        "source_bytes": report.source_bytes,
        "type": dtype,
        "calibrated_on": smoothing and smoothing.pictures,
        "tensors": [
            {
                "name": tensor.key,
                "shape": list(tensor.shape),
                "type": tensor.dtype,
                "bytes": tensor.nbytes,
                "error": tensor.error,
                "largest_error": tensor.largest,
                "exact_because": tensor.reason or None,
            }
            for tensor in report.tensors
        ],
        "worst": [tensor.key for tensor in report.worst(WORST)],
        "left_out": list(report.left_out),
    }


def _write_text(report: Report, source: Path, out: Path, smoothing: Smoothing | None) -> None:
    size, before = (terminal.human_size(count) for count in (report.target_bytes, report.source_bytes))
    fields = {
        "file": f"{out} ({size})",
        "made of": f"{source} ({before})",
        "stored": "\n".join(_stored(report.tensors)),
        "calibrated": smoothing and _smoothed(smoothing),
        "left exact": "\n".join(_left_exact(report.tensors)),
        "left out": ", ".join(report.left_out),
    }
    terminal.write_fields({name: text for name, text in fields.items() if text})
    terminal.write(f"\nThe {WORST} tensors that changed most:\n\n")
    rows = [
        (tensor.key, tensor.dtype, f"{tensor.error:.2e}", f"{tensor.largest:.2e}")
        for tensor in report.worst(WORST)
    ]
    terminal.write_table(("tensor", "type", "relative error", "largest"), rows, right="  rr")


def _smoothed(smoothing: Smoothing) -> str:
    count = f"{smoothing.pictures} picture{'s' if smoothing.pictures > 1 else ''}"
    return f"on {count}; {len(smoothing.norms)} norms and what follows them are smoothed"


def _stored(tensors: tuple[StoredTensor, ...]) -> list[str]:
    """One line for each type."""
    return [
        f"{dtype}: {_told(group)}, relative error at most {max(tensor.error for tensor in group):.1e}"
        for dtype, group in _groups(tensors, lambda tensor: tensor.dtype)
    ]


def _left_exact(tensors: tuple[StoredTensor, ...]) -> list[str]:
    """One line for each reason; those that no block fits are listed."""
    from masklet.quant.exact import NO_BLOCK_FITS

    matrices = [tensor for tensor in tensors if tensor.reason and len(tensor.shape) > 1]
    lines = []
    for reason, group in _groups(matrices, lambda tensor: tensor.reason):
        types = " and ".join(sorted({tensor.dtype for tensor in group}))
        lines.append(f"{types}: {reason} ({_told(group)})")
        if reason == NO_BLOCK_FITS:
            alike = Counter(re.sub(r"\d+", "#", tensor.key) for tensor in group)
            lines += [f"     {name}" + (f" ({count})" if count > 1 else "") for name, count in alike.items()]
    return lines


def _groups(
    tensors: Sequence[StoredTensor], sign: Callable[[StoredTensor], str]
) -> list[tuple[str, list[StoredTensor]]]:
    """Tensors with one sign, the largest group first."""
    groups: dict[str, list[StoredTensor]] = defaultdict(list)
    for tensor in tensors:
        groups[sign(tensor)].append(tensor)
    return sorted(groups.items(), key=lambda item: -sum(tensor.nbytes for tensor in item[1]))


def _told(group: Sequence[StoredTensor]) -> str:
    count = f"{len(group)} tensor{'s' if len(group) > 1 else ''}"
    return f"{count}, {terminal.human_size(sum(tensor.nbytes for tensor in group))}"
