"""Measure a model on held-out pictures and clips, none of whose sprites, photographs or shapes were trained
on.

    python tools/nano/evaluate.py DATA [--model FILE] [-o REPORT.json] [--pictures FOLDER]

In: the folder of `gather.py` and any model that masklet loads. Out: a report, and tables on stdout: masks of
clicks and boxes, the calibration of predicted IoU, what happens without a prompt and where nothing is, clips
by number of objects and length. Runs through masklet alone, without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from metrics import Tally, boundary_f, bounding_box, calibration, deepest, iou, next_click
from PIL import Image
from scenes import Scenes

import masklet
from masklet.io.overlay import draw_overlay

CLICKS = 5
BACKGROUND_CLICKS = 2  # a picture
CLIPS = {  # name -> objects, frames
    "1 object, 24 frames": (1, 24),
    "2 objects, 24 frames": (2, 24),
    "3 objects, 24 frames": (3, 24),
    "1 object, 60 frames": (1, 60),
    "2 objects, 60 frames": (2, 60),
    "3 objects, 60 frames": (3, 60),
}
SHOWN = 12  # best and worst answers that are drawn


def main() -> None:
    """Parse arguments, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that gather.py made")
    parser.add_argument("--model", help="a model file or published name (default: the one in the package)")
    parser.add_argument("--precision", help="what is computed with, as in masklet.load")
    parser.add_argument("--stills", type=int, default=300, help="pictures")
    parser.add_argument("--clips", type=int, default=12, help="clips of each kind")
    parser.add_argument("--side", type=int, default=384, help="side of the pictures in pixels")
    parser.add_argument("--image-size", type=int, default=None, help="side of the model's input")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path, help="the report as JSON")
    parser.add_argument("--pictures", type=Path, help="a folder for the best and worst one-click masks")
    args = parser.parse_args()

    model = masklet.load(args.model, image_size=args.image_size, precision=args.precision)
    scenes = Scenes(args.data, split="held", size=args.side, seed=args.seed)
    report: dict[str, Any] = {
        "image_size": model.image_size,
        "precision": model.precision,
        "side": args.side,
        "seed": args.seed,
    }
    report["stills"], shown = stills(model, scenes, args.stills)
    report["nothing"] = nothing(model, scenes, args.stills)
    report["clips"] = {
        kind: clips(model, scenes, args.clips, objects, frames) for kind, (objects, frames) in CLIPS.items()
    }
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    if args.pictures:
        save_pictures(shown, args.pictures)
    print(table(report))


# --------------------------------------------------------------------------------------------------- pictures


def stills(model: masklet.Model, scenes: Any, count: int) -> tuple[dict[str, Any], list[tuple]]:
    """All objects of `count` pictures: clicks, boxes, predicted IoU."""
    predictor, tally = masklet.ImagePredictor(model), Tally()
    predicted, actual, shown = [], [], []
    for index in range(count):
        still = scenes.still(index)
        predictor.set_image(still.image)
        for truth in still.masks:
            for clicks, mask, score in clicked(predictor, truth):
                tally.add(f"{clicks} clicks", iou(mask, truth))
                predicted.append(score)
                actual.append(iou(mask, truth))
                if clicks == 1:
                    shown.append((actual[-1], still.image, mask, deepest(truth)))
            masks, _, _ = predictor.predict(box=bounding_box(truth), multimask_output=False)
            tally.add("box", iou(masks[0] > 0, truth))
        progress(f"pictures {index + 1}/{count}")
    shown.sort(key=lambda entry: entry[0])
    return {
        "pictures": count,
        "objects": len(tally.values["box"]),
        "mean IoU": tally.means(),
        "predicted IoU, mean error": float(np.mean(np.abs(np.array(predicted) - actual))),
        "calibration": calibration(np.array(predicted), np.array(actual)),
    }, shown


def clicked(predictor: masklet.ImagePredictor, truth: np.ndarray) -> Iterator[tuple[int, np.ndarray, float]]:
    """Yields (clicks, mask, predicted IoU) after 1 to `CLICKS` clicks, each in the middle of the largest
    error; the first answer is the best of three by its predicted IoU."""
    points: list[tuple[int, int]] = [deepest(truth)]
    labels, low_res = [1], None
    for count in range(1, CLICKS + 1):
        masks, scores, logits = predictor.predict(
            points, labels, mask_input=low_res, multimask_output=count == 1
        )
        best = int(scores.argmax())
        mask, low_res = masks[best] > 0, logits[best][None]
        yield count, mask, float(scores[best])
        x, y, label = next_click(truth, mask)
        points.append((x, y))
        labels.append(label)


def nothing(model: masklet.Model, scenes: Any, count: int) -> dict[str, dict[str, float]]:
    """What a model makes of pictures without a prompt, and of a click where no object is; for comparison of a
    click on an object. The object score is a stream's: a `Tracker` gives it."""
    predictor, rng = masklet.ImagePredictor(model), np.random.default_rng(0)
    tallies = {"no prompt": Tally(), "click on background": Tally(), "click on an object": Tally()}
    for index in range(count):
        still = scenes.still(index)
        predictor.set_image(still.image)
        masks, scores, _ = predictor.predict(multimask_output=False)
        tallies["no prompt"].add("share of the picture", np.mean(masks[0]))
        tallies["no prompt"].add("predicted IoU", scores[0])
        tracker = masklet.Tracker(model)
        tracker.push(still.image)
        places = [("click on background", place) for place in background(still.masks, rng)]
        for name, place in [*places, ("click on an object", deepest(still.masks[0]))]:
            (one,) = tracker.add_points_or_box(1, points=[place], labels=[1]).objects
            tallies[name].add("share of the picture", np.mean(one.mask))
            tallies[name].add("predicted IoU", one.predicted_iou)
            tallies[name].add("called absent", one.object_score <= 0)
        progress(f"clicks on nothing {index + 1}/{count}")
    return {name: tally.means() for name, tally in tallies.items()}


def background(masks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random pixels (x, y) on no object."""
    places = np.argwhere(~masks.any(0))
    return places[rng.permutation(len(places))[:BACKGROUND_CLICKS], ::-1]


# ------------------------------------------------------------------------------------------------------ clips


def clips(model: masklet.Model, scenes: Any, count: int, objects: int, frames: int) -> dict[str, Any]:
    """J and F over all frames after the first, on which each object is clicked once; how hidden objects are
    told from seen ones."""
    tally, index, done = Tally(), 0, 0
    while done < count:
        clip = scenes.clip(index, frames)
        index += 1
        if clip.masks.shape[1] < objects:
            continue
        tracked(model, clip, objects, tally)
        done += 1
        progress(f"clips of {objects} objects, {frames} frames {done}/{count}")
    means = tally.means()
    both = (means["J"] + means["F"]) / 2
    return {"clips": count, "objects": objects, "frames": frames, **means, "J&F": both}


def tracked(model: masklet.Model, clip: Any, objects: int, tally: Tally) -> None:
    """Follow the first `objects` objects of a clip from a click on each."""
    tracker = masklet.Tracker(model, num_frames=len(clip.images))
    for index, (image, truths) in enumerate(zip(clip.images, clip.masks[:, :objects], strict=True)):
        result = tracker.push(image)
        if index == 0:
            for obj, truth in enumerate(truths):
                tracker.add_points_or_box(obj, points=[deepest(truth)], labels=[1])
            continue
        for obj, truth in enumerate(truths):
            mask = result[obj].mask
            tally.add("J", iou(mask, truth))
            tally.add("F", boundary_f(mask, truth))
            seen = "seen" if truth.any() else "hidden"
            tally.add(f"told {seen}", (result[obj].object_score > 0) == truth.any())
            if truth.any():
                tally.add("J where seen", iou(mask, truth))


# ----------------------------------------------------------------------------------------------------- output


def table(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    still = report["stills"]
    lines = [f"{still['objects']} objects in {still['pictures']} pictures", ""]
    lines += ["| prompt | mean IoU |", "|---|---|"]
    lines += [f"| {name} | {value:.3f} |" for name, value in still["mean IoU"].items()]
    lines += ["", f"Predicted IoU is off by {still['predicted IoU, mean error']:.3f} on average.", ""]
    lines += ["| predicted | actual | masks |", "|---|---|---|"]
    lines += [f"| {p:.2f} | {a:.2f} | {n} |" for p, a, n in still["calibration"]]
    lines += [
        "",
        "| without an object | share of the picture | predicted IoU | called absent |",
        "|---|---|---|---|",
    ]
    for name, row in report["nothing"].items():
        lines.append(
            f"| {name} | {numbers(row, ('share of the picture', 'predicted IoU', 'called absent'))} |"
        )
    lines += ["", "| clips | J&F | J | F | J where seen | told seen | told hidden |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for kind, row in report["clips"].items():
        names = ("J&F", "J", "F", "J where seen", "told seen", "told hidden")
        lines.append(f"| {kind} | {numbers(row, names)} |")
    return "\n".join(lines)


def numbers(row: dict[str, float], names: Sequence[str]) -> str:
    """Cells of a table; a dash where nothing was measured."""
    return " | ".join("-" if row.get(name) is None else f"{row[name]:.3f}" for name in names)


def save_pictures(shown: list[tuple], folder: Path) -> None:
    """The worst and the best one-click masks over their pictures, `IoU.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    step = max(1, len(shown) // SHOWN)
    for rank, (value, image, mask, _) in enumerate(shown[::step]):
        Image.fromarray(draw_overlay(image, mask)).save(folder / f"{rank:02d}_{value:.3f}.png")


def progress(text: str) -> None:
    """One line on stderr that replaces itself."""
    print(f"\r{text}\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
