"""A model looked at while it encodes pictures, so that 8 bits lose less of it.

In: a `Model` on the CPU and pictures. Out: a `Smoothing` for `quant.convert.quantize`. The encoder runs as it
always does, in f32; what is kept of a picture is one number for each channel behind a norm. Tracking is not
watched: what its norms see depends on videos and on what was clicked in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from masklet.errors import InputError
from masklet.io.image import read_image
from masklet.model.precision import EXACT, kept_exact
from masklet.pipeline.conventions import conventions_of
from masklet.pipeline.model import Model
from masklet.quant.smooth import EXPONENT, Smoothing, smoothing
from masklet.runtime.norms import normed_linears, watched
from masklet.runtime.session import Session

STAGE = "encode_image"

OnPicture = Callable[[int, int], None]


def calibrate(
    model: Model, pictures: Sequence[Any], exponent: float = EXPONENT, on_picture: OnPicture | None = None
) -> Smoothing:
    """Encode `pictures` (whatever `read_image` takes) and choose scales by what was seen.

    `on_picture` is called with the pictures done and in all. Raises InputError for a picture that cannot be
    read, for none at all, and for a model in which no norm is followed by layers in 8 bits.
    """
    if not pictures:
        raise InputError("There are no pictures to calibrate on; give some, 16 or more of what you segment.")
    stage = model.make_stage(STAGE, "fused")
    groups = [group for group in normed_linears(stage) if not _all_exact(group.matrices)]
    if not groups:
        raise InputError(
            f"{model.source} is a model of {model.family.title}, whose image encoder has no norm that is "
            "followed by linear layers in 8 bits, so there is nothing to calibrate. int8 takes it as it is."
        )
    session = Session(
        watched(stage, [group.norm for group in groups]), model.tensor, model.device, model.threads
    )
    largest = {group: np.zeros(1, np.float32) for group in groups}
    for done, picture in enumerate(pictures, 1):
        made = conventions_of(model.config).picture(read_image(picture), model.image_size)
        seen = session.run({"image": made})
        largest = {group: np.maximum(before, seen[group.norm].numpy()) for group, before in largest.items()}
        if on_picture is not None:
            on_picture(done, len(pictures))
    return smoothing(largest, model.tensor, len(pictures), exponent)


def _all_exact(keys: Sequence[str]) -> bool:
    """True when int8 leaves all layers with these matrices as they are."""
    return all(kept_exact([key], EXACT) for key in keys)
