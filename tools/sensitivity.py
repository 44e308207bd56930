"""Which linear layers suffer from 8 bits: each one alone in int8, the rest of the model in f32.

In: a model (SAM 2's stand-in with lively weights without one) and pictures (synthetic ones without a folder).
Out: a Markdown table on stdout, the worst layers first, and how accurate the whole model is when the worst of
them stay in f32. What is left out for good stands in `masklet.model.precision.EXACT`.

    python tools/sensitivity.py [MODEL] [--pictures FOLDER] [--count N] [--image-size PIXELS] [--rows N]

Error is the distance of the image embedding, or of the embedding in the light of memories, from that of f32,
relative to its spread. Lost is 1 - IoU of the mask candidates of one click for each object (synthetic
pictures) or of one in the middle, and of the next frame's masks, which come from memory. Memory attention's
products are in 8 bits whenever its stage is.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src")]

from masklet import testing  # noqa: E402
from masklet.families.sam2 import PRESETS  # noqa: E402
from masklet.model.precision import EXACT, kept_exact  # noqa: E402
from masklet.pipeline.conventions import conventions_of  # noqa: E402
from masklet.pipeline.model import Model, load  # noqa: E402
from masklet.runtime.graph import write_stage  # noqa: E402
from masklet.runtime.session import Session  # noqa: E402
from masklet.types import Remembered  # noqa: E402

SEEN, TRACKED = ("encode_image",), ("begin_frame", "attend_memory", "encode_memory")
STAND_IN = "sam2.1_hiera_tiny"
SCENE_HW = (360, 480)  # pixels of a synthetic picture
REMEMBERED = 3  # frames


@dataclass(frozen=True)
class Picture:
    """A picture and one click (x, y) for each of its B objects."""

    image: np.ndarray
    points_xy: np.ndarray


@dataclass(frozen=True)
class Answer:
    """What a model makes of a picture, flat: the embeddings, and masks as bits."""

    embedding: np.ndarray
    masks: np.ndarray
    attended: np.ndarray | None = None
    next_masks: np.ndarray | None = None


@dataclass(frozen=True)
class Loss:
    """Error of the embedding and lost IoU of masks, means over pictures."""

    error: float
    lost: float


def pictures(folder: Path | None, count: int) -> Iterator[Picture]:
    """The pictures of a folder, or synthetic ones."""
    if folder is None:
        for seed in range(count):
            scene = testing.synthetic_scene(seed, SCENE_HW)
            yield Picture(scene.image, scene.points_xy)
        return
    from masklet.io.image import read_image

    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files[:count]:
        image = read_image(path)
        yield Picture(image, np.array([[image.shape[1] / 2, image.shape[0] / 2]], np.float32))


def answer(model: Model, picture: Picture, tracks: bool) -> Answer:
    """Masks of the clicks, and of the same picture as the next frame when its masks are remembered."""
    conventions = conventions_of(model.config)
    size_hw = picture.image.shape[0], picture.image.shape[1]
    made = conventions.picture(picture.image, model.image_size)
    points = picture.points_xy[:, None]
    labels = np.ones(points.shape[:2])
    prompts = conventions.prompts(points, labels, None, None, size_hw=size_hw, image_size=model.image_size)
    if not tracks:
        features = model.encode_image(made, size_hw)
        clicked = model.decode(features, prompts)
        return Answer(features.values["embedding"].numpy().ravel(), (clicked.logits > 0).ravel())

    frame = model.encode_frame(made, size_hw)
    clicked = model.decode(frame.image, prompts)
    score = np.full((len(points), 1), 5, np.float32)
    memory = model.encode_memory(frame, clicked.logits[:, 1:2], score, binary=True)
    pointers = model.point(clicked.tokens[:, 1], score)
    slots = np.tile(np.arange(REMEMBERED), (len(points), 1))
    remembered = Remembered(
        np.repeat(memory[:, None], REMEMBERED, axis=1),
        slots,
        np.repeat(pointers[:, None], REMEMBERED, axis=1),
        slots.astype(np.float32) / REMEMBERED,
    )
    attended = model.attend(frame, remembered)
    nothing = conventions.prompts(
        np.zeros((len(points), 1, 2)), -labels, None, None, size_hw=size_hw, image_size=model.image_size
    )
    tracked = model.decode(frame.image, nothing, attended)
    return Answer(
        frame.image.values["embedding"].numpy().ravel(),
        (clicked.logits > 0).ravel(),
        attended.numpy().ravel(),
        (tracked.logits > 0).ravel(),
    )


def with_layers(model: Model, stages: Collection[str], exact: Collection[str]) -> Model:
    """The same model with these stages in int8, but for layers on the list."""
    own = {}
    for name in stages:
        stage = write_stage(model.config, name, model.image_size, "fused", "int8", exact)
        own[name] = Session(stage, model.tensor, model.device, model.threads)
    changed = copy.copy(model)
    changed.session = lambda name: own[name] if name in own else model.session(name)  # type: ignore[method-assign]
    return changed


def layers_of(model: Model, name: str) -> dict[str, tuple[int, ...]]:
    """The linear layers of a stage: the key of each one's last matrix, and its shape (in, out)."""
    stage = write_stage(model.config, name, model.image_size, "fused", "int8", ())
    made = [weight for weight in stage.weights if weight.recipe == "int8_matrix"]
    return {[key for key in weight.keys if key.endswith("weight")][-1]: weight.shape for weight in made}


def loss(expected: list[Answer], got: list[Answer]) -> Loss:
    """Means over pictures; those of the next frame where it was made."""
    errors, lost = [], []
    for e, g in zip(expected, got, strict=True):
        for before, after in ((e.embedding, g.embedding), (e.attended, g.attended)):
            if before is not None and after is not None:
                errors.append(np.linalg.norm(after - before) / np.linalg.norm(before - before.mean()))
        for before, after in ((e.masks, g.masks), (e.next_masks, g.next_masks)):
            if before is not None and after is not None:
                lost.append(1 - (before & after).sum() / max(1, (before | after).sum()))
    return Loss(float(np.max(errors) if errors else 0), float(np.mean(lost)))


def sweep(model: Model, shown: list[Picture]) -> dict[str, tuple[str, tuple[int, ...], Loss]]:
    """Each layer alone in int8: its stage, its shape and what is lost, the worst first."""
    tracks = bool(model.family.video_stages)
    expected = {video: [answer(model, each, video) for each in shown] for video in {False, tracks}}
    found = {}
    for name in (*SEEN, *(TRACKED if tracks else ())):
        layers = layers_of(model, name)
        for key, shape in layers.items():
            changed = with_layers(model, [name], [other for other in layers if other != key])
            got = [answer(changed, each, name in TRACKED) for each in shown]
            found[key] = name, shape, loss(expected[name in TRACKED], got)
            print(f"{key}: {found[key][2]}", file=sys.stderr)
    return dict(sorted(found.items(), key=lambda item: -item[1][2].lost))


def report(model: Model, shown: list[Picture], rows: int) -> str:
    """The table of layers, and of the whole model with the worst of them in f32."""
    found = sweep(model, shown)
    lines = ["| layer | stage | in x out | error | lost |", "|---|---|---|---|---|"]
    for key, (name, shape, each) in list(found.items())[:rows]:
        mark = " (kept in f32)" if kept_exact([key], EXACT) else ""
        lines.append(
            f"| `{key}`{mark} | {name} | {shape[0]} x {shape[1]} | {each.error:.4f} | {each.lost:.4f} |"
        )
    tracks = bool(model.family.video_stages)
    stages = (*SEEN, *(TRACKED if tracks else ()))
    expected = [answer(model, each, tracks) for each in shown]
    lines += ["", "| in f32 | error | lost |", "|---|---|---|"]
    for label, exact in {
        "none": [],
        **{f"the worst {count}": list(found)[:count] for count in (1, 2, 4, 8, 16)},
        "what `EXACT` lists": list(EXACT),
    }.items():
        changed = with_layers(model, stages, exact)
        each = loss(expected, [answer(changed, picture, tracks) for picture in shown])
        lines.append(f"| {label} | {each.error:.4f} | {each.lost:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Sweep and print."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--rows", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = options.model or str(Path(folder) / "stand_in.safetensors")
        if options.model is None:
            testing.write_stand_in(source, PRESETS[STAND_IN], object_score_bias=5.0)
        model = load(source, precision="f32", threads=options.threads, image_size=options.image_size)
        print(report(model, list(pictures(options.pictures, options.count)), options.rows))


if __name__ == "__main__":
    main()
