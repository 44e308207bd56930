"""What a training run does when: sizes, clips, learning rate. Numbers and pure functions.

In: the share of the run's time that is over, 0 to 1. Out: the phase and the learning rate. Time rather than
steps, so that a run of any length on any machine is a whole one. Knows nothing about networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

SIZE_STEP = 128  # pixels; windows of the trunk divide its grids at multiples of it
WARM_UP = 0.02  # of the time
LEAST = 0.0015  # share of the picture of the smallest object, as scenes have them
FLOOR = 0.01  # of the peak, at the end
CYCLE_PEAK = 0.6  # a further run over trained weights starts at this much of the last run's peak


@dataclass(frozen=True)
class Phase:
    """A stretch of a run."""

    until: float  # share of the time
    small: bool  # pictures of half the side: a quarter of the work
    clips: float  # share of the steps
    least: float  # share of the picture that an object must take to be prompted
    plain: float  # share of the pictures that are plain ones
    likeness: float  # weight of the similarity of places
    prompts: bool = True  # without, the trunk learns alone


FROM_SCRATCH = (
    Phase(0.22, small=True, clips=0.0, least=0.012, plain=0.1, likeness=1.0, prompts=False),
    Phase(0.50, small=True, clips=0.0, least=0.012, plain=0.2, likeness=0.3),
    Phase(0.72, small=True, clips=0.4, least=0.006, plain=0.1, likeness=0.1),
    Phase(1.00, small=False, clips=0.35, least=LEAST, plain=0.05, likeness=0.1),
)
FURTHER = (
    Phase(0.65, small=True, clips=0.3, least=0.003, plain=0.05, likeness=0.2),
    Phase(1.00, small=False, clips=0.35, least=LEAST, plain=0.05, likeness=0.1),
)


def phase_at(progress: float, cycle: int) -> Phase:
    """The phase at a share of the time; cycle 0 starts from random weights."""
    phases = FURTHER if cycle else FROM_SCRATCH
    return next((phase for phase in phases if progress < phase.until), phases[-1])


def phase_size(phase: Phase, size: int) -> int:
    """The side of the pictures of a phase, in pixels."""
    return max(SIZE_STEP, math.ceil(size / 2 / SIZE_STEP) * SIZE_STEP) if phase.small else size


def learning_rate(progress: float, cycle: int, peak: float) -> float:
    """Warm-up, then half a cosine; lower for further cycles."""
    peak *= CYCLE_PEAK**cycle
    if progress < WARM_UP:
        return peak * max(progress / WARM_UP, 1e-3)
    share = min(1.0, (progress - WARM_UP) / (1 - WARM_UP))
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * share)))
