"""SAM 2's network and the stages that it is run in; each function records one stage's graph.

In: a `Sam2Config`, an input size and a recorder. Out: the graph's inputs and outputs, named. Assembly only:
the maths is in `model`. Feature maps travel between stages as tokens in the orders of `stage_orders`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.families.sam2 import Sam2Config
from masklet.model.layers import MLP, Ops, Parameter, Weights
from masklet.model.mask_decoder import MASKS, MaskDecoder
from masklet.model.memory_attention import MemoryAttention, MemoryTokens
from masklet.model.memory_encoder import MemoryEncoder
from masklet.model.neck import ImageEncoder, Pyramid
from masklet.model.prompt_encoder import PromptEncoder
from masklet.model.tokens import stage_orders

Outputs = dict[str, ir.Value]
MEMORIES = 7  # of which frames' ages are told apart: conditioning frames, and six before the current one


class Sam2(nn.Module):
    """All parts, under Meta's keys."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(config.trunk, config.d_model)
        self.sam_prompt_encoder = PromptEncoder(config.d_model)
        self.sam_mask_decoder = MaskDecoder(config.d_model, config.mlp_dim)
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


def encode_image(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """image (1, 3, S, S), normalised -> features of strides 4, 8, 16; `embedding`: 16 with no_mem_embed."""
    image = _input(op, "image", (1, 3, size, size))
    orders, block = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    pyramid = net.image_encoder(op, image, orders, block, net.sam_mask_decoder.high_res)
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


def encode_points(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """coords (B, N, 2) in pixels of the model input, labels (B, N) in -1..3 -> sparse (B, N, C).

    `dense` (1, 1, C) stands for "no mask" and broadcasts over the image tokens.
    """
    coords = _input(op, "coords", ("B", "N", 2))
    labels = _input(op, "labels", ("B", "N"), ir.DataType.INT64)
    sparse = net.sam_prompt_encoder.points(op, coords, labels, size)
    op.tap("sam_prompt_encoder.sparse", sparse)
    return {"sparse": sparse, "dense": op.reshape(net.sam_prompt_encoder.no_mask(op), (1, 1, config.d_model))}


def encode_mask(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """mask (B, 1, S / 4, S / 4) logits -> dense (B, T, C)."""
    mask = _input(op, "mask", ("B", 1, size // 4, size // 4))
    orders, _ = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    dense = net.sam_prompt_encoder.mask(op, mask, orders)
    op.tap("sam_prompt_encoder.dense", dense, (-1, *orders[2].grid_hw, config.d_model), perm=[0, 3, 1, 2])
    return {"dense": dense}


def decode_masks(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """Features of one image, `embedding` (1 or B, T, C), sparse (B, N, C), dense (1 or B, 1 or T, C) -> four
    candidates per prompt."""
    orders, block = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    width, counts = config.d_model, [order.grid_hw[0] * order.grid_hw[1] for order in orders]
    features = Pyramid(
        _input(op, "stride4", (1, counts[0], width // 8)),
        _input(op, "stride8", (1, counts[1], width // 4)),
        _input(op, "embedding", ("E", counts[2], width)),
    )
    sparse = _input(op, "sparse", ("B", "N", width))
    dense = _input(op, "dense", ("D", "P", width))
    gaussian = net.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    position = op.weight("dense_position", gaussian, grid=list(orders[2].grid_hw), block=_third(block))
    decoded = net.sam_mask_decoder(op, features, sparse, dense, position, orders)
    return {
        "logits": _shaped(decoded.logits, "B", MASKS, *orders[0].grid_hw),
        "iou": _shaped(decoded.iou, "B", MASKS),
        "object_score": _shaped(decoded.object_score, "B", 1),
        "tokens": _shaped(decoded.tokens, "B", MASKS, width),
    }


def begin_frame(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """stride16 of `encode_image` -> what tracking needs of a frame, whatever the object: `frame_tokens` and
    `frame_queries` for `attend_memory`, `frame_pixels` for `encode_memory`."""
    orders, block = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    order = orders[2]
    features = _input(op, "stride16", (1, len(order.slots), config.d_model))
    tokens, queries = net.memory_attention.begin(op, features, order, _third(block))
    return {
        "frame_tokens": tokens,
        "frame_queries": queries,
        "frame_pixels": net.memory_encoder.begin(op, features, order),
    }


def attend_memory(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """A frame and what B objects remember -> its embedding, conditioned on it, one for each object.

    memories (B, F, T, M) in raster order and slots (B, F), their rows in the table of ages; pointers (B, Q,
    C) and distances (B, Q) in time, in units of the farthest (2.1 alone has this input).
    """
    orders, block = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    order, width = orders[2], config.d_model
    count = len(order.slots)
    tokens = _input(op, "frame_tokens", (1, count, width))
    queries = _input(op, "frame_queries", (1, count, width))
    memories = _input(op, "memories", ("B", "F", count, config.memory_dim))
    slots = _input(op, "slots", ("B", "F"), ir.DataType.INT64)
    pointers = _input(op, "pointers", ("B", "Q", width))
    timed = config.version == "2.1"
    distances = _input(op, "distances", ("B", "Q")) if timed else None

    sequence = MemoryTokens(net.maskmem_tpos_enc, net.obj_ptr_tpos_proj if timed else None, width)
    memory = sequence(op, memories, slots, pointers, distances, order.grid_hw)
    per_object = op.Concat(op.Shape(memories, start=0, end=1), op.constant(np.array([1, 1])), axis=0)
    tokens, queries = op.Expand(tokens, per_object), op.Expand(queries, per_object)
    embedding = net.memory_attention.end(op, tokens, queries, memory, order, _third(block))
    return {"embedding": _shaped(embedding, "B", count, width)}


def encode_memory(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """frame_pixels, mask_logits (B, 1, S / 4, S / 4), binary (1,), object_score (B, 1) ->
    memories.

    memories (B, T, M), raster order. `binary` cuts the mask at zero instead of softening it.
    """
    orders, _ = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    grid = orders[2].grid_hw
    pixels = _input(op, "frame_pixels", (1, grid[0] * grid[1], config.d_model))
    logits = _input(op, "mask_logits", ("B", 1, size // 4, size // 4))
    binary = _input(op, "binary", (1,), ir.DataType.BOOL)
    score = _input(op, "object_score", ("B", 1))
    memories = net.memory_encoder(op, pixels, logits, binary, grid)
    if config.version == "2.1":
        absent = op.Unsqueeze(op.LessOrEqual(score, op.constant(0.0)), op.constant(np.array([-1])))
        mark = op.Where(absent, op.weight("same", net.no_obj_embed_spatial), op.constant(0.0))
        memories = op.Add(memories, mark)
    return {"memories": _shaped(memories, "B", grid[0] * grid[1], config.memory_dim)}


def point_to_object(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """mask_token (B, C) of the kept masks, object_score (B, 1) -> pointers (B, C); one of its own for absent
    objects."""
    tokens = _input(op, "mask_token", ("B", config.d_model))
    score = _input(op, "object_score", ("B", 1))
    there = op.Greater(score, op.constant(0.0))
    return {"pointers": op.Where(there, net.obj_ptr_proj(op, tokens), op.weight("same", net.no_obj_ptr))}


def shrink_mask(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """mask_prompt (B, 1, S, S) of zeros and ones -> mask (B, 1, S / 4, S / 4) for `encode_mask`."""
    mask = _input(op, "mask_prompt", ("B", 1, size, size))
    weight, bias = (
        op.weight("same", part) for part in (net.mask_downsample.weight, net.mask_downsample.bias)
    )
    return {"mask": op.Conv(mask, weight, bias, strides=[4, 4], kernel_shape=[4, 4])}


STAGES: dict[str, Callable[[Ops, Sam2, Sam2Config, int], Outputs]] = {
    stage.__name__: stage
    for stage in (
        encode_image,
        encode_points,
        encode_mask,
        decode_masks,
        begin_frame,
        attend_memory,
        encode_memory,
        point_to_object,
        shrink_mask,
    )
}


def _third(block: int) -> int:
    """The block of the third stage's nested order; 0 is raster order."""
    return block // 4 if block > 4 else 0


def _input(
    op: Ops, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    return op.builder.input(name, dtype, ir.Shape(shape))


def _shaped(value: ir.Value, *shape: int | str) -> ir.Value:
    """State the shape of an output where inference loses it."""
    value.shape = ir.Shape(shape)
    return value
