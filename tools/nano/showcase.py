"""The pictures of docs/nano.md and the README: `python tools/nano/showcase.py DATA MODEL OUT`.

In: a folder with astronaut, coffee and chelsea of scikit-image (that of `gather.py` has them), a model, a
folder. Out, as JPEGs under 200 kB: `nano.jpg`, the three photographs with prompts and with masks;
`nano-clip.jpg`, frames of a drawn clip; and if the folder has sprites, `nano-held.jpg`, answers to one click
in held-out scenes, evenly from the worst to the best.

What is published must be free to publish: held-out scenes are composed of sources under permissive licences
alone (DATA.md has them).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from evaluate import stills
from PIL import Image, ImageDraw, ImageFont
from scenes import Scenes

import masklet
from masklet import testing
from masklet.io.image import read_image
from masklet.io.overlay import draw_overlay

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from demo import PHOTOS, Photo

MAX_BYTES = 200_000
PHOTO_HEIGHT, CELL, CLIP_HEIGHT = 260, 256, 180  # pixels
SPRITES = ("clipart", "fluent3d", "fluentflat", "noto")  # public domain, MIT, MIT, Apache-2.0
PHOTO_PATTERN = "skimage-*.jpg"  # public domain, CC0
HELD_PICTURES, HELD_COLUMNS, HELD_ROWS, HELD_SIDE = 60, 5, 2, 384
CLIP_FRAMES, CLIP_SHOWN, CLIP_HW = 24, 6, (180, 240)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that gather.py made, or one of the photographs")
    parser.add_argument("model", help="a model file or published name")
    parser.add_argument("out", type=Path, help="a folder for the pictures")
    parser.add_argument("--seed", type=int, default=3, help="of the held-out scenes")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    model = masklet.load(options.model)
    save(options.out / "nano.jpg", photographs(model, options.data))
    save(options.out / "nano-clip.jpg", clip_strip(model))
    if (options.data / "sprites" / "held").is_dir():
        with tempfile.TemporaryDirectory() as folder:
            link_free(options.data.resolve(), Path(folder))
            save(options.out / "nano-held.jpg", held_sheet(model, Path(folder), options.seed))


def photographs(model: masklet.Model, folder: Path) -> np.ndarray:
    """Above the photographs with their prompts, below with their masks."""
    predictor, columns = masklet.ImagePredictor(model), []
    for photo in PHOTOS:
        image = read_image(photo_file(folder, photo))
        scale = image.shape[0] / photo_height(photo)  # gathered ones may be smaller than those in the package
        point, box = (np.array(each) * scale for each in (photo.point_xy, photo.box_xyxy))
        predictor.set_image(image)
        masks, _, _ = predictor.predict([point], [1], box=box, multimask_output=False)
        prompt = {"points": [point], "labels": [1], "boxes": box}
        pair = draw_overlay(image, np.zeros_like(masks[0]), **prompt), draw_overlay(image, masks[0])
        columns.append(np.concatenate([at_height(one, PHOTO_HEIGHT) for one in pair]))
    return np.concatenate(columns, 1)


def photo_file(folder: Path, photo: Photo) -> Path:
    """Where the photograph lies, at any depth and under any prefix."""
    found = sorted(path for kind in ("png", "jpg") for path in folder.rglob(f"*{photo.name}.{kind}"))
    if not found:
        raise SystemExit(f"{folder} has no {photo.name}.png; copy those of scikit-image there.")
    return found[0]


def photo_height(photo: Photo) -> int:
    """In scikit-image, in pixels."""
    return {"coffee": 400, "astronaut": 512, "chelsea": 300}[photo.name]


def clip_strip(model: masklet.Model) -> np.ndarray:
    """Frames of the drawn clip in which a ball goes behind a pillar, clicked in the first."""
    clip = testing.occlusion_clip(0, CLIP_FRAMES, CLIP_HW)
    tracker, frames = masklet.Tracker(model, num_frames=CLIP_FRAMES), []
    for index, frame in enumerate(clip.frames):
        result = tracker.push(frame)
        point = [clip.point_xy(0, 0)] if index == 0 else None
        if point:
            result = tracker.add_points_or_box(1, points=point, labels=[1])
        frames.append(draw_overlay(frame, [one.mask for one in result.objects], points=point))
    shown = np.linspace(0, CLIP_FRAMES - 1, CLIP_SHOWN).round().astype(int)
    return np.concatenate([at_height(frames[index], CLIP_HEIGHT) for index in shown], 1)


def link_free(data: Path, folder: Path) -> None:
    """A data folder of what may be published."""
    for source in SPRITES:
        here = data / "sprites" / "held" / source
        if here.is_dir():
            link = folder / "sprites" / "held" / source
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(here, target_is_directory=True)
    (folder / "photos" / "held").mkdir(parents=True)
    for photo in (data / "photos" / "held").glob(PHOTO_PATTERN):
        (folder / "photos" / "held" / photo.name).symlink_to(photo)


def held_sheet(model: masklet.Model, folder: Path, seed: int) -> np.ndarray:
    """Answers to one click, row by row from the worst to the best, evenly by rank, with their true IoU."""
    scenes = Scenes(folder, split="held", size=HELD_SIDE, seed=seed)
    _, answers = stills(model, scenes, HELD_PICTURES)
    ranks = np.linspace(0, len(answers) - 1, HELD_COLUMNS * HELD_ROWS + 2)[1:-1].round().astype(int)
    cells = []
    for rank in ranks:
        value, image, mask, point = answers[rank]
        cell = at_height(draw_overlay(image, mask, points=[point], labels=[1]), CELL)
        cells.append(labelled(cell, f"IoU {value:.2f}"))
    return grid(cells, HELD_COLUMNS)


def labelled(cell: np.ndarray, text: str) -> np.ndarray:
    """The picture with a text in its corner."""
    canvas = Image.fromarray(cell)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
    draw.rectangle((0, 0, draw.textlength(text, font) + 8, 24), fill="white")
    draw.text((4, 3), text, "black", font)
    return np.array(canvas)


def grid(cells: Sequence[np.ndarray], columns: int) -> np.ndarray:
    """Pictures of one size, row by row."""
    rows = [np.concatenate(cells[at : at + columns], 1) for at in range(0, len(cells), columns)]
    return np.concatenate(rows)


def at_height(picture: np.ndarray, height: int) -> np.ndarray:
    """Scaled, its shape kept."""
    width = round(picture.shape[1] * height / picture.shape[0])
    return np.array(Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS))


def save(path: Path, picture: np.ndarray) -> None:
    """As the best JPEG that is small enough."""
    for quality in (90, 85, 80, 70, 60, 50):
        Image.fromarray(picture).save(path, quality=quality, optimize=True, progressive=True)
        if path.stat().st_size <= MAX_BYTES:
            break
    print(f"{path}: {picture.shape[1]} x {picture.shape[0]}, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
