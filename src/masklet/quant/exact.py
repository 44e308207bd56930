"""Which type each tensor of a model is stored in, and why not the one that was asked for.

In: canonical keys, shapes and a type. Out: a `Choice` for each. Knows nothing about files or values.

The table was made with q4_0: one group of layers at a time in it, the others in f32, and how far masks moved.
What moved them most and is small is kept. `docs/quantisation.md` has the numbers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from masklet.errors import InputError
from masklet.io.tensor_table import BLOCKS, quoted

TYPES = ("f16", "bf16", "q8_0", "q4_1", "q4_0")
EXACT: Mapping[str, str] = {
    "*.positional_encoding_gaussian_matrix": "frequencies, which positions multiply",
    "*.pos_embed*": "position tables, added to every picture",
    "*.rel_pos_?": "position tables, added to every attention score",
    "maskmem_tpos_enc": "positions in time, added to every memory",
    "no_*": "stand-ins for what is not there, added to every place",
    "sam_prompt_encoder.*embed*": "kinds of prompts, added to every one of them",
    "*_token.weight": "the decoder's own tokens, which scores are read from",
    "*_tokens.weight": "the decoder's own tokens, which masks are read from",
    "spatial_perceiver.latents*": "the queries that a memory is read with",
    "image_encoder.trunk.blocks.[01].*": "small, and everything behind them sees their error",
    "*.transformer.layers.1.cross_attn_image_to_token.*": "the last to change the features that masks are of",
    "*.transformer.final_attn_token_to_image.*": "the last to change the tokens that masks are drawn with",
    "*.output_hypernetworks_mlps.*": "their outputs times the features are the masks",
}
"""Patterns of the tensors that stay in f16 when blocks or bf16 are asked for, and why."""
NO_BLOCK_FITS = "rows that no block fits, whose length is no multiple of 32"


@dataclass(frozen=True)
class Choice:
    """What a tensor is stored as; `reason` tells why it is not the type that was asked for."""

    dtype: str
    reason: str = ""


def choose(shapes: Mapping[str, tuple[int, ...]], dtype: str, keep: Sequence[str] = ()) -> dict[str, Choice]:
    """A choice for every tensor; `keep` are patterns of keys that shall stay exact as well.

    Raises `InputError` for another type, and for a pattern that fits no key.
    """
    if dtype not in TYPES:
        raise InputError(f"the type is {dtype!r}; allowed are {', '.join(TYPES)}")
    for pattern in keep:
        if not any(fnmatchcase(key, pattern) for key in shapes):
            _refuse(pattern, shapes)
    return {key: _choice(key, shape, dtype, keep) for key, shape in shapes.items()}


def _choice(key: str, shape: tuple[int, ...], dtype: str, keep: Sequence[str]) -> Choice:
    if len(shape) < 2:
        return Choice("f32", "one-dimensional: biases, norms and scales, few and added everywhere")
    if any(fnmatchcase(key, pattern) for pattern in keep):
        return Choice("f32" if dtype == "f16" else "f16", "asked for")
    if dtype == "f16":
        return Choice(dtype)
    for pattern, reason in EXACT.items():
        if fnmatchcase(key, pattern):
            return Choice("f16", reason)
    if dtype in BLOCKS and shape[-1] % BLOCKS[dtype].length:
        return Choice("f16", NO_BLOCK_FITS)
    return Choice(dtype)


def _refuse(pattern: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    close = difflib.get_close_matches(pattern, shapes, n=3)
    hint = ", ".join(map(quoted, close)) or "for example 'memory_attention.*'"
    raise InputError(
        f"the pattern {quoted(pattern)} fits none of the {len(shapes)} tensors. It must fit a whole name,"
        f" with * for any characters; close: {hint}. `masklet info --tensors` lists the names"
    )
