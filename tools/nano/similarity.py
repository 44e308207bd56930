"""A second lesson for the trunk: places of one object look alike, places of others don't.

In: features of pictures and the objects' coverages. Out: a loss. Its head serves training alone and is not
exported. Knows nothing about prompts.

The decoder's own enlarging layers make a vector of each cell at stride 4. Those of a few cells of an object
are compared with those of all cells of the picture: what is like it should be its mask. All objects teach at
once, without the long way through the prompts, so that a trunk learns in minutes what the decoder alone does
not teach it in an hour. As in embeddings for instances (Fathi et al. 2017, arXiv:1703.10277).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from losses import FOCAL_WEIGHT, dice_loss, focal_loss
from sam2.modeling.sam.mask_decoder import MaskDecoder
from torch import nn

CHANNELS = 32
SEEDS = 3  # cells of each object
LIMITS = (1.0, 1.0, 0.3)  # of the root mean square of levels of strides 4, 8, 16
FIRST_SCALE, FIRST_BIAS = 10.0, -4.0  # from cosines to logits


class Similarity(nn.Module):
    """Projects the decoder's cells and turns their cosines into logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(width // 8 + width, 64), nn.GELU(), nn.Linear(64, CHANNELS))
        self.scale = nn.Parameter(torch.tensor(FIRST_SCALE))
        self.bias = nn.Parameter(torch.tensor(FIRST_BIAS))

    def forward(
        self, decoder: MaskDecoder, levels: list[torch.Tensor], target: torch.Tensor, owners: torch.Tensor
    ) -> torch.Tensor:
        """Loss of levels of strides 4, 8, 16 (B, C, H, W), coverages (O, h, w) in 0..1 and the
        picture of each object, (O,)."""
        cells = self.project(_enlarged(decoder, levels))
        cells = F.normalize(cells.float(), dim=-1).flatten(1, 2)  # (B, h * w, c)
        inside = target.flatten(1)
        seeds = torch.multinomial(inside**4 + 1e-9 * inside + 1e-12, SEEDS, replacement=True)
        cosines = torch.einsum("okc,onc->okn", cells[owners[:, None], seeds], cells[owners])
        logits = (self.scale * cosines + self.bias).view(*seeds.shape, *target.shape[1:])
        truth = target[:, None]
        present = (inside.amax(dim=1) > 0).float()[:, None]
        loss = FOCAL_WEIGHT * focal_loss(logits, truth) + dice_loss(logits, truth)
        return (loss * present).sum() / (SEEDS * present.sum().clamp(min=1)) + _excess(levels)


def _enlarged(decoder: MaskDecoder, levels: list[torch.Tensor]) -> torch.Tensor:
    """(B, h, w, C / 8 + C) at stride 4: the decoder's enlarged embedding, and the embedding itself."""
    fine, middle, embedding = levels
    first, norm, activation, second, _ = decoder.output_upscaling
    normed = F.layer_norm(embedding.permute(0, 2, 3, 1), embedding.shape[1:2]).permute(0, 3, 1, 2)
    enlarged = activation(second(activation(norm(first(normed) + middle))) + fine)
    coarse = F.interpolate(normed, scale_factor=4.0, mode="bilinear")
    return torch.cat([enlarged, coarse], dim=1).permute(0, 2, 3, 1)


def _excess(levels: list[torch.Tensor]) -> torch.Tensor:
    """How far levels are above their limits: cosines don't care, but the decoder does."""
    sizes = [
        level.float().square().mean().sqrt() / limit for level, limit in zip(levels, LIMITS, strict=True)
    ]
    return torch.stack([size.log().clamp(min=0).square() for size in sizes]).sum()
