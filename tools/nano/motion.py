"""Smooth random motion: a generator and a number of frames in, positions, sizes and turns per frame out.

Knows nothing about pictures. Lengths are shares of the picture's side, angles radians, time frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Rng = np.random.Generator


@dataclass(frozen=True)
class Path:
    """Where something is and how it lies, per frame."""

    centre_xy: np.ndarray  # (F, 2)
    scale: np.ndarray  # (F,)
    turn: np.ndarray  # (F,)
    shear: np.ndarray  # (F,)


def random_path(rng: Rng, start_xy: np.ndarray, frames: int, leaves: bool) -> Path:
    """From standing still to fast; with `leaves` it may go out of the picture, else it turns back."""
    time = np.arange(frames)[:, None]
    speed = float(np.exp(rng.uniform(np.log(0.001), np.log(0.06))))
    way = rng.uniform(0, 2 * np.pi)
    velocity = speed * np.array([np.cos(way), np.sin(way)])
    bend = rng.normal(size=2) * speed * 0.06
    sway = _sway(rng, frames, 2) * rng.choice([0.0, 0.02, 0.06])
    centre = start_xy + velocity * time + 0.5 * bend * time**2 + sway
    if not leaves:
        centre = _turned_back(centre)
    growth = rng.normal() * 0.02 * time[:, 0] + _sway(rng, frames, 1)[:, 0] * rng.choice([0.0, 0.1])
    spin = rng.normal() * rng.choice([0.0, 0.02, 0.08]) * time[:, 0]
    return Path(
        centre_xy=centre,
        scale=np.exp(np.clip(growth, -0.7, 0.5)),
        turn=spin + _sway(rng, frames, 1)[:, 0] * rng.choice([0.0, 0.15]),
        shear=_sway(rng, frames, 1)[:, 0] * rng.choice([0.0, 0.15]),
    )


def meeting_path(rng: Rng, target: Path, frame: int) -> Path:
    """A straight way that meets the target in one frame, or a place to stand where it will be then."""
    time = np.arange(len(target.scale))[:, None] - frame
    way = rng.uniform(0, 2 * np.pi)
    velocity = (rng.uniform(0.04, 0.14) if rng.random() < 0.65 else 0.0) * np.array(
        [np.cos(way), np.sin(way)]
    )
    around = target.centre_xy[frame] + rng.normal(size=2) * 0.02
    return Path(around + velocity * time, *(np.full(len(time), value) for value in (1.0, 0.0, 0.0)))


def camera_path(rng: Rng, frames: int) -> np.ndarray:
    """Matrices (F, 3, 3) from the scene to the picture, in shares of the side: a slow pan, zoom and tilt."""
    path = random_path(rng, np.array([0.0, 0.0]), frames, leaves=True)
    weight = rng.choice([0.0, 0.15, 0.5])
    matrices = np.tile(np.eye(3), (frames, 1, 1))
    shake = rng.normal(size=(frames, 2)) * rng.choice([0.0, 0.003])
    for matrix, centre, scale, turn in zip(
        matrices,
        weight * path.centre_xy + shake,
        path.scale ** (weight / 2),
        0.3 * weight * path.turn,
        strict=True,
    ):
        cos, sin = scale * np.cos(turn), scale * np.sin(turn)
        linear = np.array([[cos, -sin], [sin, cos]])
        matrix[:2, :2] = linear
        matrix[:2, 2] = centre + 0.5 - linear @ [0.5, 0.5]
    return matrices


def _sway(rng: Rng, frames: int, channels: int) -> np.ndarray:
    """Smooth swinging (F, channels), about -1 to 1, 0 in frame 0."""
    time = np.arange(frames)[:, None]
    pace, phase = rng.uniform(0.15, 0.8, channels), rng.uniform(0, 2 * np.pi, channels)
    return np.sin(pace * time + phase) - np.sin(phase)


def _turned_back(centre_xy: np.ndarray) -> np.ndarray:
    """Positions folded back into the picture, as by a bounce near its border."""
    low, high = 0.05, 0.95
    folded = np.mod(centre_xy - low, 2 * (high - low))
    return low + np.minimum(folded, 2 * (high - low) - folded)
