"""A clip with moving objects: a `Stock` and a generator in, frames and exact masks per frame out.

Layers are drawn once; each frame costs one affine warp per layer. Objects may be hidden by others, by things
that cross their way, or leave the picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from canvas import Canvas, Layer, placed
from effects import Camera, Shadow, light_field, lit, motion_kernel
from layers import Bend, Stock, blended, recoloured, roomy
from motion import Path, camera_path, meeting_path, random_path
from stills import LEAST_CONTRAST, one_piece

Rng = np.random.Generator
LEAST_SEEN = 0.003  # of frame 0
_MOST_OBJECTS = 3
_ROOM = 0.35  # how far the backdrop goes beyond the picture, as a share of the side


@dataclass(frozen=True)
class Clip:
    """Frames (F, S, S, 3) uint8 and masks (F, N, S, S) bool of 1 to 3 objects, all seen in frame 0."""

    images: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class _Actor:
    layer: Layer
    path: Path
    owner: int  # 0: nobody asks for it
    sway: tuple[Bend, float, float] | None = None  # how it bends, radians per frame, phase

    def seen(self, frame: int) -> Layer:
        """Its look in a frame."""
        if self.sway is None:
            return self.layer
        bend, pace, phase = self.sway
        return Layer(bend.apply(self.layer.rgba, float(np.sin(pace * frame + phase))))


def compose_clip(rng: Rng, stock: Stock, size: int, frames: int) -> Clip:
    """A random clip. Draws again in the rare case that no object can be seen well in frame 0."""
    while True:
        clip = _attempt(rng, stock, size, frames)
        if clip is not None:
            return clip


def _attempt(rng: Rng, stock: Stock, size: int, frames: int) -> Clip | None:
    backdrop = stock.backdrop(rng, round(size * (1 + 2 * _ROOM)))
    view = camera_path(rng, frames)
    actors = _actors(rng, stock, size, frames)
    if rng.random() < 0.4:
        amount = rng.uniform(0.2, 0.8)
        actors = [replace(one, layer=blended(one.layer, backdrop, amount * rng.random())) for one in actors]
    shadow = Shadow.draw(rng) if rng.random() < 0.5 else None
    shutter = rng.uniform(0.1, 0.7) if rng.random() < 0.4 else 0.0
    field = light_field(rng, 1.0) if rng.random() < 0.6 else None
    flicker = 1 + rng.choice([0.0, 0.1]) * np.sin(rng.uniform(0.1, 0.6) * np.arange(frames))
    camera = Camera.draw(rng)
    images, owners = np.empty((frames, size, size, 3), np.uint8), np.empty((frames, size, size), np.uint8)
    tracked: list[int] = []
    for frame in range(frames):
        canvas = Canvas(_window(backdrop, view[frame], size))
        for actor in actors:
            matrix, blur = _pose(actor, view, frame, size, shutter)
            canvas.paint(actor.seen(frame), matrix, actor.owner, shadow, blur)
        if frame == 0:
            tracked = _clear(canvas)
            if not tracked:
                return None
        image = canvas.image if field is None else lit(canvas.image, field, flicker[frame])
        images[frame], owners[frame] = camera.take(rng, image), canvas.owner
    return Clip(images, np.stack([owners == owner for owner in tracked], 1))


def _clear(canvas: Canvas) -> list[int]:
    """Objects that can be seen well."""
    return [
        owner
        for owner, contrast in sorted(canvas.contrast.items())
        if contrast >= LEAST_CONTRAST and one_piece(canvas.owner == owner, LEAST_SEEN)
    ]


def _actors(rng: Rng, stock: Stock, size: int, frames: int) -> list[_Actor]:
    """From back to front: what is tracked among others like it, then what crosses in front of it."""
    count = int(rng.integers(1, _MOST_OBJECTS + 1))
    most = rng.uniform(0.3, 0.9 if count == 1 else 0.6)
    tracked: list[_Actor] = []
    others: list[_Actor] = []
    for owner in range(1, count + 1):
        layer = stock.thing(rng, size * float(np.exp(rng.uniform(np.log(0.12), np.log(most)))))
        path = random_path(rng, rng.uniform(0.15, 0.85, 2), frames, leaves=rng.random() < 0.3)
        sways = rng.random() < 0.3
        if sways:
            layer = Layer(roomy(layer.rgba))
        tracked.append(_Actor(layer, path, owner, _sway(rng, layer) if sways else None))
        if rng.random() < 0.3:  # one that looks the same or nearly so
            look = layer if rng.random() < 0.5 else recoloured(rng, layer)
            others.append(_Actor(look, random_path(rng, rng.uniform(0, 1, 2), frames, leaves=True), 0))
    for _ in range(int(rng.integers(0, 3))):
        layer = stock.thing(rng, size * rng.uniform(0.08, 0.4))
        others.append(_Actor(layer, random_path(rng, rng.uniform(0, 1, 2), frames, leaves=True), 0))
    actors = tracked + others
    actors = [actors[i] for i in rng.permutation(len(actors))]
    if frames > 3 and rng.random() < 0.6:
        target = tracked[int(rng.integers(count))]
        side = max(target.layer.rgba.shape[:2]) * rng.uniform(0.8, 2.2)
        crossing = meeting_path(rng, target.path, int(rng.integers(2, frames)))
        actors.append(_Actor(stock.thing(rng, min(max(side, 0.2 * size), 0.9 * size)), crossing, 0))
    return actors


def _sway(rng: Rng, layer: Layer) -> tuple[Bend, float, float]:
    """A bend to and fro: its shape, radians per frame and phase."""
    return Bend.draw(rng, layer.rgba.shape[:2]), rng.uniform(0.2, 1.0), rng.uniform(0, 2 * np.pi)


def _window(backdrop: np.ndarray, view: np.ndarray, size: int) -> np.ndarray:
    """The part of the backdrop that the camera sees."""
    inner = np.diag([size, size, 1.0]) @ view @ np.diag([1 / size, 1 / size, 1.0])
    inner = inner @ np.array([[1, 0, -_ROOM * size], [0, 1, -_ROOM * size], [0, 0, 1]])
    return cv2.warpAffine(backdrop, inner[:2], (size, size), borderMode=cv2.BORDER_REFLECT_101)


def _pose(
    actor: _Actor, view: np.ndarray, frame: int, size: int, shutter: float
) -> tuple[np.ndarray, np.ndarray | None]:
    """Where a layer goes in a frame, and the blur of its way to the next one."""
    path = actor.path
    own = placed(
        actor.layer, path.centre_xy[frame] * size, path.turn[frame], path.scale[frame], path.shear[frame]
    )
    matrix = np.diag([size, size, 1.0]) @ view[frame] @ np.diag([1 / size, 1 / size, 1.0]) @ own
    if not shutter or len(view) == 1:
        return matrix, None
    this, other = frame, frame + 1 if frame + 1 < len(view) else frame - 1
    step = [view[at] @ [*path.centre_xy[at], 1] for at in (this, other)]
    return matrix, motion_kernel(np.clip((step[1] - step[0])[:2] * size * shutter, -12, 12))
