"""Automatic masks: masklet and the reference's generator, interleaved, on the same picture, points and
threads; time, memory and agreement in one table.

In: options. Out: a Markdown page on stdout, and with --write `benchmarks/automatic.md`. Each program runs in
a process of its own that waits for its turn, so that peak memory is its own. Weights are lively and seeded,
with sharper queries so that masks depend on their points; `pred_iou_thresh` is set so that about half of the
points are worth drawing, as with trained weights on photographs. Needs `scripts/bench`'s environment.

    scripts/bench automatic [--points N] [--repeats N] [--threads N] [--write]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src"), str(HERE.parent / "tests" / "parity")]

import turns  # noqa: E402

from masklet import testing  # noqa: E402

PROGRAMS = ("masklet", "masklet adaptive", "pytorch")
VARIANT, SEED = "sam2.1_hiera_tiny", 6
PICTURE = (3, (720, 1280))  # seed, (H, W) pixels
QUERY_GAIN = 8.0
MATCH_IOU = 0.95
SETTINGS = {
    "pred_iou_thresh": 0.608,  # the median of the points' best scores
    "stability_score_thresh": 0.5,
    "stability_score_offset": 0.3,
    "mask_threshold": 14.0,
    "box_nms_thresh": 0.97,
    "output_mode": "uncompressed_rle",
}


# -------------------------------------------------------------------------------------- one program's process


class Masklet:
    """masklet's generator; counts the points whose masks are drawn."""

    def __init__(self, checkpoint: Path, threads: int, settings: dict[str, Any]) -> None:
        import masklet
        from masklet.pipeline.point_decoder import PicturePoints

        self.rated = self.drawn = 0
        rate, draw = PicturePoints.rate, PicturePoints.draw

        def counted_rate(points: Any, prompts: Any) -> Any:
            self.rated += len(prompts.coords)
            return rate(points, prompts)

        def counted_draw(points: Any, rated: Any, kept: np.ndarray) -> np.ndarray:
            self.drawn += len(kept)
            return draw(points, rated, kept)

        PicturePoints.rate, PicturePoints.draw = counted_rate, counted_draw  # type: ignore[method-assign]
        self._generator = masklet.AutomaticMaskGenerator(
            masklet.load(checkpoint, threads=threads), **settings
        )

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        self.rated = self.drawn = 0
        return self._generator.generate(image)

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("masklet", "onnxruntime", "numpy")}


class PyTorch:
    """The reference's generator as its users run it on a CPU. Its boxes' suppression is the one of
    `reference_automatic`, which takes no time beside the rest."""

    rated = drawn = 0

    def __init__(self, checkpoint: Path, threads: int, settings: dict[str, Any]) -> None:
        import reference
        import reference_automatic
        import torch

        torch.set_num_threads(threads)
        self._generator = reference_automatic.generator(reference.load(VARIANT, checkpoint), **settings)

    def generate(self, image: np.ndarray) -> list[dict[str, Any]]:
        return self._generator.generate(image)

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("torch", "sam2")}


def work(options: argparse.Namespace) -> None:
    """Serve turns on stdin, one JSON line each on stdout."""
    settings = SETTINGS | {"points_per_side": options.points}
    if options.work == "masklet adaptive":
        settings["adaptive"] = True
    kind = PyTorch if options.work == "pytorch" else Masklet
    program = kind(options.checkpoint, options.threads, settings)
    image = testing.synthetic_scene(*PICTURE).image
    for line in sys.stdin:
        if line.strip() == "loaded":
            print(json.dumps({}), flush=True)
            continue
        started = time.perf_counter()
        records = program.generate(image)
        seconds = time.perf_counter() - started
        reply = {
            "seconds": seconds,
            "peak": turns.peak_memory(),
            "rated": program.rated,
            "drawn": program.drawn,
            "masks": [record["segmentation"] for record in records],
            "versions": program.versions(),
        }
        print(json.dumps(reply), flush=True)


@dataclass
class Worker:
    """A program in its own process, and what was measured of it."""

    name: str
    process: turns.Program
    seconds: list[float] = field(default_factory=list)
    reply: dict[str, Any] = field(default_factory=dict)

    def turn(self) -> None:
        self.reply = self.process.turn("generate")
        self.seconds.append(self.reply["seconds"])
        print(f"{self.name}: {self.seconds[-1]:.1f} s", file=sys.stderr)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest minus smallest, relative to the median: there are too few rounds for quartiles."""
        return (max(self.seconds) - min(self.seconds)) / self.median


# --------------------------------------------------------------------------------------------- the comparison


def write_checkpoint(path: Path) -> None:
    """Lively weights with sharper queries, as Meta publishes theirs; by a process of its own."""
    turns.run_apart(f"""
import torch, reference; from pathlib import Path
model = reference.build({VARIANT!r}, {SEED}, object_score_bias=2.0)
with torch.no_grad():
    for name, tensor in model.sam_mask_decoder.transformer.named_parameters():
        if name.endswith("q_proj.weight") and "self_attn" not in name:
            tensor *= {QUERY_GAIN}
reference.save_pt(model, Path({str(path)!r}))
""")


def compare(options: argparse.Namespace) -> list[Worker]:
    """All programs, their turns interleaved."""
    checkpoint = options.folder / f"automatic-{VARIANT}.pt"
    if not checkpoint.exists():
        write_checkpoint(checkpoint)
    workers = []
    for name in options.programs:
        command = [__file__, "--work", name, "--checkpoint", checkpoint]
        command += ["--points", options.points, "--threads", options.threads]
        workers.append(Worker(name, turns.Program(name, command, options.threads)))
        workers[-1].process.turn("loaded")  # one after the other
    for repeat in range(options.repeats):
        for worker in turns.in_turn(workers, repeat):
            worker.turn()
    for worker in workers:
        worker.process.end()
    return workers


def matched(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> int:
    """How many of theirs have one of ours with an IoU of at least MATCH_IOU."""
    from masklet.rle import decode_rle

    if not ours or not theirs:
        return 0
    a, b = (np.stack([decode_rle(rle).ravel() for rle in rles]).astype(np.float32) for rles in (ours, theirs))
    both = a @ b.T
    return int(((both / (a.sum(1)[:, None] + b.sum(1) - both)).max(axis=0) >= MATCH_IOU).sum())


def table(workers: list[Worker]) -> str:
    """Ratios to the last program, the reference."""
    base = workers[-1]
    rows = [
        "| program | whole run | x faster | spread | points decoded | drawn | masks "
        "| of the reference's masks found | peak memory | of the reference's |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for worker in workers:
        reply, theirs = worker.reply, base.reply["masks"]
        cells = (
            worker.name,
            f"{worker.median:.1f} s",
            f"{base.median / worker.median:.1f}",
            f"{worker.spread:.0%}",
            str(reply["rated"] or "all"),
            str(reply["drawn"] or "all"),
            str(len(reply["masks"])),
            f"{matched(reply['masks'], theirs)} of {len(theirs)}",
            f"{reply['peak'] / 2**20:.0f} MiB",
            f"{reply['peak'] / base.reply['peak']:.2f}",
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def report(options: argparse.Namespace) -> str:
    """The whole page."""
    workers = compare(options)
    versions: dict[str, str] = {}
    for worker in workers:
        versions |= worker.reply["versions"]
    listed = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    text = (
        f"Measured by `scripts/bench automatic` on {platform.machine()}, {options.threads} threads: "
        f"{VARIANT}, a picture of 1280 x 720, {options.points} x {options.points} points, f32, "
        f"{options.repeats} interleaved rounds, the first included. The machine is shared: read the ratios. "
        "Spread is largest minus smallest over the median; a mask is found when one of ours has an IoU of "
        f"at least {MATCH_IOU} with it. Weights are random, and thresholds such that about half of the "
        "points are worth drawing; random weights say little about what an adaptive search misses."
    )
    parts = ["# Automatic masks", text, table(workers), f"Versions: {listed}."]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Measure and print; --write also replaces benchmarks/automatic.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--points", type=int, default=32, help="a side of the grid")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=HERE.parent / ".bench-cache", help="keeps weights")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--work", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--checkpoint", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    page = report(options)
    print(page)
    if options.write:
        (HERE / "automatic.md").write_text(page)


if __name__ == "__main__":
    main()
