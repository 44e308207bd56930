"""`masklet bench`: how fast and how large a model is on this machine.

In: a model and how often to repeat. Out, on stdout: medians with their spread, threads, versions, peak
memory. The picture is synthetic, always the same, and in memory, so that no decoder and no disk takes part.
Comparisons with other programs are in `benchmarks/`, not here.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from masklet.apps import options, terminal

if TYPE_CHECKING:
    from masklet import Model

PICTURE_HW = (720, 1280)  # pixels
CLICKS_PER_ENCODING = 5


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
    json: options.Json = False,
    device: options.Device = "cpu",
    threads: options.Threads = None,
    precision: options.Precision = "f32",
    image_size: options.ImageSize = None,
) -> None:
    """Time a model: encoding a picture, and a click on it.

    The picture is synthetic, 1280 x 720 pixels (width x height). Scaling it
    counts as encoding, scaling the mask back counts as the click.
    """
    path = options.local_file(model)
    before = time.perf_counter()
    loaded = options.load_model(
        str(path), device=device, threads=threads, precision=precision, image_size=image_size
    )
    load_seconds = time.perf_counter() - before
    terminal.note(f"Timing {repeats} encodings")  # not a moving sign, which would take part in the race
    timings = _measure(loaded, load_seconds, repeats)
    report = _report(loaded, timings)
    if json:
        terminal.write_json(report)
    else:
        _write_text(report, timings)


def _measure(model: Model, load_seconds: float, repeats: int) -> Timings:
    from masklet import ImagePredictor
    from masklet.testing import synthetic_scene

    scene = synthetic_scene(size_hw=PICTURE_HW)
    predictor = ImagePredictor(model)

    def encode() -> None:
        predictor.set_image(scene.image)

    def click(index: int) -> None:
        point = scene.points_xy[index % len(scene.points_xy)]
        predictor.predict(point_coords=point[None], point_labels=[1], multimask_output=False)

    first = _seconds(encode) + _seconds(lambda: click(0))  # also makes the sessions
    encodings, clicks = [], []
    for _ in range(repeats):
        encodings.append(_seconds(encode))
        clicks += [_seconds(lambda index=index: click(index)) for index in range(CLICKS_PER_ENCODING)]
    return Timings(Timing.of([load_seconds]), Timing.of([first]), Timing.of(encodings), Timing.of(clicks))


def _seconds(step: Callable[[], object]) -> float:
    before = time.perf_counter()
    step()
    return time.perf_counter() - before


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
