"""SAM 2's network and the stages that it is run in; each function records one stage's graph.

In: a `Sam2Config`, an input size and a recorder. Out: the graph's inputs and outputs, named. Assembly only:
the maths is in `model`. Feature maps travel between stages as tokens in the orders of `stage_orders`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.families.family import Config
from masklet.families.sam2 import Sam2Config
from masklet.families.shared_stages import PROMPT_STAGES, Outputs, stage_input, stage_output
from masklet.model.config import STAGES as TRUNK_STAGES
from masklet.model.hiera import Hiera
from masklet.model.layers import MLP, Ops, Parameter, Weights
from masklet.model.mask_decoder import ScoringMaskDecoder
from masklet.model.memory_attention import MemoryAttention, MemoryTokens
from masklet.model.memory_encoder import MemoryEncoder
from masklet.model.neck import ImageEncoder, Pyramid
from masklet.model.prompt_encoder import PromptEncoder
from masklet.model.tokens import TokenOrder, stage_orders

MEMORIES = 7  # of which frames' ages are told apart: conditioning frames, and six before the current one


class TrackingConfig(Config, Protocol):
    """What the configurations of the families have in common that share these stages."""

    @property
    def mlp_dim(self) -> int: ...

    @property
    def memory_layers(self) -> int: ...


class TrackingNet(nn.Module):
    """All parts behind an image encoder, under Meta's keys."""

    def __init__(self, config: TrackingConfig, image_encoder: ImageEncoder) -> None:
        super().__init__()
        self.image_encoder = image_encoder
        self.sam_prompt_encoder = PromptEncoder(config.d_model)
        self.sam_mask_decoder = ScoringMaskDecoder(config.d_model, config.mlp_dim)
        self.no_mem_embed = Parameter([1, 1, config.d_model])

        width, memory = config.d_model, config.memory_dim
        self.memory_attention = MemoryAttention(width, memory, config.mlp_dim, config.memory_layers)
        self.memory_encoder = MemoryEncoder(width, memory)
        self.maskmem_tpos_enc = Parameter([MEMORIES, 1, 1, memory])
        self.no_obj_ptr = Parameter([1, width])
        self.obj_ptr_proj = MLP((width, width, width, width), "relu")
        self.mask_downsample = Weights(weight=[1, 1, 4, 4], bias=[1])
        if config.version == "2.1":
            self.obj_ptr_tpos_proj = Weights(weight=[memory, width], bias=[memory])
            self.no_obj_embed_spatial = Parameter([1, memory])


class Sam2(TrackingNet):
    """All parts, under Meta's keys."""

    def __init__(self, config: Sam2Config) -> None:
        dims = [config.trunk.embed_dim << stage for stage in range(TRUNK_STAGES)]
        super().__init__(config, ImageEncoder(Hiera(config.trunk), dims, config.d_model))


def encode_image(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """image (1, 3, S, S), normalised -> features of strides 4, 8, 16; `embedding`: 16 with no_mem_embed."""
    image = stage_input(op, "image", (1, 3, size, size))
    orders, block = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    pyramid = net.image_encoder(op, image, orders, block, net.sam_mask_decoder.high_res)
    return image_features(op, net, pyramid, orders)


def image_features(op: Ops, net: TrackingNet, pyramid: Pyramid, orders: tuple[TokenOrder, ...]) -> Outputs:
    """The outputs of `encode_image`."""
    embedding = op.Add(pyramid.stride16, op.weight("same", net.no_mem_embed))
    op.tap("sam_mask_decoder.conv_s0", pyramid.stride4, (1, *orders[0].grid_hw, -1), perm=[0, 3, 1, 2])
    op.tap("sam_mask_decoder.conv_s1", pyramid.stride8, (1, *orders[1].grid_hw, -1), perm=[0, 3, 1, 2])
    op.tap("image_embed", embedding, (1, *orders[2].grid_hw, -1), perm=[0, 3, 1, 2])
    return {
        "stride4": pyramid.stride4,
        "stride8": pyramid.stride8,
        "stride16": pyramid.stride16,
        "embedding": embedding,
    }


def begin_frame(op: Ops, net: TrackingNet, config: TrackingConfig, size: int) -> Outputs:
    """stride16 of `encode_image` -> what tracking needs of a frame, whatever the object: `frame_tokens` and
    `frame_queries` for `attend_memory`, `frame_pixels` for `encode_memory`."""
    nested = op.dialect != "plain"
    order, block = config.orders(size, nested)[2], config.block(size, nested)
    features = stage_input(op, "stride16", (1, len(order.slots), config.d_model))
    tokens, queries = net.memory_attention.begin(op, features, order, block)
    return {
        "frame_tokens": tokens,
        "frame_queries": queries,
        "frame_pixels": net.memory_encoder.begin(op, features, order),
    }


def attend_memory(op: Ops, net: TrackingNet, config: TrackingConfig, size: int) -> Outputs:
    """A frame and what B objects remember -> its embedding, conditioned on it, one for each object.

    memories (B, F, N, M) and slots (B, F), their rows in the table of ages; pointers (B, Q,
    C) and distances (B, Q) in time, in units of the farthest (2.1 alone has this input).
    """
    nested = op.dialect != "plain"
    order, block, width = config.orders(size, nested)[2], config.block(size, nested), config.d_model
    count, places = len(order.slots), config.memory_places(size)
    tokens = stage_input(op, "frame_tokens", (1, count, width))
    queries = stage_input(op, "frame_queries", (1, count, width))
    memories = stage_input(op, "memories", ("B", "F", places.count, config.memory_dim))
    slots = stage_input(op, "slots", ("B", "F"), ir.DataType.INT64)
    pointers = stage_input(op, "pointers", ("B", "Q", width))
    timed = config.version == "2.1"
    distances = stage_input(op, "distances", ("B", "Q")) if timed else None

    sequence = MemoryTokens(net.maskmem_tpos_enc, net.obj_ptr_tpos_proj if timed else None, width)
    memory = sequence(op, memories, slots, pointers, distances, places)
    per_object = op.Concat(op.Shape(memories, start=0, end=1), op.constant(np.array([1, 1])), axis=0)
    tokens, queries = op.Expand(tokens, per_object), op.Expand(queries, per_object)
    embedding = net.memory_attention.end(op, tokens, queries, memory, order, block)
    return {"embedding": stage_output(embedding, "B", count, width)}


def encode_memory(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """frame_pixels, mask_logits (B, 1, S / 4, S / 4), binary (1,), object_score (B, 1) ->
    memories.

    memories (B, T, M), raster order. `binary` cuts the mask at zero instead of softening it.
    """
    memories = masked_features(op, net, config, size)
    return {"memories": stage_output(memories, "B", config.memory_places(size).count, config.memory_dim)}


def masked_features(op: Ops, net: TrackingNet, config: TrackingConfig, size: int) -> ir.Value:
    """Inputs of `encode_memory` -> features of a frame and a mask (B, T, M), raster order."""
    grid = config.orders(size, nested=op.dialect != "plain")[2].grid_hw
    pixels = stage_input(op, "frame_pixels", (1, grid[0] * grid[1], config.d_model))
    logits = stage_input(op, "mask_logits", ("B", 1, size // 4, size // 4))
    binary = stage_input(op, "binary", (1,), ir.DataType.BOOL)
    score = stage_input(op, "object_score", ("B", 1))
    memories = net.memory_encoder(op, pixels, logits, binary, grid)
    if config.version == "2.1":
        absent = op.Unsqueeze(op.LessOrEqual(score, op.constant(0.0)), op.constant(np.array([-1])))
        mark = op.Where(absent, op.weight("same", net.no_obj_embed_spatial), op.constant(0.0))
        memories = op.Add(memories, mark)
    return memories


def point_to_object(op: Ops, net: TrackingNet, config: TrackingConfig, size: int) -> Outputs:
    """mask_token (B, C) of the kept masks, object_score (B, 1) -> pointers (B, C); one of its own for absent
    objects."""
    tokens = stage_input(op, "mask_token", ("B", config.d_model))
    score = stage_input(op, "object_score", ("B", 1))
    there = op.Greater(score, op.constant(0.0))
    return {"pointers": op.Where(there, net.obj_ptr_proj(op, tokens), op.weight("same", net.no_obj_ptr))}


def shrink_mask(op: Ops, net: TrackingNet, config: TrackingConfig, size: int) -> Outputs:
    """mask_prompt (B, 1, S, S) of zeros and ones -> mask (B, 1, S / 4, S / 4) for `encode_mask`."""
    mask = stage_input(op, "mask_prompt", ("B", 1, size, size))
    weight, bias = (
        op.weight("same", part) for part in (net.mask_downsample.weight, net.mask_downsample.bias)
    )
    return {"mask": op.Conv(mask, weight, bias, strides=[4, 4], kernel_shape=[4, 4])}


NETWORK = Sam2
STAGES: dict[str, Callable[[Ops, Any, Any, int], Outputs]] = {
    stage.__name__: stage
    for stage in (
        encode_image,
        *PROMPT_STAGES,
        begin_frame,
        attend_memory,
        encode_memory,
        point_to_object,
        shrink_mask,
    )
}
