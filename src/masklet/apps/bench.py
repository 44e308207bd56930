"""`masklet bench`: how fast and how large a model is on this machine.

In: a model and how often to repeat. Out, on stdout: medians with their spread, threads, versions, peak
memory; or, with --tune, a profile. Comparisons with other programs are in `benchmarks/`, not here.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal
from masklet.apps.timing import CLICKS_PER_ENCODING, PICTURE_HW, steps_of
from masklet.apps.tune import tune_model

if TYPE_CHECKING:
    from masklet import Model


@dataclass(frozen=True)
class Timing:
    """Seconds of several runs of one step."""

    median: float
    min: float
    max: float
    runs: int

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Timing:
        """The summary of at least one run."""
        import statistics

        return cls(statistics.median(seconds), min(seconds), max(seconds), len(seconds))

    def __str__(self) -> str:
        scale, unit = (1, "s") if self.median >= 1 else (1000, "ms")
        median, low, high = (f"{value * scale:.3g}" for value in (self.median, self.min, self.max))
        return f"{median} {unit}" + (f"  ({low} to {high} in {self.runs} runs)" if self.runs > 1 else "")


@dataclass(frozen=True)
class Timings:
    """`first` is the first picture's way to a mask after `load`; `encode` and `click` are steady state."""

    load: Timing
    first: Timing
    encode: Timing
    click: Timing


def bench(
    model: options.ModelArgument,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", min=1, help="Encodings to time; five clicks after each.")
    ] = 5,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Try precisions and numbers of threads, and write the fastest as a profile: to --profile "
            "FILE, else to masklet.toml beside the model. What is given as an option is kept.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="With --tune: replace an earlier profile.")
    ] = False,
    json: options.Json = False,
    device: options.Device = None,
    threads: options.Threads = None,
    precision: options.Precision = None,
    image_size: options.ImageSize = None,
    profile: options.Profile = None,
) -> None:
    """Time a model: encoding a picture, and a click on it.

    The picture is synthetic, 1280 x 720 pixels (width x height). Scaling it
    counts as encoding, scaling the mask back counts as the click.
    """
    if overwrite and not tune:
        raise typer.BadParameter("--overwrite is for the profile that --tune writes; give both.")
    path = options.local_file(model)
    given = options.Computation(str(path), device, threads, precision, image_size, profile)
    if tune:
        tune_model(given, repeats, overwrite=overwrite, json=json)
        return
    before = time.perf_counter()
    loaded = options.load_model(given)
    load_seconds = time.perf_counter() - before
    terminal.note(f"Timing {repeats} encodings")  # not a moving sign, which would take part in the race
    timings = _measure(loaded, load_seconds, repeats)
    report = _report(loaded, timings)
    if json:
        terminal.write_json(report)
    else:
        _write_text(report, timings)


def _measure(model: Model, load_seconds: float, repeats: int) -> Timings:
    steps = steps_of(model)
    first = steps.encode() + steps.click(0)  # also makes the sessions
    encodings, clicks = [], []
    for _ in range(repeats):
        encodings.append(steps.encode())
        clicks += [steps.click(index) for index in range(CLICKS_PER_ENCODING)]
    return Timings(Timing.of([load_seconds]), Timing.of([first]), Timing.of(encodings), Timing.of(clicks))


def _report(model: Model, timings: Timings) -> dict[str, Any]:
    import numpy
    import onnxruntime

    from masklet import __version__
    from masklet.runtime.devices import usable_cores

    return {
        "model": options.model_name(model),
        "file": model.source,
        "image_size": model.image_size,
        "picture_size": list(PICTURE_HW),
        "device": model.device.name,
        "threads": model.threads or usable_cores(),
        "precision": model.precision,
        "seconds": asdict(timings),
        "peak_memory_bytes": peak_memory(),
        "versions": {
            "masklet": __version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
        },
        "machine": f"{platform.system()} {platform.machine()}, {usable_cores()} usable cores",
    }


def _write_text(report: dict[str, Any], timings: Timings) -> None:
    memory = report["peak_memory_bytes"]
    height, width = report["picture_size"]
    side = report["image_size"]
    terminal.write_fields(
        {
            "model": f"{report['model']}, input {side} x {side}, {report['precision']}",
            "device": f"{report['device']}, {report['threads']} threads",
            "load": str(timings.load),
            "first mask": f"{timings.first}, after loading",
            "encode": f"{timings.encode}, {width} x {height} picture",
            "click": str(timings.click),
            "peak memory": "unknown on this system" if memory is None else terminal.human_size(memory),
            "versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
            "machine": report["machine"],
        }
    )


def peak_memory() -> int | None:
    """The most memory that this process has held so far, resident, in bytes; None if the system is silent."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
