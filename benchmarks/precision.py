"""Precisions: the same model in f32, f16 and int8, interleaved; speed, peak memory and accuracy in one table.

In: options. Out: a Markdown page on stdout, and with --write `benchmarks/precision.md`. Each precision runs
in a process of its own that waits for its turn. Seconds are the process's CPU time, which on one thread says
more than the clock where a machine is shared. Timed are encoding a picture, a tracking step's memory
attention with a full memory, and a click. Weights are lively and seeded (`masklet.testing`) unless a model is
given: time doesn't depend on their values, accuracy does.

    python benchmarks/precision.py [--variants NAME ...] [--model FILE ...] [--repeats N] [--write]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src"), str(HERE.parent / "tests" / "parity")]

import turns  # noqa: E402
from flop import MEMORIES, POINTERS  # noqa: E402

from masklet import testing  # noqa: E402

PRECISIONS = ("f32", "f16", "int8")  # the first is what the others are compared with
VARIANTS = ("sam2.1_hiera_tiny", "sam2.1_hiera_base_plus")
STEPS = ("encode", "attend", "click")
PICTURE = (3, (720, 1280))  # seed, (H, W) pixels


class Subject:
    """A model in one precision, and its steps by name."""

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        import masklet

        self.model = masklet.load(path, precision=precision, threads=threads)
        self._predictor = masklet.ImagePredictor(self.model)
        self._scene = testing.synthetic_scene(*PICTURE)
        self._frame: Any = None

    def step(self, name: str) -> None:
        """One of `STEPS`."""
        steps: dict[str, Callable[[], object]] = {
            "encode": lambda: self._predictor.set_image(self._scene.image),
            "attend": lambda: self.attended(),
            "click": lambda: self.clicked(0),
        }
        steps[name]()

    def clicked(self, index: int) -> np.ndarray:
        """Masks of a click on one of the scene's shapes."""
        masks, *_ = self._predictor.predict(self._scene.points_xy[index][None], [1])
        return masks

    def attended(self) -> np.ndarray:
        """A frame's embedding with a full memory of noise."""
        from masklet.types import Remembered

        config, size = self.model.config, self.model.image_size
        rng = np.random.default_rng(0)
        if self._frame is None:
            image = rng.standard_normal((1, 3, size, size)).astype(np.float32)
            self._frame = self.model.encode_frame(image, (size, size))
        count = config.memory_places(size).count
        remembered = Remembered(
            rng.standard_normal((1, MEMORIES, count, config.memory_dim), np.float32),
            np.arange(MEMORIES)[None],
            rng.standard_normal((1, POINTERS, config.d_model), np.float32),
            np.linspace(0, 1, POINTERS, dtype=np.float32)[None],
        )
        return self.model.attend(self._frame, remembered).numpy()

    def answer(self) -> dict[str, np.ndarray]:
        """What is compared between precisions."""
        masks = np.stack([self.clicked(index) for index in range(len(self._scene.points_xy))])
        return {"masks": masks, "attended": self.attended()}


def work(options: argparse.Namespace) -> None:
    """Serve turns: a step, or "answer", which writes a file."""
    subject: Subject | None = None
    for line in sys.stdin:
        before = time.process_time()
        step = line.strip()
        if subject is None:
            subject = Subject(options.model[0], options.work, options.threads)
        if step == "answer":
            np.savez(options.folder / f"{options.work}.npz", **subject.answer())
        elif step in STEPS:
            subject.step(step)
        seconds = time.process_time() - before
        print(json.dumps({"seconds": seconds, "peak": turns.peak_memory()}), flush=True)


def measure(path: Path, options: argparse.Namespace, folder: Path) -> list[str]:
    """The table of one model."""
    programs: dict[str, turns.Program] = {}
    for name in options.precisions:
        command = [__file__, "--work", name, "--model", path, "--folder", folder]
        programs[name] = turns.Program(name, [*command, "--threads", options.threads], options.threads)
    seconds: dict[tuple[str, str], list[float]] = {}
    peaks: dict[str, float] = {}
    for name, program in programs.items():
        for step in ("load", "encode", "click"):
            peaks[name] = program.turn(step)["peak"]  # of a picture; tracking needs more
        program.turn("attend")
    for repeat in range(options.repeats):
        for name in turns.in_turn(list(programs), repeat):
            for step in STEPS:
                seconds.setdefault((name, step), []).append(programs[name].turn(step)["seconds"])
        print(f"round {repeat + 1} of {options.repeats}", file=sys.stderr)
    for program in programs.values():
        program.turn("answer")
        program.end()
    answers = {name: np.load(folder / f"{name}.npz") for name in programs}
    return _rows(seconds, peaks, answers)


def _rows(
    seconds: dict[tuple[str, str], list[float]], peaks: dict[str, float], answers: dict[str, Any]
) -> list[str]:
    base = next(iter(peaks))
    lines = [
        "| precision | "
        + " | ".join(f"{step}, CPU s | x faster" for step in STEPS)
        + " | peak memory, picture "
        "| mask IoU | error with memory |",
        "|" + "---|" * (2 * len(STEPS) + 4),
    ]
    for name, peak in peaks.items():
        cells = [name]
        for step in STEPS:
            median = statistics.median(seconds[name, step])
            cells += [f"{median:.3g}", f"{statistics.median(seconds[base, step]) / median:.2f}"]
        expected, got = answers[base], answers[name]
        iou = [
            (a & b).sum() / max(1, (a | b).sum())
            for a, b in zip(
                *(each["masks"].reshape(-1, *PICTURE[1]) for each in (expected, got)), strict=True
            )
        ]
        away = np.linalg.norm(got["attended"] - expected["attended"])
        error = away / np.linalg.norm(expected["attended"] - expected["attended"].mean())
        cells += [f"{peak / 2**20:.0f} MiB", f"{np.mean(iou):.4f}", f"{error:.4f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Measure and print; --write also replaces benchmarks/precision.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, help="both, without --model")
    parser.add_argument(
        "--model", nargs="+", type=Path, default=[], help="files of SAM 2, such as quantised ones"
    )
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--work", choices=PRECISIONS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    from image import cpu_name

    page = [
        "# Precisions",
        "",
        f"Measured by `benchmarks/precision.py` on {cpu_name()}, {options.threads} threads, ONNX Runtime "
        f"{version('onnxruntime')}: medians of {options.repeats} interleaved rounds. {MEMORIES} memories and "
        f"{POINTERS} pointers. IoU and error are against {options.precisions[0]}.",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for variant in options.variants or ([] if options.model else VARIANTS):
            path = Path(folder) / f"{variant}.safetensors"
            write = f"testing.write_stand_in({str(path)!r}, PRESETS[{variant!r}], object_score_bias=5.0)"
            lines = ("from masklet import testing", "from masklet.families.sam2 import PRESETS", write)
            turns.run_apart("\n".join(lines))
            page += ["", f"## {variant}", "", *measure(path, options, Path(folder))]
        for path in options.model:
            page += ["", f"## {path.name}", "", *measure(path, options, Path(folder))]
    text = "\n".join(page) + "\n"
    print(text)
    if options.write:
        (HERE / "precision.md").write_text(text)


if __name__ == "__main__":
    main()
