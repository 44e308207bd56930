"""SAM's network and the stages that it is run in; each function records one stage's graph.

In: a `Sam1Config`, an input size and a recorder. Out: the graph's inputs and outputs, named. Assembly only:
the maths is in `model`. The embedding's tokens are in raster order.
"""

from __future__ import annotations

from onnxscript import nn

from masklet.families.sam1 import Sam1Config
from masklet.families.shared_stages import PROMPT_STAGES, Outputs, stage_input, stage_output
from masklet.model.config import VIT_PATCH
from masklet.model.layers import Ops
from masklet.model.mask_decoder import MaskDecoder
from masklet.model.prompt_encoder import PromptEncoder
from masklet.model.vit import Vit


class Sam1(nn.Module):
    """All parts, under Meta's keys as `keymaps` unites them with SAM 2's."""

    def __init__(self, config: Sam1Config) -> None:
        super().__init__()
        self.image_encoder = Vit(config.trunk, config.d_model, config.image_size // VIT_PATCH)
        self.sam_prompt_encoder = PromptEncoder(config.d_model)
        self.sam_mask_decoder = MaskDecoder(config.d_model, config.mlp_dim)


def encode_image(op: Ops, net: Sam1, config: Sam1Config, size: int) -> Outputs:
    """image (1, 3, S, S), normalised, then padded with zeros -> `embedding` (1, T, C)."""
    image = stage_input(op, "image", (1, 3, size, size))
    grid = size // VIT_PATCH
    embedding = net.image_encoder(op, image, grid)
    op.tap("image_embed", embedding, (1, grid, grid, -1), perm=[0, 3, 1, 2])
    return {"embedding": stage_output(embedding, 1, grid * grid, config.d_model)}


NETWORK = Sam1
STAGES = {stage.__name__: stage for stage in (encode_image, *PROMPT_STAGES)}
