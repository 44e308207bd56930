"""What the families of models want pictures, prompts and masks to be like, beyond their networks.

In: a model's configuration. Out: its `Conventions`: what stands before and behind the stages for pictures, as
functions and in words. A new family adds its line to `CONVENTIONS`. Knows nothing about networks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from masklet.families.family import Config
from masklet.pipeline import preprocess, prompts
from masklet.pipeline.postprocess import resize_logits
from masklet.types import Candidates, Prompts


@dataclass(frozen=True)
class Conventions:
    """What stands before and behind a family's stages.

    `picture` makes the model input (1, 3, S, S) of (H, W, 3) uint8 RGB and S. `prompts` takes what users
    give, as `make_prompts` does. `choose` gives logits (B, M, h, w) and predicted IoU (B, M) of the
    candidates that are kept, for several (M = 3) or one. `covered` says how much (h, w) a picture (H, W)
    covers of a square with a given side. `uncover` leaves of logits (..., h, w), for a picture's (H, W) and
    S, the part that the picture covers. Low-resolution logits are returned within +-`logit_limit`. `words`
    says the same in the manifest of an export.
    """

    picture: Callable[[np.ndarray, int], np.ndarray]
    prompts: Callable[..., Prompts]
    choose: Callable[[Candidates, bool], tuple[np.ndarray, np.ndarray]]
    covered: Callable[[tuple[int, ...], int], tuple[int, int]]
    uncover: Callable[[np.ndarray, tuple[int, int], int], np.ndarray]
    logit_limit: float
    words: Mapping[str, Any]


def conventions_of(config: Config) -> Conventions:
    """The conventions of a model's family."""
    return CONVENTIONS[config.family]


def _whole(logits: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    return logits


def _unpadded(logits: np.ndarray, size_hw: tuple[int, int], image_size: int) -> np.ndarray:
    """The picture's part of the model input, at the input's size: SAM enlarges in two steps."""
    height, width = preprocess.padded_size(size_hw, image_size)
    return resize_logits(logits, (image_size, image_size))[..., :height, :width]


_PIXELS = {
    "input": "(1, 3, S, S) float32, channels red, green, blue, S = image_size",
    "value": "(pixel / 255 - mean) / std",
    "mean": [round(float(value), 6) for value in preprocess.MEAN],
    "std": [round(float(value), 6) for value in preprocess.STD],
}
_LABELS = {str(label): meaning for label, meaning in prompts.LABELS.items()}
_SEVERAL = "candidates 1, 2, 3 with their iou"

LIMIT = 32.0
STRETCHED = Conventions(
    picture=preprocess.image_input,
    prompts=prompts.make_prompts,
    choose=prompts.choose_masks,
    covered=lambda size_hw, side: (side, side),
    uncover=_whole,
    logit_limit=LIMIT,
    words={
        "token_order": (
            "Image features (stride4, stride8, embedding, and dense from encode_mask) list their tokens in "
            "nested blocks, not row by row. That is a detail of these files: hand the tensors on as they "
            "are. Mask inputs and logits are row by row."
        ),
        "preprocessing": {
            **_PIXELS,
            "resize": "to S x S (stretched, not padded), bilinear, antialiased, not rounded",
        },
        "prompts": {
            "coords": "(x * S / width, y * S / height) for x, y in pixels of the picture",
            "labels": _LABELS,
            "order": (
                "for each object a box's two corners, then points, then one padding point (0, 0); "
                "with neither box nor points no padding point, N = 0"
            ),
        },
        "masks": {
            "threshold": 0.0,
            "to_picture": (
                "logits resized to the picture (bilinear, not antialiased, pixels are areas), > threshold"
            ),
            "several": _SEVERAL,
            "one": (
                "candidate 0 if it is stable: the count of logits > stability_delta is at least "
                "stability_threshold times the count of logits > -stability_delta, or the latter is 0; else "
                "the one of 1, 2, 3 with the highest iou"
            ),
            "stability_delta": prompts.STABILITY_DELTA,
            "stability_threshold": prompts.STABILITY_THRESHOLD,
            "feeding_back": f"clip the chosen logits to +-{LIMIT:g} before they go into encode_mask",
        },
    },
)
PADDED = Conventions(
    picture=preprocess.padded_input,
    prompts=prompts.make_padded_prompts,
    choose=prompts.choose_by_token,
    covered=preprocess.padded_size,
    uncover=_unpadded,
    logit_limit=float("inf"),
    words={
        "token_order": "Image features and dense from encode_mask list their tokens row by row.",
        "preprocessing": {
            **_PIXELS,
            "resize": (
                "longer side to S by Pillow's bilinear on bytes, the other side to h or w = floor(side * S / "
                "longer side + 0.5); then zeros right and below up to S x S, after normalising"
            ),
        },
        "prompts": {
            "coords": "(x * w / width, y * h / height) for x, y in pixels of the picture, w x h as resized",
            "labels": _LABELS,
            "order": (
                "for each object its points, then a box's two corners; without a box one padding point "
                "(0, 0) behind the points; with neither box nor points no padding point, N = 0"
            ),
        },
        "masks": {
            "threshold": 0.0,
            "to_picture": (
                "logits resized to S x S, cut to the first h rows and w columns, resized to the picture "
                "(both bilinear, not antialiased, pixels are areas), > threshold"
            ),
            "several": _SEVERAL,
            "one": "candidate 0",
            "feeding_back": "the chosen logits as they are go into encode_mask",
        },
    },
)
CONVENTIONS = {"sam1": PADDED, "sam2": STRETCHED, "edgetam": STRETCHED}
