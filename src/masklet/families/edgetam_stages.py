"""EdgeTAM's network and stages: SAM 2's, with another trunk, other places of memory tokens, and a perceiver
behind the memory encoder.

In: an `EdgeTamConfig`, an input size and a recorder. Out: the graph's inputs and outputs, named. Assembly
only: the maths is in `model`, what is not here in `sam2_stages`.
"""

from __future__ import annotations

from masklet.errors import InputError
from masklet.families import sam2_stages
from masklet.families.edgetam import EMBEDDING_STRIDE, TITLE, EdgeTamConfig
from masklet.families.sam2_stages import TrackingNet
from masklet.families.shared_stages import Outputs, stage_input, stage_output
from masklet.model.layers import Ops
from masklet.model.neck import ImageEncoder
from masklet.model.perceiver import Perceiver
from masklet.model.repvit import RepVit


class EdgeTam(TrackingNet):
    """All parts, under Meta's keys."""

    def __init__(self, config: EdgeTamConfig) -> None:
        trunk = config.trunk
        super().__init__(config, ImageEncoder(RepVit(trunk), trunk.embed_dims, config.d_model))
        self.spatial_perceiver = Perceiver(
            config.memory_dim, config.latents, config.latents_2d, config.perceiver_layers
        )


def encode_image(op: Ops, net: EdgeTam, config: EdgeTamConfig, size: int) -> Outputs:
    """As SAM 2's."""
    image = stage_input(op, "image", (1, 3, size, size))
    orders = config.orders(size, nested=op.dialect != "plain")
    pyramid = net.image_encoder(op, image, orders, 0, net.sam_mask_decoder.high_res)
    return sam2_stages.image_features(op, net, pyramid, orders)


def encode_memory(op: Ops, net: EdgeTam, config: EdgeTamConfig, size: int) -> Outputs:
    """As SAM 2's, but the perceiver's latents are the memories (B, N, M). Raises InputError for a size that
    its windows do not divide."""
    step = EMBEDDING_STRIDE * config.memory_places(size).grid_hw[0]
    if size % step:
        raise InputError(
            f"image_size is {size}; to track objects, {TITLE} needs a multiple of {step} pixels."
        )
    features = sam2_stages.masked_features(op, net, config, size)
    memories = net.spatial_perceiver(op, features, config.orders(size, nested=False)[2].grid_hw)
    return {"memories": stage_output(memories, "B", config.memory_places(size).count, config.memory_dim)}


NETWORK = EdgeTam
STAGES = {**sam2_stages.STAGES, "encode_image": encode_image, "encode_memory": encode_memory}
