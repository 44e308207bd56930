"""Video: masklet and the reference, interleaved, on the same clip and threads: one tracking step with full
memory; speed, accuracy and memory in one table, and where the time goes.

In: options. Out: a Markdown page on stdout, and with --write `benchmarks/video.md`. Each program tracks each
number of objects in a process of its own that waits for its turn, so that peak memory is its own and no
thread pool disturbs another's. All track the same clip from one click per object; the frames before memory is
full are not timed, each round then times the next frame of every process. Weights are lively and seeded
(`masklet.testing`), with a bias that keeps every object in sight: time doesn't depend on their values. Needs
`scripts/bench`'s environment.

    scripts/bench video [--variants tiny base_plus] [--objects 1 2 4] [--rounds N] [--threads N] [--write]
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
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
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

from masklet import testing  # noqa: E402

PROGRAMS = ("masklet", "pytorch")
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
FUNCTIONS = {"frame_input": "video_state", "_remembered": "object_track", "video_logits": "video"}


@dataclass(frozen=True)
class Subject:
    """What every process is given."""

    variant: str
    checkpoint: Path
    clip: Path  # a folder of numbered JPEG files
    points: tuple[tuple[float, float], ...]  # one click (x, y) per object, pixels of the first frame
    threads: int


# -------------------------------------------------------------------------------------- one program's process


class Masklet:
    """masklet's predictor, and what its step is made of."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("masklet", "onnxruntime", "av")}

    def predictor(self) -> Any:
        import masklet
        from masklet.runtime.session import Session

        self._measure(Session, "run", lambda session: session.stage.name)
        for name, module in FUNCTIONS.items():
            self._measure(import_module(f"masklet.pipeline.{module}"), name, lambda *_, name=name: name)
        self.model = masklet.load(self.subject.checkpoint, threads=self.subject.threads)
        return masklet.VideoPredictor(self.model, fill_hole_area=0)

    def _measure(self, owner: Any, name: str, label: Any) -> None:
        """Add up the seconds of a function's calls under what `label` makes of its first argument."""
        original = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[label(*args[:1])] += time.perf_counter() - started
                self.calls[label(*args[:1])] += 1

        setattr(owner, name, measured)


class PyTorch:
    """Meta's SAM2VideoPredictor as its users run it on a CPU."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.seconds: Counter[str] = Counter()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("torch", "sam2")}

    def predictor(self) -> Any:
        import reference
        import torch

        reference.prepare_torchvision()
        from sam2.build_sam import build_sam2_video_predictor

        torch.set_num_threads(self.subject.threads)
        predictor = build_sam2_video_predictor(
            reference.VARIANTS[self.subject.variant].config, self.subject.checkpoint, device="cpu"
        )
        predictor.fill_hole_area = 0  # it fills holes on CUDA only, and warns elsewhere
        return predictor


def track(predictor: Any, subject: Subject, objects: int) -> Iterator[np.ndarray]:
    """Logits (objects, H, W) of each frame. Both programs have the same names."""
    state = predictor.init_state(str(subject.clip))
    for index, point_xy in enumerate(subject.points[:objects]):
        predictor.add_new_points_or_box(
            state,
            frame_idx=0,
            obj_id=index,
            points=np.array([point_xy], np.float32),
            labels=np.array([1], np.int32),
        )
    for _frame, _ids, logits in predictor.propagate_in_video(state):
        yield np.asarray(logits)[:, 0]


def work(name: str, subject: Subject, objects: int, answer: Path) -> None:
    """Serve turns on stdin, one JSON line each on stdout: the step's seconds, whole and by stage, and peak
    memory so far. "answer" writes the logits of the timed frames to a file."""
    program = {"masklet": Masklet, "pytorch": PyTorch}[name](subject)
    results: Any = None
    kept: list[np.ndarray] = []
    for line in sys.stdin:
        turn, logits = line.strip(), None
        program.seconds.clear()
        started = time.perf_counter()
        if turn == "prepare":
            results = track(program.predictor(), subject, objects)
        elif turn in ("warm", "step"):
            logits = next(results)
        seconds = time.perf_counter() - started
        if turn == "step":
            kept.append(np.array(logits, np.float32))
        elif turn == "answer":
            np.save(answer, np.stack(kept))
        reply = {"seconds": seconds, "stages": program.seconds}
        reply |= {"peak": turns.peak_memory(), "versions": program.versions()}
        print(json.dumps(reply), flush=True)


def profile(subject: Subject, frames: int) -> dict[str, Any]:
    """One step with full memory and one object: FLOP of each of masklet's stages, and for each operator its
    kernels' microseconds and FLOP. "rate": what the machine's matrix product reaches at that time."""
    from masklet.runtime import session as sessions

    plain = sessions.session_options
    program, results = Masklet(subject), None
    with tempfile.TemporaryDirectory() as folder:

        def profiled(count: int | None) -> Any:
            options = plain(count)
            options.enable_profiling = True
            options.profile_file_prefix = tempfile.mkdtemp(dir=folder) + "/profile"
            return options

        sessions.session_options = profiled
        results = track(program.predictor(), subject, 1)
        for _ in range(frames):
            next(results)
        program.calls.clear()
        next(results)
        stages, spent, flops = Counter(), Counter(), Counter()
        for name, session in program.model._sessions.items():
            for kernel in flop.kernels(Path(session._session.end_profiling()), program.calls[name]):
                stages[name] += kernel.flop
                spent[kernel.operator] += kernel.microseconds
                flops[kernel.operator] += kernel.flop
    return {"stages": stages, "spent": spent, "flop": flops, "rate": gemm_rate(subject.threads)}


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
        turns.run_apart(
            "import reference; from pathlib import Path\n"
            f"model = reference.build({variant!r}, object_score_bias={PRESENT})\n"
            f"reference.save_pt(model, Path({str(checkpoint)!r}))"
        )
    if not clip.exists():
        from PIL import Image

        partial = Path(tempfile.mkdtemp(dir=options.folder))
        for index, frame in enumerate(testing.synthetic_clip(seed, max(count, POINTERS + 1), size_hw).frames):
            Image.fromarray(frame).save(partial / f"{index:05d}.jpg", quality=95)
        partial.rename(clip)
    return Subject(variant, checkpoint, clip, points, options.threads)


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
    from masklet.families.sam2 import PRESETS

    subject = prepare(variant, options)
    trackings, rate = compare(subject, options)
    command = [sys.executable, __file__, "--work", "profile", "--folder", str(options.folder)]
    command += ["--variants", variant, "--rounds", str(options.rounds), "--warm", str(options.warm)]
    command += ["--threads", str(options.threads)]
    counted = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    config = PRESETS[variant]
    ours, theirs = flop.memory_attention(config, folded=True), flop.memory_attention(config, folded=False)
    one = {tracking.program: tracking for tracking in trackings if tracking.objects == min(options.objects)}
    objects = one["masklet"].objects
    shared = counted["stages"].get("encode_image", 0) + counted["stages"].get("begin_frame", 0)
    total = shared + objects * (sum(counted["stages"].values()) - shared)
    floor, step = total / rate, one["masklet"].median
    text = (
        f"Memory attention with {MEMORIES} memories and {POINTERS} pointers is {theirs / 1e9:.0f} GFLOP as "
        f"the reference computes it, and {ours / 1e9:.0f} with values and output projection folded. All "
        f"products of masklet's step for {objects} object{'s' if objects > 1 else ''} are {total / 1e9:.0f} "
        f"GFLOP. ONNX Runtime's matrix product of {' x '.join(map(str, image.GEMM))} reached "
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
