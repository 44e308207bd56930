"""Images: masklet and its rivals, interleaved, on the same picture and threads; speed, accuracy and memory in
one table.

In: options. Out: a Markdown table on stdout, and with --write `benchmarks/image.md`. Each program runs in a
process of its own that waits for its turn, so that peak memory is its own and no thread pool disturbs
another's; the turns rotate. Weights are lively and seeded (`masklet.testing`): time doesn't depend on their
values. Needs `scripts/bench`'s environment.

    scripts/bench [--variants tiny base_plus] [--repeats N] [--threads N] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src"), str(HERE.parent / "tests" / "parity")]

import rivals  # noqa: E402
import turns  # noqa: E402

from masklet import testing  # noqa: E402

VARIANTS = ["sam2.1_hiera_tiny", "sam2.1_hiera_base_plus", "sam_vit_b"]
PROGRAMS = ("masklet", "pytorch", "onnxruntime", "openvino")
PICTURE = (3, (720, 1280))  # seed, (H, W) pixels
CLICKS_PER_ENCODING = 5
GEMM = (4096, 768, 768)  # rows, inner, columns: like the trunk's products


class Masklet:
    """masklet behind the rivals' protocol."""

    name = "masklet"

    def __init__(self, subject: rivals.Subject) -> None:
        self.subject = subject

    def versions(self) -> dict[str, str]:
        return {"masklet": version("masklet"), "onnxruntime": version("onnxruntime")}

    def prepare(self) -> None:
        import masklet

        self._predictor = masklet.ImagePredictor(
            masklet.load(self.subject.checkpoint, threads=self.subject.threads)
        )

    def encode(self, image: np.ndarray) -> None:
        self._predictor.set_image(image)

    def click(self, point_xy: tuple[float, float]) -> rivals.Click:
        return rivals.Click(*self._predictor.predict([point_xy], [1]))


# -------------------------------------------------------------------------------------- one program's process


def work(name: str, subject: rivals.Subject, answer: Path) -> None:
    """Serve turns on stdin, one JSON line each on stdout: seconds of the step, peak memory so far."""
    program = Masklet(subject) if name == "masklet" else rivals.rivals(subject, (name,))[0]
    scene = testing.synthetic_scene(*PICTURE)
    point = (float(scene.points_xy[0, 0]), float(scene.points_xy[0, 1]))
    steps = {
        "prepare": program.prepare,
        "encode": lambda: program.encode(scene.image),
        "click": lambda: program.click(point),
    }
    for line in sys.stdin:
        step = line.strip()
        if step == "answer":
            click = program.click(point)
            np.savez(answer, masks=np.asarray(click.masks) > 0, ious=click.ious, low_res=click.low_res_masks)
        started = time.perf_counter()
        if step in steps:
            steps[step]()
        seconds = time.perf_counter() - started
        reply = {"seconds": seconds, "peak": turns.peak_memory(), "versions": program.versions()}
        print(json.dumps(reply), flush=True)


@dataclass
class Worker:
    """A program in its own process, and what was measured of it."""

    name: str
    process: turns.Program
    answer: Path
    seconds: dict[str, list[float]] = field(default_factory=dict)
    peak: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def turn(self, step: str, keep: bool = True) -> None:
        reply = self.process.turn(step)
        self.peak, self.versions = reply["peak"], reply["versions"]
        if keep:
            self.seconds.setdefault(step, []).append(reply["seconds"])

    def median(self, step: str) -> float:
        return statistics.median(self.seconds[step])


# --------------------------------------------------------------------------------------------- the comparison


def compare(variant: str, options: argparse.Namespace, folder: Path) -> list[Worker]:
    """All programs on one variant, their turns interleaved; the first is masklet, the second the
    reference.
    """
    checkpoint = folder / f"{variant}.pt"
    if not checkpoint.exists():
        turns.run_apart(
            "import rivals; from pathlib import Path\n"
            f"reference = rivals.reference_of({variant!r})\n"
            f"reference.save_pt(reference.build({variant!r}), Path({str(checkpoint)!r}))"
        )

    workers = []
    of_sam = rivals.reference_of(variant).PACKAGE == "segment-anything"  # which has no other rivals here
    for name in options.programs[:2] if of_sam else options.programs:
        command = [__file__, "--work", name, "--checkpoint", checkpoint, "--folder", folder]
        command += ["--variants", variant, "--threads", options.threads]
        process = turns.Program(name, command, options.threads)
        workers.append(Worker(name, process, folder / f"answer-{name}.npz"))
    for worker in workers:
        worker.turn("prepare")
        worker.turn("encode", keep=False)  # warms up
        worker.turn("click", keep=False)
    for repeat in range(options.repeats):
        for worker in turns.in_turn(workers, repeat):
            worker.turn("encode")
            for _ in range(CLICKS_PER_ENCODING):
                worker.turn("click")
        print(f"{variant}: round {repeat + 1} of {options.repeats}", file=sys.stderr)
    for worker in workers:
        worker.turn("answer", keep=False)
        worker.process.end()
    return workers


def table(workers: list[Worker], baseline: str) -> str:
    """Ratios to the baseline's medians; spread is the interquartile range over the median."""
    base = next(worker for worker in workers if worker.name == baseline)
    truth = np.load(base.answer)
    rows = [
        "| program | encoding | x faster | spread | click | x faster | spread | peak memory "
        "| of the reference's | logits cosine | mask IoU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for worker in workers:
        got = np.load(worker.answer)
        a, b = got["low_res"].astype(np.float64).ravel(), truth["low_res"].astype(np.float64).ravel()
        cosine = a @ b / np.sqrt((a @ a) * (b @ b))
        iou = (got["masks"] & truth["masks"]).sum() / (got["masks"] | truth["masks"]).sum()
        cells = [worker.name]
        for step, unit, scale in (("encode", "s", 1), ("click", "ms", 1000)):
            cells += [
                f"{worker.median(step) * scale:.3g} {unit}",
                f"{base.median(step) / worker.median(step):.2f}",
                f"{spread(worker.seconds[step]):.0%}",
            ]
        cells += [
            f"{worker.peak / 2**20:.0f} MiB",
            f"{worker.peak / base.peak:.2f}",
            f"{cosine:.7f}",
            f"{iou:.4f}",
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def spread(seconds: list[float]) -> float:
    """Interquartile range relative to the median."""
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (0.0, 0.0, 0.0)
    return (high - low) / statistics.median(seconds)


# ---------------------------------------------------------------------------------------- where the time goes


def gemm_rate(threads: int, repeats: int = 9) -> float:
    """FLOP/s that ONNX Runtime's matrix product reaches on this machine."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, inner, columns = GEMM
    weight = np.random.default_rng(0).standard_normal((inner, columns)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, inner])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [rows, columns])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = np.ones((rows, inner), np.float32)
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - started)
    return 2 * rows * inner * columns / statistics.median(times[1:])


def profile(variant: str, threads: int) -> tuple[float, str]:
    """FLOP of masklet's encoder, and a table of what its kernels spend, by operator."""
    from masklet.families.table import FAMILIES
    from masklet.runtime import session as sessions
    from masklet.runtime.cache import load_stage
    from masklet.runtime.devices import find_device, session_options

    config = next(family.presets[variant] for family in FAMILIES.values() if variant in family.presets)
    stage = load_stage(config, "encode_image", config.image_size, "fused")
    taken = load_stage(config, "decode_masks", config.image_size, "fused").inputs
    weights = testing.lively_weights(stage.tensors)
    with tempfile.TemporaryDirectory() as folder:

        def profiled(count: int | None) -> Any:
            options = session_options(count)
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            return options

        sessions.session_options = profiled
        session = sessions.Session(stage, weights.__getitem__, find_device("cpu"), threads)
        image = np.zeros((1, 3, config.image_size, config.image_size), np.float32)
        for _ in range(3):
            session.run({"image": image}, [name for name in stage.outputs if name in taken])
        events = json.loads(Path(session._session.end_profiling()).read_text())
    flop, spent = 0.0, {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind, shapes = event["args"]["op_name"], event["args"]["input_type_shape"]
            spent[kind] = spent.get(kind, 0) + event["dur"] / 3
            flop += _flop(kind, [next(iter(shape.values())) for shape in shapes], event) / 3
    whole = sum(spent.values())
    rows = [
        f"| {kind} | {dur / whole:.1%} |"
        for kind, dur in sorted(spent.items(), key=lambda i: -i[1])
        if dur / whole > 0.005
    ]
    return flop, "\n".join(["| operator | share of kernel time |", "|---|---|", *rows])


def _flop(kind: str, shapes: list[list[int]], event: dict) -> float:
    """Multiplications and additions of the products; everything else is taken as free."""
    if kind in ("FusedMatMul", "MatMul"):
        out = next(iter(event["args"]["output_type_shape"][0].values()))
        return 2.0 * float(np.prod(out)) * shapes[0][-1]
    if kind == "MultiHeadAttention":
        (batch, queries, channels), keys = shapes[0], shapes[1][1]
        return 4.0 * batch * queries * keys * channels
    if kind == "Conv":
        out = next(iter(event["args"]["output_type_shape"][0].values()))
        return 2.0 * float(np.prod(out)) * float(np.prod(shapes[1][1:]))
    return 0.0


def starts(checkpoint: Path, threads: int, folder: Path, repeats: int = 5) -> tuple[float, float]:
    """Seconds of `import masklet` beyond Python's own start, and of `masklet segment` from start to
    finish.
    """
    from PIL import Image

    picture = folder / "picture.png"
    Image.fromarray(testing.synthetic_scene(*PICTURE).image).save(picture)
    segment = [sys.executable, "-m", "masklet", "segment", str(picture), "--model", str(checkpoint)]
    segment += ["--point", "320,180", "--threads", str(threads), "-o", str(folder / "mask.png")]
    commands = {
        "bare": [sys.executable, "-c", "pass"],
        "import": [sys.executable, "-c", "import masklet"],
        "segment": segment,
    }
    environment = os.environ | {"PYTHONPATH": str(HERE.parent / "src")}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=environment)
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values) for name, values in times.items()}
    return medians["import"] - medians["bare"], medians["segment"]


def report(options: argparse.Namespace, folder: Path) -> str:
    """The whole page."""
    rate = gemm_rate(options.threads)
    parts = [
        "# Images",
        f"Measured by `scripts/bench` on {platform.machine()}, {cpu_name()}, {options.threads} threads, a "
        f"picture of 1280 x 720, f32, {options.repeats} interleaved rounds. The machine is shared: read the "
        f"ratios. Speed and memory are relative to `{options.programs[1]}`; cosine and IoU compare one "
        "click's three masks with its answer. Spread is the interquartile range over the median. ONNX "
        f"Runtime's matrix product of {' x '.join(map(str, GEMM))} reaches {rate / 1e9:.0f} GFLOP/s here.",
    ]
    versions: dict[str, str] = {}
    for variant in options.variants:
        workers = compare(variant, options, folder)
        for worker in workers:
            versions |= worker.versions
        flop, shares = profile(variant, options.threads)
        encoding = workers[0].median("encode")
        parts += [
            f"## {variant}",
            table(workers, options.programs[1]),
            f"The encoder's products are {flop / 1e9:.0f} GFLOP, {flop / rate:.2f} s at the measured peak: "
            f"masklet's encoding, preprocessing included, runs at {flop / rate / encoding:.0%} of it. Where "
            "its kernels spend their time:",
            shares,
        ]
    importing, segment = starts(folder / f"{options.variants[0]}.pt", options.threads, folder)
    parts += [
        "## Starting",
        f"`import masklet` takes {importing * 1000:.0f} ms. `masklet segment` with {options.variants[0]}, "
        f"caches warm, takes {segment:.2f} s from the command's start to the written mask.",
        "Versions: " + ", ".join(f"{name} {number}" for name, number in sorted(versions.items())) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def cpu_name() -> str:
    """The processor as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def main() -> None:
    """Measure and print; --write also replaces benchmarks/image.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--variants", nargs="+", default=VARIANTS)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / ".bench-cache", help="keeps weights and exports"
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--work", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.work:
        subject = rivals.Subject(options.checkpoint, options.variants[0], options.folder, options.threads)
        work(options.work, subject, options.folder / f"answer-{options.work}.npz")
        return
    page = report(options, options.folder)
    print(page)
    if options.write:
        (HERE / "image.md").write_text(page)


if __name__ == "__main__":
    main()
