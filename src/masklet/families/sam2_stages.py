"""SAM 2's network and the stages that it is run in; each function records one stage's graph.

In: a `Sam2Config`, an input size and a recorder. Out: the graph's inputs and outputs, named. Assembly only:
the maths is in `model`. Feature maps travel between stages as tokens in the orders of `stage_orders`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir
from onnxscript import nn

from masklet.families.sam2 import Sam2Config
from masklet.model.layers import Ops, Parameter
from masklet.model.mask_decoder import MASKS, MaskDecoder
from masklet.model.neck import ImageEncoder, Pyramid
from masklet.model.prompt_encoder import PromptEncoder
from masklet.model.tokens import stage_orders

Outputs = dict[str, ir.Value]


class Sam2(nn.Module):
    """All parts that a picture needs, under Meta's keys."""

    def __init__(self, config: Sam2Config) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(config.trunk, config.d_model)
        self.sam_prompt_encoder = PromptEncoder(config.d_model)
        self.sam_mask_decoder = MaskDecoder(config.d_model)
        self.no_mem_embed = Parameter([1, 1, config.d_model])


def encode_image(op: Ops, net: Sam2, config: Sam2Config, size: int) -> Outputs:
    """image (1, 3, S, S), normalised -> features of strides 4, 8, 16; `embedding`: 16 with no_mem_embed."""
    image = _input(op, "image", (1, 3, size, size))
    orders, block = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    decoder = net.sam_mask_decoder
    pyramid = net.image_encoder(op, image, orders, block, (decoder.conv_s0, decoder.conv_s1))
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
    """Features of one image, sparse (B, N, C), dense (1 or B, 1 or T, C) -> four candidates per prompt."""
    orders, block = stage_orders(config.trunk, size, nested=op.dialect != "plain")
    width, counts = config.d_model, [order.grid_hw[0] * order.grid_hw[1] for order in orders]
    features = Pyramid(
        _input(op, "stride4", (1, counts[0], width // 8)),
        _input(op, "stride8", (1, counts[1], width // 4)),
        _input(op, "embedding", (1, counts[2], width)),
    )
    sparse = _input(op, "sparse", ("B", "N", width))
    dense = _input(op, "dense", ("D", "P", width))
    gaussian = net.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    position = op.weight(
        "dense_position", gaussian, grid=list(orders[2].grid_hw), block=block // 4 if block > 4 else 0
    )
    decoded = net.sam_mask_decoder(op, features, sparse, dense, position, orders)
    return {
        "logits": _shaped(decoded.logits, "B", MASKS, *orders[0].grid_hw),
        "iou": _shaped(decoded.iou, "B", MASKS),
        "object_score": _shaped(decoded.object_score, "B", 1),
        "tokens": _shaped(decoded.tokens, "B", MASKS, width),
    }


STAGES: dict[str, Callable[[Ops, Sam2, Sam2Config, int], Outputs]] = {
    stage.__name__: stage for stage in (encode_image, encode_points, encode_mask, decode_masks)
}


def _input(
    op: Ops, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    return op.builder.input(name, dtype, ir.Shape(shape))


def _shaped(value: ir.Value, *shape: int | str) -> ir.Value:
    """State the shape of an output where inference loses it."""
    value.shape = ir.Shape(shape)
    return value
