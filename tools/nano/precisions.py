"""What storing weights in fewer bits and computing in fewer bits costs: every storage x compute against f32.

    python tools/nano/precisions.py DATA F32.safetensors [-o REPORT.json] [--storage ...] [--compute ...]

In: the folder of `gather.py` and a model file, best one of f32 (`export.py --dtype f32`). Out: a Markdown
table: the mean IoU with the masks of the file as it is, computed in f32, and how good the masks are, on
held-out pictures and clips. The files of other types are made by `masklet.quant` in a temporary folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from evaluate import progress
from metrics import bounding_box, deepest, iou
from scenes import Scenes

import masklet
from masklet.quant.convert import quantize

AS_GIVEN = "as given"
STORAGE = (AS_GIVEN, "f16", "q8_0", "q4_1", "q4_0")
COMPUTE = ("f32", "f16", "int8")
KINDS = ("1 click", "candidates", "box", "clips")  # of masks that are compared with those of f32
TRUE_KINDS = ("1 click", "box", "clips")  # and with the truth; of the candidates at most one means the object


@dataclass(frozen=True, eq=False)
class Scenery:
    """Pictures and clips, drawn once for all models."""

    stills: list[Any]
    clips: list[Any]


@dataclass(frozen=True, eq=False)
class Answers:
    """A model's masks, packed to bits, in the order of the scenery; and how good each is."""

    masks: dict[str, list[np.ndarray]] = field(default_factory=dict)
    true_iou: dict[str, list[float]] = field(default_factory=dict)

    def add(self, kind: str, mask: np.ndarray, truth: np.ndarray | None) -> None:
        """One mask (H, W) bool; `truth` None where there is none."""
        self.masks.setdefault(kind, []).append(np.packbits(mask))
        if truth is not None:
            self.true_iou.setdefault(kind, []).append(iou(mask, truth))


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that gather.py made")
    parser.add_argument("model", type=Path, help="a model file, best of f32")
    parser.add_argument("--storage", nargs="+", default=STORAGE, choices=STORAGE)
    parser.add_argument("--compute", nargs="+", default=COMPUTE, choices=COMPUTE)
    parser.add_argument("--stills", type=int, default=100, help="pictures")
    parser.add_argument("--clips", type=int, default=12, help="clips")
    parser.add_argument("--frames", type=int, default=24, help="frames of a clip")
    parser.add_argument("--side", type=int, default=384, help="side of the pictures in pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="the report as JSON")
    args = parser.parse_args()

    scenes = Scenes(args.data, split="held", size=args.side, seed=args.seed)
    scenery = Scenery(
        [scenes.still(index) for index in range(args.stills)],
        [scenes.clip(index, args.frames) for index in range(args.clips)],
    )
    rows, reference = [], None
    with tempfile.TemporaryDirectory() as folder:
        for storage, compute, path in variants(args.model, args.storage, args.compute, Path(folder)):
            progress(f"stored {storage}, computed in {compute}")
            answers = answers_of(masklet.load(path, precision=compute), scenery)
            reference = reference or answers
            rows.append(row_of(storage, compute, path.stat().st_size, answers, reference))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def variants(
    model: Path, storage: Sequence[str], compute: Sequence[str], folder: Path
) -> Iterator[tuple[str, str, Path]]:
    """Each (storage, compute, file), first the file as given in f32, which the others are compared with."""
    yield AS_GIVEN, "f32", model
    for stored in storage:
        path = model
        if stored != AS_GIVEN:
            path = folder / f"{stored}{'.safetensors' if stored == 'f16' else '.gguf'}"
            quantize(model, path, stored)
        for computed in compute:
            if (stored, computed) != (AS_GIVEN, "f32"):
                yield stored, computed, path


def answers_of(model: masklet.Model, scenery: Scenery) -> Answers:
    """All masks of a model."""
    answers, predictor = Answers(), masklet.ImagePredictor(model)
    for still in scenery.stills:
        predictor.set_image(still.image)
        for truth in still.masks:
            click = {"point_coords": [deepest(truth)], "point_labels": [1]}
            answers.add("1 click", predictor.predict(**click, multimask_output=False)[0][0], truth)
            for mask in predictor.predict(**click)[0]:
                answers.add("candidates", mask, None)
            masks, _, _ = predictor.predict(box=bounding_box(truth), multimask_output=False)
            answers.add("box", masks[0], truth)
    for clip in scenery.clips:
        tracker = masklet.Tracker(model, num_frames=len(clip.images))
        for index, (image, truths) in enumerate(zip(clip.images, clip.masks, strict=True)):
            result = tracker.push(image)
            if index == 0:
                for number, truth in enumerate(truths):
                    tracker.add_points_or_box(number, points=[deepest(truth)], labels=[1])
                continue
            for number, truth in enumerate(truths):
                answers.add("clips", result[number].mask, truth)
    return answers


def row_of(
    storage: str, compute: str, size_bytes: int, answers: Answers, reference: Answers
) -> dict[str, Any]:
    """One line of the report; a kind without masks is left out."""
    same = {
        kind: float(np.mean([packed_iou(*pair) for pair in zip(ours, reference.masks[kind], strict=True)]))
        for kind, ours in answers.masks.items()
    }
    true = {kind: float(np.mean(values)) for kind, values in answers.true_iou.items()}
    return {"storage": storage, "compute": compute, "bytes": size_bytes, "with f32": same, "with truth": true}


def packed_iou(one: np.ndarray, other: np.ndarray) -> float:
    """The IoU of two masks that were packed to bits."""
    return iou(np.unpackbits(one).view(bool), np.unpackbits(other).view(bool))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The report as Markdown."""
    header = ["storage", "compute", "MB", *(f"{kind}, IoU with f32" for kind in KINDS)]
    header += [f"{'J' if kind == 'clips' else 'mean IoU'}, {kind}" for kind in TRUE_KINDS]
    lines = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [row["storage"], row["compute"], f"{row['bytes'] / 1e6:.1f}"]
        cells += [f"{row['with f32'][kind]:.4f}" if kind in row["with f32"] else "-" for kind in KINDS]
        true = row["with truth"]
        cells += [f"{true[kind]:.3f}" if kind in true else "-" for kind in TRUE_KINDS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
