"""Memory over a long clip: resident bytes while masklet tracks, frame by frame, at several sizes and numbers
of objects.

In: options. Out: a Markdown page on stdout; with --write also `benchmarks/video_memory.md` and the plot
`docs/video_memory.svg`. Exit code 1 when a peak grows by more than 5% between frame 50 and the last frame.
Each case runs in a process of its own, on a synthetic clip: `Tracker` is given arrays, `VideoPredictor` opens
an mp4. The model is small, so that a thousand frames take minutes; its state is small as well, and the memory
that `VideoPredictor` may use for state is cut in the same proportion. Needs Linux (it reads /proc) and
`scripts/bench`'s environment.

    scripts/bench video_memory [--frames N] [--programs ...] [--heights ...] [--objects ...] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "src")]

from masklet import testing  # noqa: E402

PROGRAMS = ("Tracker", "VideoPredictor")
WIDTHS = {480: 854, 1080: 1920}  # of pictures of these heights, pixels
PAN = 64  # pixels that the picture moves to each side
PRESENT = 5.0  # bias of the object score: every object stays in sight
SETTLED = 50  # frames after which memory may grow no more
ALLOWED = 0.05
EVERY = 10  # frames between samples


@dataclass(frozen=True)
class Case:
    """One process: what it tracks, and with what."""

    program: str
    height: int
    objects: int

    @property
    def size_hw(self) -> tuple[int, int]:
        return self.height, WIDTHS[self.height]

    def scene(self, folder: Path) -> Path:
        """The array that `pictures` pans over."""
        return folder / f"scene-{self.height}.npy"

    def clip(self, folder: Path, frames: int) -> Path:
        """Its mp4."""
        return folder / f"clip-{self.height}-{frames}.mp4"

    def __str__(self) -> str:
        return f"{self.program}, {self.height}p, {self.objects} object{'s' if self.objects > 1 else ''}"


@dataclass(frozen=True)
class Sample:
    """After so many frames: resident bytes now, their peak so far, and bytes in temporary files without a
    name."""

    frame: int
    resident: int
    peak: int
    on_disk: int


# ----------------------------------------------------------------------------------------- one case's process


def pictures(scene: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """A camera that pans to and fro over a still scene, which is larger than its pictures by `PAN`."""
    height, width = scene.shape[0] - PAN, scene.shape[1] - PAN
    for index in range(count):
        shift = abs((index + PAN) % (2 * PAN) - PAN)
        yield np.ascontiguousarray(scene[shift : shift + height, shift : shift + width])


def points_xy(size_hw: tuple[int, int], objects: int) -> list[tuple[float, float]]:
    """One click per object, on a grid of two rows."""
    height, width = size_hw
    columns = (objects + 1) // 2
    return [
        (width * (index // 2 + 0.5) / columns, height * (index % 2 + 0.5) / 2) for index in range(objects)
    ]


def write_clip(path: Path, scene: np.ndarray, count: int) -> None:
    """An mp4 of `pictures`."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = scene.shape[0] - PAN, scene.shape[1] - PAN
        stream.pix_fmt = "yuv420p"
        for picture in pictures(scene, count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def track(case: Case, folder: Path, frames: int, threads: int) -> Iterator[int]:
    """Track; the number of frames that are done, after each."""
    import masklet
    from masklet.pipeline import video_state

    model = masklet.load(folder / "model.safetensors", threads=threads)
    points = points_xy(case.size_hw, case.objects)
    if case.program == "Tracker":
        tracker = masklet.Tracker(model)
        for index, picture in enumerate(pictures(np.load(case.scene(folder)), frames)):
            tracker.push(picture)
            for object_id, point in enumerate(points if index == 0 else []):
                tracker.add_points_or_box(object_id, points=[point], labels=[1])
            yield index + 1
        return
    # The state of a frame grows with the model's input: a small model would fill the usual budget only after
    # hundreds of frames.
    video_state.STATE_BUDGET //= (1024 // model.image_size) ** 2
    predictor = masklet.VideoPredictor(model, state="disk")
    state = predictor.init_state(str(case.clip(folder, frames)))
    for object_id, point in enumerate(points):
        predictor.add_new_points_or_box(state, 0, object_id, points=[point], labels=[1])
    for index, _ids, _logits in predictor.propagate_in_video(state):
        yield index + 1


def sample(frame: int) -> Sample:
    """This process now."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident, peak = (int(fields[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM"))
    on_disk = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own descriptor is gone
            if os.readlink(link).endswith("(deleted)"):
                on_disk += os.stat(link).st_size
    return Sample(frame, resident, peak, on_disk)


# ------------------------------------------------------------------------------------------------ all cases


def run(case: Case, folder: Path, options: argparse.Namespace) -> list[Sample]:
    """The samples of one case, from its own process."""
    prepare(case, folder, options.frames)
    command = [sys.executable, __file__, "--work", case.program, "--folder", str(folder)]
    command += ["--heights", str(case.height), "--objects", str(case.objects)]
    command += ["--frames", str(options.frames), "--threads", str(options.threads)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = parse(done.stdout)
    print(f"{case}: the peak grows by {growth(found):+.1%}", file=sys.stderr)
    return found


def prepare(case: Case, folder: Path, frames: int) -> None:
    """What the case reads, if it is not there yet; made here, not in its process, whose peak it would set."""
    scene, clip = case.scene(folder), case.clip(folder, frames)
    if not scene.exists():
        height, width = case.size_hw
        np.save(scene, testing.synthetic_scene(3, (height + PAN, width + PAN)).image)
    if case.program == "VideoPredictor" and not clip.exists():
        write_clip(clip, np.load(scene), frames)


def parse(text: str) -> list[Sample]:
    """Samples from lines of JSON."""
    return [Sample(**json.loads(line)) for line in text.splitlines()]


def at(samples: list[Sample], frame: int) -> Sample:
    """The last sample that is not later than a frame."""
    return max((one for one in samples if one.frame <= frame), key=lambda one: one.frame)


def growth(samples: list[Sample]) -> float:
    """Of the peak, from frame 50 to the last one."""
    return samples[-1].peak / at(samples, SETTLED).peak - 1


# -------------------------------------------------------------------------------------------------- the page


def table(found: dict[Case, list[Sample]]) -> str:
    """One row per case."""
    last = max(samples[-1].frame for samples in found.values())
    rows = [
        f"| program | picture | objects | resident at frame {SETTLED} | at frame {last} "
        f"| peak at frame {SETTLED} | at frame {last} | growth of the peak | in the temporary file |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case, samples in found.items():
        early, late = at(samples, SETTLED), samples[-1]
        sizes = [early.resident, late.resident, early.peak, late.peak]
        cells = [case.program, f"{case.size_hw[1]} x {case.height}", str(case.objects)]
        cells += [f"{size / 2**20:.0f} MiB" for size in sizes]
        cells += [f"{growth(samples):+.1%}", f"{late.on_disk / 2**20:.0f} MiB" if late.on_disk else ""]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


PLOT_WH, MARGIN = (780, 420), (60, 20, 270, 50)  # pixels; left, top, right, bottom
COLOURS = ("#0072b2", "#56b4e9", "#d55e00", "#e69f00")  # told apart by the colour-blind


def plot(found: dict[Case, list[Sample]]) -> str:
    """Resident memory over frames as SVG: a colour per picture and number of objects, dashes per program."""
    (width, height), (left, top, right, bottom) = PLOT_WH, MARGIN
    last = max(samples[-1].frame for samples in found.values())
    highest = max(one.resident for samples in found.values() for one in samples) / 2**20
    step = next(step for step in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if highest / step <= 8)
    highest = step * (highest // step + 1)

    def x(frame: float) -> float:
        return left + (width - left - right) * frame / last

    def y(mebibytes: float) -> float:
        return height - bottom - (height - top - bottom) * mebibytes / highest

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" fill="#333">',
        "<title>Resident memory while tracking</title>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for tick in range(0, int(highest) + 1, step):
        parts += [
            f'<path d="M{left} {y(tick):.1f}H{width - right}" stroke="#ddd"/>',
            f'<text x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick}</text>',
        ]
    parts += [
        f'<text x="{x(tick):.1f}" y="{height - bottom + 18}" text-anchor="middle">{tick}</text>'
        for tick in range(0, last + 1, max(last // 5, 1))
    ]
    middle = (top + height - bottom) / 2
    parts += [
        f'<path d="M{left} {top}V{height - bottom}H{width - right}" fill="none" stroke="#333"/>',
        f'<text x="{x(last / 2):.1f}" y="{height - 10}" text-anchor="middle">frames tracked</text>',
        f'<text x="16" y="{middle}" text-anchor="middle" transform="rotate(-90 16 {middle})">'
        "resident memory, MiB</text>",
    ]
    kinds = sorted({(case.height, case.objects) for case in found})
    ordered = sorted(found.items(), key=lambda item: -item[1][-1].resident)  # the legend follows the lines
    for row, (case, samples) in enumerate(ordered):
        colour = COLOURS[kinds.index((case.height, case.objects)) % len(COLOURS)]
        dashes = "" if case.program == "Tracker" else ' stroke-dasharray="5 3"'
        line = f'fill="none" stroke="{colour}" stroke-width="1.8"{dashes}/>'
        track = " ".join(f"{x(one.frame):.1f},{y(one.resident / 2**20):.1f}" for one in samples)
        parts.append(f'<polyline points="{track}" {line}')
        key = top + 14 + 20 * row
        parts.append(f'<path d="M{width - right + 16} {key - 4}h28" {line}')
        parts.append(f'<text x="{width - right + 52}" y="{key}">{case}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def report(found: dict[Case, list[Sample]], options: argparse.Namespace) -> str:
    """The whole page."""
    listed = ", ".join(f"{name} {version(name)}" for name in ("masklet", "onnxruntime", "av", "numpy"))
    text = (
        f"Measured by `scripts/bench video_memory` on {platform.system()}, {platform.machine()}: "
        f"{options.frames} frames tracked from one click per object, each case in its own process. The model "
        f"is a small stand-in with an input of {options.image_size} pixels. Resident memory and its peak are "
        "the process's own, Python, engine, decoder and weights included. The peak may grow by "
        f'{ALLOWED:.0%} after frame {SETTLED}. What state="disk" keeps in memory is scaled with the area of '
        "the input: the usual 16 MiB fill within 21 frames at 1024 pixels, and would take hundreds here."
    )
    plotted = "![Resident memory over frames](../docs/video_memory.svg)"
    return (
        "\n\n".join(["# Memory over a long clip", text, table(found), plotted, f"Versions: {listed}."]) + "\n"
    )


def main() -> None:
    """Measure and print; --write also replaces the page and the plot."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--heights", nargs="+", type=int, choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--objects", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--image-size", type=int, default=128, help="side of the model's input, pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--work", choices=PROGRAMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        case = Case(options.work, options.heights[0], options.objects[0])
        for frame in track(case, options.folder, options.frames, options.threads):
            if frame % EVERY == 0 or frame == 1:
                print(json.dumps(asdict(sample(frame))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        config = testing.tiny_config("2.1", options.image_size)
        testing.write_stand_in(Path(folder) / "model.safetensors", config, object_score_bias=PRESENT)
        cases = [
            Case(program, height, objects)
            for height in options.heights
            for objects in options.objects
            for program in options.programs
        ]
        found = {case: run(case, Path(folder), options) for case in cases}
    page = report(found, options)
    print(page)
    if options.write:
        (HERE / "video_memory.md").write_text(page)
        (HERE.parent / "docs" / "video_memory.svg").write_text(plot(found))
    grown = [str(case) for case, samples in found.items() if growth(samples) > ALLOWED]
    if grown:
        raise SystemExit(f"memory grows by more than {ALLOWED:.0%} with {'; '.join(grown)}")


if __name__ == "__main__":
    main()
