"""Checkpoints of other layouts, seen through Meta's SAM 2 keys, which all of masklet uses; SAM's network has
the same keys where it has the same parts.

In: an open checkpoint. Out: `Tensors`: names and shapes in canonical keys, and their values, which stay in
the file until they are asked for. The layout is told by the tensors' names, or by the format of the file.
Knows nothing about sizes, versions or networks: whether a model's tensors are complete is for its family to
check. What a map does not know keeps its own name, so that this check reports it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from masklet.errors import TensorMismatchError, UnknownFormatError
from masklet.families import sam3cpp
from masklet.families.short_names import lengthened
from masklet.io.checkpoints import Checkpoint
from masklet.io.tensor_table import BLOCKS, quoted

__all__ = ["Tensors", "canonical"]

META, TRANSFORMERS, SAM3CPP, SHORT = "meta", "transformers", "sam3.cpp", "short"

_Table = Mapping[tuple[str, str], Mapping[str, str]]  # (prefix of theirs, of ours) -> their name -> our key
_Rule = tuple[re.Pattern[str], str]

_FLOATS = ("f32", "f16", "bf16", "f64", *BLOCKS)

# Hugging Face transformers: `Sam2Model`, and `Sam2VideoModel`, which the published files hold
# (facebook/sam2-hiera-*, facebook/sam2.1-hiera-*). Its own loader renames nothing for them.
#   left, its names     # an index, * weight or bias, (a|b) either of them
#   right, Meta's keys  {} each of these in order, {row} one tensor for each of a table's _POINT_TYPES rows
# Two names may stand for one key if their values are equal: transformers has the Fourier matrix twice.
_POINT_TYPES = 4  # background, foreground, two corners of a box
_TRANSFORMERS: _Table = {
    ("vision_encoder.backbone.", "image_encoder.trunk."): {
        "(pos_embed|pos_embed_window)": "{}",
        "patch_embed.projection.*": "patch_embed.proj.{}",
        "blocks.#.layer_norm#.*": "blocks.{}.norm{}.{}",
        "blocks.#.(attn.qkv|attn.proj|proj).*": "blocks.{}.{}.{}",
        "blocks.#.mlp.proj_in.*": "blocks.{}.mlp.layers.0.{}",
        "blocks.#.mlp.proj_out.*": "blocks.{}.mlp.layers.1.{}",
    },
    ("vision_encoder.neck.", "image_encoder.neck."): {
        "convs.#.*": "convs.{}.conv.{}",
    },
    ("prompt_encoder.", "sam_prompt_encoder."): {
        "shared_embedding.positional_embedding": "pe_layer.positional_encoding_gaussian_matrix",
        "point_embed.weight": "point_embeddings.{row}.weight",
        "(not_a_point_embed|no_mask_embed).weight": "{}.weight",
        "mask_embed.conv1.*": "mask_downscaling.0.{}",
        "mask_embed.layer_norm1.*": "mask_downscaling.1.{}",
        "mask_embed.conv2.*": "mask_downscaling.3.{}",
        "mask_embed.layer_norm2.*": "mask_downscaling.4.{}",
        "mask_embed.conv3.*": "mask_downscaling.6.{}",
    },
    ("mask_decoder.transformer.", "sam_mask_decoder.transformer."): {
        "layers.#.(self_attn|cross_attn_token_to_image).(q|k|v)_proj.*": "layers.{}.{}.{}_proj.{}",
        "layers.#.(self_attn|cross_attn_token_to_image).o_proj.*": "layers.{}.{}.out_proj.{}",
        "layers.#.cross_attn_image_to_token.(q|k|v)_proj.*": "layers.{}.cross_attn_image_to_token.{}_proj.{}",
        "layers.#.cross_attn_image_to_token.o_proj.*": "layers.{}.cross_attn_image_to_token.out_proj.{}",
        "layers.#.layer_norm#.*": "layers.{}.norm{}.{}",
        "layers.#.mlp.proj_in.*": "layers.{}.mlp.layers.0.{}",
        "layers.#.mlp.proj_out.*": "layers.{}.mlp.layers.1.{}",
        "final_attn_token_to_image.(q|k|v)_proj.*": "final_attn_token_to_image.{}_proj.{}",
        "final_attn_token_to_image.o_proj.*": "final_attn_token_to_image.out_proj.{}",
        "layer_norm_final_attn.*": "norm_final_attn.{}",
    },
    ("mask_decoder.", "sam_mask_decoder."): {
        "(iou_token|mask_tokens|obj_score_token).weight": "{}.weight",
        "(conv_s0|conv_s1).*": "{}.{}",
        "upscale_conv1.*": "output_upscaling.0.{}",
        "upscale_layer_norm.*": "output_upscaling.1.{}",
        "upscale_conv2.*": "output_upscaling.3.{}",
        "output_hypernetworks_mlps.#.proj_in.*": "output_hypernetworks_mlps.{}.layers.0.{}",
        "output_hypernetworks_mlps.#.layers.0.*": "output_hypernetworks_mlps.{}.layers.1.{}",
        "output_hypernetworks_mlps.#.proj_out.*": "output_hypernetworks_mlps.{}.layers.2.{}",
        "(iou_prediction_head|pred_obj_score_head).proj_in.*": "{}.layers.0.{}",
        "(iou_prediction_head|pred_obj_score_head).layers.0.*": "{}.layers.1.{}",
        "(iou_prediction_head|pred_obj_score_head).proj_out.*": "{}.layers.2.{}",
    },
    ("memory_attention.", "memory_attention."): {
        "layers.#.(self_attn|cross_attn_image).(q|k|v)_proj.*": "layers.{}.{}.{}_proj.{}",
        "layers.#.(self_attn|cross_attn_image).o_proj.*": "layers.{}.{}.out_proj.{}",
        "layers.#.(linear1|linear2).*": "layers.{}.{}.{}",
        "layers.#.layer_norm#.*": "layers.{}.norm{}.{}",
        "layer_norm.*": "norm.{}",
    },
    ("memory_encoder.", "memory_encoder."): {
        "mask_downsampler.layers.0.conv.*": "mask_downsampler.encoder.0.{}",
        "mask_downsampler.layers.0.layer_norm.*": "mask_downsampler.encoder.1.{}",
        "mask_downsampler.layers.1.conv.*": "mask_downsampler.encoder.3.{}",
        "mask_downsampler.layers.1.layer_norm.*": "mask_downsampler.encoder.4.{}",
        "mask_downsampler.layers.2.conv.*": "mask_downsampler.encoder.6.{}",
        "mask_downsampler.layers.2.layer_norm.*": "mask_downsampler.encoder.7.{}",
        "mask_downsampler.layers.3.conv.*": "mask_downsampler.encoder.9.{}",
        "mask_downsampler.layers.3.layer_norm.*": "mask_downsampler.encoder.10.{}",
        "mask_downsampler.final_conv.*": "mask_downsampler.encoder.12.{}",
        "feature_projection.*": "pix_feat_proj.{}",
        "memory_fuser.layers.#.scale": "fuser.layers.{}.gamma",
        "memory_fuser.layers.#.depthwise_conv.*": "fuser.layers.{}.dwconv.{}",
        "memory_fuser.layers.#.layer_norm.*": "fuser.layers.{}.norm.{}",
        "memory_fuser.layers.#.pointwise_conv#.*": "fuser.layers.{}.pwconv{}.{}",
        "projection.*": "out_proj.{}",
    },
    ("", ""): {
        "shared_image_embedding.positional_embedding": (
            "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
        ),
        "no_memory_embedding": "no_mem_embed",
        "no_memory_positional_encoding": "no_mem_pos_enc",
        "memory_temporal_positional_encoding": "maskmem_tpos_enc",
        "no_object_pointer": "no_obj_ptr",
        "occlusion_spatial_embedding_parameter": "no_obj_embed_spatial",
        "mask_downsample.*": "mask_downsample.{}",
        "object_pointer_proj.proj_in.*": "obj_ptr_proj.layers.0.{}",
        "object_pointer_proj.layers.0.*": "obj_ptr_proj.layers.1.{}",
        "object_pointer_proj.proj_out.*": "obj_ptr_proj.layers.2.{}",
        "temporal_positional_encoding_projection_layer.*": "obj_ptr_tpos_proj.{}",
    },
}


# Meta's SAM and SAM 2 have one decoder under two names. In these maps, ** is any rest of a name.
_SAM: _Table = {
    ("image_encoder.", "image_encoder."): {
        "blocks.#.mlp.lin1.*": "blocks.{}.mlp.layers.0.{}",
        "blocks.#.mlp.lin2.*": "blocks.{}.mlp.layers.1.{}",
    },
    ("mask_decoder.", "sam_mask_decoder."): {
        "transformer.layers.#.mlp.lin1.*": "transformer.layers.{}.mlp.layers.0.{}",
        "transformer.layers.#.mlp.lin2.*": "transformer.layers.{}.mlp.layers.1.{}",
        "**": "{}",
    },
    ("prompt_encoder.", "sam_prompt_encoder."): {"**": "{}"},
}

# Hugging Face transformers' `SamModel` (facebook/sam-vit-*). What it has like SAM 2 is taken from there.
_TRANSFORMERS_SAM: _Table = {
    ("vision_encoder.", "image_encoder."): {
        "pos_embed": "pos_embed",
        "patch_embed.projection.*": "patch_embed.proj.{}",
        "layers.#.layer_norm#.*": "blocks.{}.norm{}.{}",
        "layers.#.attn.(qkv|proj).*": "blocks.{}.attn.{}.{}",
        "layers.#.attn.(rel_pos_h|rel_pos_w)": "blocks.{}.attn.{}",
        "layers.#.mlp.lin1.*": "blocks.{}.mlp.layers.0.{}",
        "layers.#.mlp.lin2.*": "blocks.{}.mlp.layers.1.{}",
        "neck.conv1.weight": "neck.0.weight",
        "neck.layer_norm1.*": "neck.1.{}",
        "neck.conv2.weight": "neck.2.weight",
        "neck.layer_norm2.*": "neck.3.{}",
    },
    ("prompt_encoder.", "sam_prompt_encoder."): {
        "point_embed.#.weight": "point_embeddings.{}.weight",
    },
    ("mask_decoder.transformer.", "sam_mask_decoder.transformer."): {
        "layers.#.(self_attn|cross_attn_token_to_image).out_proj.*": "layers.{}.{}.out_proj.{}",
        "layers.#.cross_attn_image_to_token.out_proj.*": "layers.{}.cross_attn_image_to_token.out_proj.{}",
        "layers.#.mlp.lin1.*": "layers.{}.mlp.layers.0.{}",
        "layers.#.mlp.lin2.*": "layers.{}.mlp.layers.1.{}",
        "final_attn_token_to_image.out_proj.*": "final_attn_token_to_image.out_proj.{}",
    },
}
# What a layout's files have in their names, whose it is, and its maps, of which the first that fits counts.
# Hiera's blocks tell SAM 2 from transformers' EdgeTAM and SAM 3, whose decoders have the same names.
_LAYOUTS: tuple[tuple[str, str, tuple[_Table, ...]], ...] = (
    ("vision_encoder.backbone.blocks.", TRANSFORMERS, (_TRANSFORMERS,)),
    ("vision_encoder.layers.", TRANSFORMERS, (_TRANSFORMERS_SAM, _TRANSFORMERS)),
    ("image_encoder.blocks.", META, (_SAM,)),
)


class _Source(NamedTuple):
    """Where a canonical tensor lies in the file: a tensor, or one row of it. A constant is in no file."""

    name: str
    shape: tuple[int, ...]  # of the canonical tensor
    row: int | None = None
    constant: float | None = None


@dataclass(frozen=True, eq=False)
class Tensors:
    """What the rest of masklet sees of a checkpoint: tensors under canonical keys.

    Safe to read from several threads, as long as the checkpoint is open.
    """

    shapes: Mapping[str, tuple[int, ...]]
    """Canonical key -> shape; tensors that the map does not know stand under their names in the file."""
    layout: str
    """Whose names the file has: "meta", "transformers", "sam3.cpp", or "short" for masklet's own."""
    _checkpoint: Checkpoint = field(repr=False)
    _sources: Mapping[str, _Source] = field(repr=False)

    def array(self, key: str) -> np.ndarray:
        """The tensor in float32, read-only; a view of the mapped file where it is stored so.

        Raises `TensorMismatchError` for a key that is not there, `UnknownFormatError` for stored values that
        are no weights.
        """
        if key not in self._sources:
            close = ", ".join(map(quoted, difflib.get_close_matches(key, self._sources, n=3)))
            raise TensorMismatchError(
                f"{self._checkpoint.path}: no tensor {quoted(key)} among {len(self._sources)}"
                + (f"; close: {close}" if close else "")
            )
        return _read(self._checkpoint, self._sources[key])

    def stored(self, key: str) -> str | None:
        """The type that the file has the tensor in; None for a constant, which is in no file."""
        source = self._sources[key]
        return None if source.constant is not None else self._checkpoint.tensors[source.name].dtype

    def release_pages(self) -> None:
        """See `Checkpoint.release_pages`."""
        self._checkpoint.release_pages()


def canonical(checkpoint: Checkpoint) -> Tensors:
    """A checkpoint's tensors under canonical keys, whichever known layout it has.

    Raises `TensorMismatchError` where two tensors of the file stand for one key and differ.
    """
    layout, tables = _layout(checkpoint)
    rules = [rule for table in tables for rule in _rules(table)]
    sources: dict[str, _Source] = {}
    for name, info in checkpoint.tensors.items():
        for key, source in _sources(name, info.shape, layout, rules):
            if key in sources:
                _check_equal(checkpoint, key, sources[key], source)
            sources[key] = source
    shapes = {key: source.shape for key, source in sources.items()}
    return Tensors(MappingProxyType(shapes), layout, checkpoint, MappingProxyType(sources))


def _layout(checkpoint: Checkpoint) -> tuple[str, tuple[_Table, ...]]:
    """Whose names a file has, and the maps for them."""
    if checkpoint.format == "gguf":
        return SHORT, ()
    if checkpoint.format == "ggml":
        return SAM3CPP, (sam3cpp.TABLE,)
    for sign, layout, tables in _LAYOUTS:
        if any(name.startswith(sign) for name in checkpoint.tensors):
            return layout, tables
    return META, ()


def _rules(table: _Table) -> list[_Rule]:
    """The table's rows as patterns of whole names and templates of whole keys."""
    return [
        (_pattern(their_prefix + theirs), our_prefix + ours)
        for (their_prefix, our_prefix), rows in table.items()
        for theirs, ours in rows.items()
    ]


def _pattern(theirs: str) -> re.Pattern[str]:
    for sign, pattern in ((".", r"\."), ("#", "([0-9]{1,3})"), ("**", "(.+)"), ("*", "(weight|bias)")):
        theirs = theirs.replace(sign, pattern)
    return re.compile(theirs)


def _sources(
    name: str, shape: tuple[int, ...], layout: str, rules: list[_Rule]
) -> Iterator[tuple[str, _Source]]:
    """The keys that a tensor of the file stands for, its own name if no rule fits; and what comes with it."""
    for key, row in _translate(lengthened(name) if layout == SHORT else name, shape, rules):
        yield key, _Source(name, shape if row is None else (1, *shape[1:]), row)
        if layout == SAM3CPP:
            for beside, its_shape, constant in sam3cpp.unmerged(key, shape):
                yield beside, _Source(name, its_shape, None, constant)


def _translate(name: str, shape: tuple[int, ...], rules: list[_Rule]) -> Iterator[tuple[str, int | None]]:
    """The keys that a name stands for, with the row of the tensor where that is not all of it."""
    for pattern, template in rules:
        match = pattern.fullmatch(name)
        if match and "{row}" not in template:
            yield template.format(*match.groups()), None
            return
        if match and len(shape) == 2 and shape[0] == _POINT_TYPES:
            for row in range(shape[0]):
                yield template.format(*match.groups(), row=row), row
            return
    yield name, None


def _check_equal(checkpoint: Checkpoint, key: str, first: _Source, second: _Source) -> None:
    if not np.array_equal(_read(checkpoint, first), _read(checkpoint, second), equal_nan=True):
        raise TensorMismatchError(
            f"{checkpoint.path}: {quoted(first.name)} and {quoted(second.name)} both stand for {quoted(key)}"
            " and differ; masklet has one tensor for it. Use the file as published, or save the model again"
            " with both of them equal."
        )


def _read(checkpoint: Checkpoint, source: _Source) -> np.ndarray:
    if source.constant is not None:
        return np.full(source.shape, source.constant, np.float32)
    dtype = checkpoint.tensors[source.name].dtype
    if dtype not in _FLOATS:
        raise UnknownFormatError(
            f"{checkpoint.path}: tensor {quoted(source.name)} is stored as {dtype}; weights are read from"
            f" {', '.join(_FLOATS)}. Save the model again in one of these."
        )
    array = checkpoint.array(source.name).astype(np.float32, copy=False)
    array.flags.writeable = False
    return array if source.row is None else array[source.row : source.row + 1]
