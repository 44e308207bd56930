"""What all families share as it is: the stages of prompts and masks, and how a stage names its values.

In: a recorder, a network with SAM's prompt encoder and mask decoder, a configuration, an input size. Out: the
graph's inputs and outputs, named. Assembly only: the maths is in `model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from masklet.families.family import Config
from masklet.model.layers import Ops, scope
from masklet.model.mask_decoder import MASKS, DecodedValues, FinerFeatures, MaskDecoder
from masklet.model.prompt_encoder import PromptEncoder
from masklet.model.tokens import TokenOrder
from masklet.model.two_way import HEADS, SharedImage

Outputs = dict[str, ir.Value]
FINER = ("stride4", "stride8")  # names of the features that some decoders take besides the embedding


class Prompted(Protocol):
    """A network that answers prompts."""

    sam_prompt_encoder: PromptEncoder
    sam_mask_decoder: MaskDecoder


def encode_points(op: Ops, net: Prompted, config: Config, size: int) -> Outputs:
    """coords (B, N, 2) in pixels of the model input, labels (B, N) in -1..3 -> sparse (B, N, C).

    `dense` (1, 1, C) stands for "no mask" and broadcasts over the image tokens.
    """
    coords = stage_input(op, "coords", ("B", "N", 2))
    labels = stage_input(op, "labels", ("B", "N"), ir.DataType.INT64)
    sparse = net.sam_prompt_encoder.points(op, coords, labels, size)
    op.tap("sam_prompt_encoder.sparse", sparse)
    return {"sparse": sparse, "dense": op.reshape(net.sam_prompt_encoder.no_mask(op), (1, 1, config.d_model))}


def encode_mask(op: Ops, net: Prompted, config: Config, size: int) -> Outputs:
    """mask (B, 1, S / 4, S / 4) logits -> dense (B, T, C)."""
    mask = stage_input(op, "mask", ("B", 1, size // 4, size // 4))
    orders = _orders(op, config, size)
    dense = net.sam_prompt_encoder.mask(op, mask, orders)
    op.tap("sam_prompt_encoder.dense", dense, (-1, *orders[2].grid_hw, config.d_model), perm=[0, 3, 1, 2])
    return {"dense": dense}


def decode_masks(op: Ops, net: Prompted, config: Config, size: int) -> Outputs:
    """Features of one image, `embedding` (1 or B, T, C), sparse (B, N, C), dense (1 or B, 1 or T, C) -> four
    candidates per prompt."""
    orders, width = _orders(op, config, size), config.d_model
    finer = _finer(op, net, orders)
    embedding = stage_input(op, "embedding", ("E", len(orders[2].slots), width))
    sparse = stage_input(op, "sparse", ("B", "N", width))
    dense = stage_input(op, "dense", ("D", "P", width))
    position = _position(op, net, config, size)
    batch = op.Concat(op.Shape(sparse, start=0, end=1), op.constant(np.array([1, 1])), axis=0)
    image = op.Expand(op.Add(embedding, dense), batch)
    decoded = net.sam_mask_decoder(op, image, finer, sparse, position, orders)
    return _decoded(decoded, orders, width)


def decode_shared(op: Ops, net: Prompted, config: Config, size: int) -> Outputs:
    """Finer features and `share_image`'s outputs, sparse (B, N, C) -> as `decode_masks` without a mask."""
    orders, width = _orders(op, config, size), config.d_model
    finer = _finer(op, net, orders)
    image, shared = _shared(op, config, size)
    sparse = stage_input(op, "sparse", ("B", "N", width))
    position = _position(op, net, config, size)
    decoded = net.sam_mask_decoder(op, image, finer, sparse, position, orders, shared)
    return _decoded(decoded, orders, width)


def _decoded(decoded: DecodedValues, orders: tuple[TokenOrder, ...], width: int) -> Outputs:
    """What decoding gives."""
    outputs = {
        "logits": stage_output(decoded.logits, "B", MASKS, *orders[0].grid_hw),
        "iou": stage_output(decoded.iou, "B", MASKS),
    }
    if decoded.object_score is not None:
        outputs["object_score"] = stage_output(decoded.object_score, "B", 1)
    return {**outputs, "tokens": stage_output(decoded.tokens, "B", MASKS, width)}


def share_image(op: Ops, net: Prompted, config: Config, size: int) -> Outputs:
    """`embedding` (1, T, C) and dense (1, 1, C) -> what many prompts without a mask have in common on one
    image: `image` (1, T, C), and of its first attention `keys` (1, h, d, T), `values` (1, h, T, d) and
    `queries` (1, T, C / 2)."""
    embedding = stage_input(op, "embedding", (1, len(_orders(op, config, size)[2].slots), config.d_model))
    image = op.Add(embedding, stage_input(op, "dense", (1, 1, config.d_model)))
    position = _position(op, net, config, size)
    with scope(op, net.sam_mask_decoder):
        shared = net.sam_mask_decoder.transformer.share(op, image, position)
    return {"image": image, **vars(shared)}


def rate_prompts(op: Ops, net: Prompted, config: Config, size: int) -> Outputs:
    """`share_image`'s outputs, sparse (B, N, C) -> iou and tokens as of `decode_masks`, and `seen` (B, T,
    C), from which `draw_masks` makes their masks."""
    width, count = config.d_model, len(_orders(op, config, size)[2].slots)
    image, shared = _shared(op, config, size)
    sparse = stage_input(op, "sparse", ("B", "N", width))
    position = _position(op, net, config, size)
    with scope(op, net.sam_mask_decoder):
        rated = net.sam_mask_decoder.rate(op, sparse, image, position, shared)
    return {
        "iou": stage_output(rated.iou, "B", MASKS),
        "tokens": stage_output(rated.tokens, "B", MASKS, width),
        "seen": stage_output(rated.image, "B", count, width),
    }


def draw_masks(op: Ops, net: Prompted, config: Config, size: int) -> Outputs:
    """Finer features, `rate_prompts`' tokens and seen, kept (K,) -> logits (K, 4, S / 4, S / 4) of these
    prompts."""
    orders, width = _orders(op, config, size), config.d_model
    finer = _finer(op, net, orders)
    tokens = stage_input(op, "tokens", ("B", MASKS, width))
    seen = stage_input(op, "seen", ("B", len(orders[2].slots), width))
    kept = stage_input(op, "kept", ("K",), ir.DataType.INT64)
    tokens, seen = op.Gather(tokens, kept, axis=0), op.Gather(seen, kept, axis=0)
    with scope(op, net.sam_mask_decoder):
        logits = net.sam_mask_decoder.draw(op, tokens, seen, orders, finer)
    return {"logits": stage_output(logits, "K", MASKS, *orders[0].grid_hw)}


PROMPT_STAGES = (
    encode_points,
    encode_mask,
    decode_masks,
    share_image,
    decode_shared,
    rate_prompts,
    draw_masks,
)


def _shared(op: Ops, config: Config, size: int) -> tuple[ir.Value, SharedImage]:
    """The outputs of `share_image` as inputs."""
    width, count = config.d_model, len(_orders(op, config, size)[2].slots)
    image = stage_input(op, "image", (1, count, width))
    depth = width // 2 // HEADS
    return image, SharedImage(
        keys=stage_input(op, "keys", (1, HEADS, depth, count)),
        values=stage_input(op, "values", (1, HEADS, count, depth)),
        queries=stage_input(op, "queries", (1, count, width // 2)),
    )


def _orders(op: Ops, config: Config, size: int) -> tuple[TokenOrder, ...]:
    return config.orders(size, nested=op.dialect != "plain")


def _finer(op: Ops, net: Prompted, orders: tuple[TokenOrder, ...]) -> FinerFeatures | None:
    """The features of the levels between embedding and masks, where the decoder takes them."""
    levels = zip(FINER, orders, net.sam_mask_decoder.finer_channels, strict=False)
    features = [stage_input(op, name, (1, len(order.slots), channels)) for name, order, channels in levels]
    return FinerFeatures(*features) if features else None


def _position(op: Ops, net: Prompted, config: Config, size: int) -> ir.Value:
    """The image tokens' positions (T, C)."""
    gaussian = net.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    block = config.block(size, nested=op.dialect != "plain")
    grid = _orders(op, config, size)[2].grid_hw
    return op.weight("dense_position", gaussian, grid=list(grid), block=block)


def stage_input(
    op: Ops, name: str, shape: Sequence[int | str], dtype: ir.DataType = ir.DataType.FLOAT
) -> ir.Value:
    """An input of the stage's graph; names stand for sizes that differ from call to call."""
    return op.builder.input(name, dtype, ir.Shape(shape))


def stage_output(value: ir.Value, *shape: int | str) -> ir.Value:
    """State the shape of an output where inference loses it."""
    value.shape = ir.Shape(shape)
    return value
