"""Canonical keys as names that fit ggml's limit, word by word, and back.

In: a key or a short name. Out: the other. Knows nothing about networks; that all of their keys fit and come
back is tested.
"""

from __future__ import annotations

MAX_CHARACTERS = 63  # ggml's GGML_MAX_NAME, less the zero at the end

_WORDS = {
    "image_encoder": "img",
    "sam_prompt_encoder": "prompt",
    "positional_encoding_gaussian_matrix": "gaussian",
    "sam_mask_decoder": "dec",
    "cross_attn_token_to_image": "to_image",
    "cross_attn_image_to_token": "to_token",
    "final_attn_token_to_image": "final_to_image",
    "output_hypernetworks_mlps": "hyper",
    "memory_attention": "mem_attn",
    "memory_encoder": "mem_enc",
    "pre_block": "pre",
    "spatial_downsample": "spatial",
    "channel_downsample": "channel",
    "token_mixer": "tm",
    "channel_mixer": "cm",
    "running_mean": "mean",
    "running_var": "var",
}
_FULL_WORDS = {short: full for full, short in _WORDS.items()}


def shortened(key: str) -> str:
    """The short name of a key."""
    return ".".join(_WORDS.get(word, word) for word in key.split("."))


def lengthened(name: str) -> str:
    """The key of a short name."""
    return ".".join(_FULL_WORDS.get(word, word) for word in name.split("."))
