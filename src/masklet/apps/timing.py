"""A model's steps on one picture, timed.

In: a model. Out: functions that run a step and give its seconds. The picture is synthetic, always the same,
and in memory, so that no decoder and no disk takes part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masklet import Model

PICTURE_HW = (720, 1280)  # pixels
CLICKS_PER_ENCODING = 5


@dataclass(frozen=True)
class Steps:
    """Encoding the picture, and the click of that number on it: each call gives its seconds."""

    encode: Callable[[], float]
    click: Callable[[int], float]


def steps_of(model: Model) -> Steps:
    """The steps of a model. The first call of each makes the sessions."""
    from masklet import ImagePredictor
    from masklet.testing import synthetic_scene

    scene = synthetic_scene(size_hw=PICTURE_HW)
    predictor = ImagePredictor(model)

    def click(index: int) -> None:
        point = scene.points_xy[index % len(scene.points_xy)]
        predictor.predict(point_coords=point[None], point_labels=[1], multimask_output=False)

    return Steps(
        lambda: seconds(lambda: predictor.set_image(scene.image)), lambda index: seconds(lambda: click(index))
    )


def seconds(step: Callable[[], object]) -> float:
    """How long a call takes."""
    before = time.perf_counter()
    step()
    return time.perf_counter() - before
