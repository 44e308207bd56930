"""The references' automatic mask generators, for any input size, without torchvision's compiled operators.

In: a model of `reference` or `reference_sam1`, a generator's settings, pictures. Out: its records. torch,
sam2 and segment_anything are imported inside functions: importing this file needs numpy only.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

import reference

if TYPE_CHECKING:
    import torch
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
    from sam2.modeling.sam2_base import SAM2Base
    from segment_anything import SamAutomaticMaskGenerator
    from segment_anything.modeling import Sam


def generator(model: SAM2Base, **settings: Any) -> SAM2AutomaticMaskGenerator:
    """The generator with these settings. Its predictor hard-codes the feature sizes of 1024; here they
    follow."""
    reference.prepare_torchvision()
    _provide_nms()
    from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated
        made = SAM2AutomaticMaskGenerator(model, **settings)
    made.predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return made


def sam1_generator(model: Sam, **settings: Any) -> SamAutomaticMaskGenerator:
    """SAM's own generator with these settings."""
    reference.prepare_torchvision()
    _provide_nms()
    from segment_anything import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(model, **settings)


@cache
def _provide_nms() -> None:
    """torchvision's `nms` as its documentation says: from the best score down, a box goes when its IoU with
    one that stays is over the threshold."""
    import torch
    import torchvision

    def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
        order = scores.sort(stable=True, descending=True)[1].tolist()
        kept: list[int] = []
        overlaps = torchvision.ops.box_iou(boxes, boxes)
        for index in order:
            if not (overlaps[index, kept] > threshold).any():
                kept.append(index)
        return torch.tensor(kept, dtype=torch.int64)

    torch.library.impl("torchvision::nms", "CPU", nms)
    torchvision.ops.boxes._assert_has_ops = lambda: None
