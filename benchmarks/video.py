"""Video: masklet and the reference, interleaved, on the same clip and threads: one tracking step with full
memory; speed, accuracy and memory in one table, and where the time goes.

In: options. Out: a Markdown page on stdout, and with --write `benchmarks/video.md`. Each program tracks each
number of objects in a process of its own that waits for its turn, so that peak memory is its own and no
thread pool disturbs another's. All track the same clip from one click per object; the frames before memory is
full are not timed, each round then times the next frame of every process. Weights are lively and seeded
(`masklet.testing`), with a bias that keeps every object in sight: time doesn't depend on their values. Needs
`scripts/bench`'s environment.

    scripts/bench video [--variants NAME ...] [--objects 1 2 4] [--rounds N] [--threads N] [--write]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src"), str(HERE.parent / "tests" / "parity")]

import flop  # noqa: E402
import image  # noqa: E402
import turns  # noqa: E402
from flop import MEMORIES, POINTERS  # noqa: E402
from image import cpu_name, gemm_rate, spread  # noqa: E402
from video_programs import (  # noqa: E402
    EDGETAM,
    EDGETAM_PACKAGES,
    EDGETAM_SIZE,
    PROGRAMS,
    Subject,
    profile,
    work,
)

from masklet import testing  # noqa: E402

CLIP = (3, (720, 1280))  # seed, (H, W) pixels
PRESENT = 5.0  # bias of the object score: every object stays in sight
# Parts of our step, in its order, and what the page calls them: stages, and functions of these modules.
STAGES = {
    "frame_input": "resize and normalise the frame",
    "encode_image": "encode the image",
    "begin_frame": "prepare the frame",
    "_remembered": "gather memories",
    "attend_memory": "attend to memory",
    "encode_points": "encode the empty prompt",
    "decode_masks": "decode masks",
    "point_to_object": "object pointer",
    "encode_memory": "encode memory",
    "video_logits": "enlarge the masks",
}


# --------------------------------------------------------------------------------------------- the comparison


@dataclass
class Tracking:
    """A program that tracks a number of objects in its own process, and what was measured of it."""

    program: str
    objects: int
    process: turns.Program
    answer: Path
    seconds: list[float] = field(default_factory=list)
    stages: list[dict[str, float]] = field(default_factory=list)
    peak: int = 0
    versions: dict[str, str] = field(default_factory=dict)

    def turn(self, name: str) -> None:
        reply = self.process.turn(name)
        self.peak, self.versions = reply["peak"], reply["versions"]
        if name == "step":
            self.seconds.append(reply["seconds"])
            self.stages.append(reply["stages"])

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def logits(self) -> np.ndarray:
        """(rounds, objects, H, W)"""
        return np.load(self.answer)


def compare(subject: Subject, options: argparse.Namespace) -> tuple[list[Tracking], float]:
    """All programs and numbers of objects, their timed steps interleaved; and FLOP/s of a matrix product,
    which takes its turns as well."""
    trackings = []
    for objects in options.objects:
        for program in PROGRAMS:
            answer = options.folder / f"video-answer-{program}-{objects}.npy"
            command = [__file__, "--work", program, "--folder", options.folder, "--objects", objects]
            command += ["--variants", subject.variant, "--rounds", options.rounds]
            command += ["--threads", options.threads, "--warm", options.warm]
            name = f"{program} with {objects} objects"
            process = turns.Program(name, command, options.threads, TQDM_DISABLE="1")
            trackings.append(Tracking(program, objects, process, answer))
    for tracking in trackings:
        started = time.perf_counter()
        tracking.turn("prepare")
        for _ in range(options.warm):
            tracking.turn("warm")
        name = f"{subject.variant}, {tracking.program}, {tracking.objects} objects"
        print(f"{name}: memory is full after {time.perf_counter() - started:.0f} s", file=sys.stderr)
    rates = []
    for number in range(options.rounds):
        rates.append(gemm_rate(options.threads))
        for tracking in turns.in_turn(trackings, number):
            tracking.turn("step")
        print(f"{subject.variant}: round {number + 1} of {options.rounds}", file=sys.stderr)
    for tracking in trackings:
        tracking.turn("answer")
        tracking.process.end()
    return trackings, statistics.median(rates)


def prepare(variant: str, options: argparse.Namespace) -> Subject:
    """The weights and the clip, made once."""
    seed, size_hw = CLIP
    count = options.warm + options.rounds
    clip = options.folder / f"clip-{seed}-{size_hw[1]}x{size_hw[0]}-{max(count, POINTERS + 1)}"
    made = testing.synthetic_clip(seed, 1, size_hw)
    points = tuple(tuple(map(float, made.point_xy(0, shape))) for shape in range(made.masks.shape[1]))
    if max(options.objects) > len(points):
        raise SystemExit(f"the clip has {len(points)} objects; --objects asks for {max(options.objects)}")
    checkpoint = options.folder / f"{variant}-present.pt"
    if not checkpoint.exists():
        turns.run_apart(_make_edgetam(checkpoint) if variant == EDGETAM else _make_sam2(variant, checkpoint))
    if not clip.exists():
        from PIL import Image

        partial = Path(tempfile.mkdtemp(dir=options.folder))
        for index, frame in enumerate(testing.synthetic_clip(seed, max(count, POINTERS + 1), size_hw).frames):
            Image.fromarray(frame).save(partial / f"{index:05d}.jpg", quality=95)
        partial.rename(clip)
    return Subject(variant, checkpoint, clip, points, options.threads)


def _make_sam2(variant: str, checkpoint: Path) -> str:
    """Code that writes a variant's lively weights."""
    return (
        "import reference; from pathlib import Path\n"
        f"model = reference.build({variant!r}, object_score_bias={PRESENT})\n"
        f"reference.save_pt(model, Path({str(checkpoint)!r}))"
    )


def _make_edgetam(checkpoint: Path) -> str:
    """Code that writes EdgeTAM's."""
    return (
        f"sys.path.insert(0, {str(EDGETAM_PACKAGES)!r})\n"
        "import run_edgetam, torch\n"
        f"run_edgetam.OBJECT_SCORE_BIAS = {PRESENT}\n"
        f"model = run_edgetam.build({EDGETAM_SIZE})\n"
        f"torch.save({{'model': model.state_dict()}}, {str(checkpoint)!r})"
    )


# --------------------------------------------------------------------------------------------------- the page


def table(trackings: list[Tracking]) -> str:
    """One row per program and number of objects; everything relative to the reference at the same number."""
    rows = [
        "| program | objects | step | x faster | spread | each further object | of the reference's "
        "| peak memory | of the reference's | logits cosine | mask IoU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = {(tracking.program, tracking.objects): tracking for tracking in trackings}
    fewest = min(tracking.objects for tracking in trackings)
    for (program, objects), tracking in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        base = found["pytorch", objects]
        cosine, iou = agreement(tracking.logits, base.logits)
        further = ["", ""]
        if objects > fewest:
            own, other = (
                marginal(tracking, found[tracking.program, fewest]) for tracking in (tracking, base)
            )
            further = [f"{own:.3g} s", f"{own / other:.2f}"]
        cells = [program, str(objects), f"{tracking.median:.3g} s", f"{base.median / tracking.median:.2f}"]
        cells += [f"{spread(tracking.seconds):.0%}", *further, f"{tracking.peak / 2**20:.0f} MiB"]
        cells += [f"{tracking.peak / base.peak:.2f}", f"{cosine:.7f}", f"{iou:.4f}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def marginal(more: Tracking, fewer: Tracking) -> float:
    """Seconds of each further object: the median over the rounds."""
    pairs = zip(more.seconds, fewer.seconds, strict=True)
    return statistics.median((a - b) / (more.objects - fewer.objects) for a, b in pairs)


def agreement(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """Cosine of the logits and IoU of the masks, the lowest of any object and frame."""
    cosines, ious = [], []
    for a, b in zip(ours.reshape(-1, *ours.shape[2:]), theirs.reshape(-1, *theirs.shape[2:]), strict=True):
        x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
        cosines.append(float(x @ y / np.sqrt((x @ x) * (y @ y))))
        either = np.count_nonzero((a > 0) | (b > 0))
        ious.append(np.count_nonzero((a > 0) & (b > 0)) / either if either else 1.0)
    return min(cosines), min(ious)


def stage_table(trackings: list[Tracking], counted: dict[str, float], rate: float) -> str:
    """Where masklet's step goes, for the fewest and for the most objects."""
    chosen = [tracking for tracking in trackings if tracking.program == "masklet"]
    chosen = sorted(chosen, key=lambda tracking: tracking.objects)
    chosen = [chosen[0], chosen[-1]] if len(chosen) > 1 else chosen
    names = [*STAGES, *sorted({name for t in chosen for stage in t.stages for name in stage} - STAGES.keys())]
    head = [f"{t.objects} objects | share" if t.objects > 1 else "1 object | share" for t in chosen]
    rows = [
        f"| stage | {' | '.join(head)} | GFLOP for one | of the peak |",
        "|---" * (3 + 2 * len(chosen)) + "|",
    ]
    for name in [*names, "rest"]:
        cells, seconds = [STAGES.get(name, name)], []
        for tracking in chosen:
            spent = [stage.get(name, 0.0) for stage in tracking.stages]
            if name == "rest":
                pairs = zip(tracking.seconds, tracking.stages, strict=True)
                spent = [whole - sum(stage.values()) for whole, stage in pairs]
            seconds.append(statistics.median(spent))
            cells += [f"{seconds[-1]:.3f} s", f"{seconds[-1] / tracking.median:.1%}"]
        if not any(seconds):
            continue
        count, single = counted.get(name, 0.0), chosen[0].objects == 1
        at_peak = f"{count / rate / seconds[0]:.0%}" if count > 1e9 and single and seconds[0] else ""
        cells += [f"{count / 1e9:.1f}" if count else "", at_peak]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def operator_table(counted: dict[str, Any]) -> str:
    """What stands between the step and its floor: each operator's time and how near the peak it runs."""
    spent, flops, rate = counted["spent"], counted["flop"], counted["rate"]
    whole = sum(spent.values())
    rows = ["| operator | share of kernel time | GFLOP | of the peak |", "|---|---|---|---|"]
    for kind, microseconds in sorted(spent.items(), key=lambda item: -item[1]):
        if microseconds / whole > 0.005:
            count = flops.get(kind, 0)
            products = (
                [f"{count / 1e9:.1f}", f"{count / rate / microseconds * 1e6:.0%}"] if count else ["", ""]
            )
            rows.append("| " + " | ".join([kind, f"{microseconds / whole:.1%}", *products]) + " |")
    return "\n".join(rows)


def section(variant: str, options: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """One variant's part of the page, and the versions of all programs."""
    subject = prepare(variant, options)
    trackings, rate = compare(subject, options)
    command = [sys.executable, __file__, "--work", "profile", "--folder", str(options.folder)]
    command += ["--variants", variant, "--rounds", str(options.rounds), "--warm", str(options.warm)]
    command += ["--threads", str(options.threads)]
    counted = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    one = {tracking.program: tracking for tracking in trackings if tracking.objects == min(options.objects)}
    objects = one["masklet"].objects
    shared = counted["stages"].get("encode_image", 0) + counted["stages"].get("begin_frame", 0)
    total = shared + objects * (sum(counted["stages"].values()) - shared)
    floor, step = total / rate, one["masklet"].median
    text = (
        f"{_attention_text(variant)}All products of masklet's step for {objects} "
        f"object{'s' if objects > 1 else ''} are {total / 1e9:.0f} GFLOP. ONNX Runtime's matrix product of "
        f"{' x '.join(map(str, image.GEMM))} reached "
        f"{rate / 1e9:.0f} GFLOP/s in the same rounds: at this peak the step would take {floor:.2f} s and be "
        f"{one['pytorch'].median / floor:.2f} times as fast as the reference. masklet takes "
        f"{step / floor:.2f} times this floor. Where a step goes:"
    )
    between = (
        "What stands between, for one object; operators without products are pure distance from the floor:"
    )
    parts = [f"## {variant}", table(trackings), text, stage_table(trackings, counted["stages"], rate)]
    parts += [between, operator_table(counted)]
    return parts, trackings[0].versions | trackings[1].versions


def _attention_text(variant: str) -> str:
    """What SAM 2's memory attention needs; nothing is said of EdgeTAM's, whose memories are few tokens."""
    from masklet.families.sam2 import PRESETS

    if variant == EDGETAM:
        return ""
    ours, theirs = (flop.memory_attention(PRESETS[variant], folded=folded) for folded in (True, False))
    return (
        f"Memory attention with {MEMORIES} memories and {POINTERS} pointers is {theirs / 1e9:.0f} GFLOP as "
        f"the reference computes it, and {ours / 1e9:.0f} with values and output projection folded. "
    )


def report(options: argparse.Namespace) -> str:
    """The whole page."""
    counts = {min(POINTERS, options.warm + number) for number in (0, options.rounds - 1)}
    pointers = " to ".join(map(str, sorted(counts)))
    parts = [
        "# Video",
        f"Measured by `scripts/bench video` on {platform.machine()}, {cpu_name()}, {options.threads} "
        f"threads, f32, {options.rounds} interleaved rounds: one step with full memory ({MEMORIES} memories, "
        f"{pointers} pointers) of a clip of {CLIP[1][1]} x {CLIP[1][0]}, reading and enlarging included. The "
        "machine is shared: read the ratios. Everything is relative to `pytorch`, Meta's predictor, with the "
        "same number of objects; cosine and IoU are the lowest of all objects and timed frames, after free "
        "tracking from one click. Spread is the interquartile range over the median.",
    ]
    versions: dict[str, str] = {}
    for variant in options.variants:
        more, found = section(variant, options)
        parts += more
        versions |= found
    listed = ", ".join(f"{name} {number}" for name, number in sorted(versions.items()))
    return "\n\n".join([*parts, f"Versions: {listed}."]) + "\n"


def main() -> None:
    """Measure and print; --write also replaces benchmarks/video.md."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--variants", nargs="+", default=["sam2.1_hiera_tiny", "sam2.1_hiera_base_plus"])
    parser.add_argument("--objects", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=9, help="frames before the timed ones, at least 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--folder", type=Path, default=HERE.parent / ".bench-cache", help="keeps weights and the clip"
    )
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--work", choices=[*PROGRAMS, "profile"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm < MEMORIES + 1:
        parser.error(f"--warm {options.warm}: memory is full after {MEMORIES} frames, and one step warms up")
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.work:
        subject = prepare(options.variants[0], options)
        if options.work == "profile":
            print(json.dumps(profile(subject, options.warm)))
        else:
            answer = options.folder / f"video-answer-{options.work}-{options.objects[0]}.npy"
            work(options.work, subject, options.objects[0], answer)
        return
    page = report(options)
    print(page)
    if options.write:
        (HERE / "video.md").write_text(page)


if __name__ == "__main__":
    main()
