from __future__ import annotations

import pytest

from masklet.errors import InputError
from masklet.quant.exact import EXACT, NO_BLOCK_FITS, TYPES, Choice, choose
from masklet.testing import stand_in_weights, tiny_config, tiny_edgetam_config, tiny_sam1_config

SHAPES = {
    "memory_attention.layers.0.linear1.weight": (64, 32),
    "memory_attention.layers.0.linear1.bias": (64,),
    "sam_mask_decoder.conv_s0.weight": (8, 32, 1, 1),
    "image_encoder.trunk.pos_embed": (1, 32, 7, 32),
    "image_encoder.trunk.blocks.1.mlp.layers.0.weight": (32, 32),
    "image_encoder.trunk.blocks.10.mlp.layers.0.weight": (32, 32),
    "image_encoder.trunk.patch_embed.proj.weight": (32, 3, 7, 32),
    "sam_mask_decoder.transformer.layers.0.cross_attn_image_to_token.q_proj.weight": (32, 64),
    "sam_mask_decoder.transformer.layers.1.cross_attn_image_to_token.q_proj.weight": (32, 64),
    "sam_mask_decoder.mask_tokens.weight": (4, 32),
}


def types(dtype: str, *keep: str) -> list[str]:
    return [choice.dtype for choice in choose(SHAPES, dtype, keep).values()]


def test_types_of_a_network() -> None:
    assert types("q8_0") == ["q8_0", "f32", "f16", "f16", "f16", "q8_0", "q8_0", "q8_0", "f16", "f16"]
    assert types("q4_0") == [name.replace("q8_0", "q4_0") for name in types("q8_0")]
    assert types("bf16") == ["bf16", "f32", "bf16", "f16", "f16", *["bf16"] * 3, "f16", "f16"]
    assert types("f16") == ["f16", "f32", *["f16"] * 8]


def test_every_exception_has_a_reason() -> None:
    choices = choose(SHAPES, "q4_1")
    assert choices["memory_attention.layers.0.linear1.weight"] == Choice("q4_1")
    assert choices["sam_mask_decoder.conv_s0.weight"] == Choice("f16", NO_BLOCK_FITS)
    assert all(bool(choice.reason) == (choice.dtype != "q4_1") for choice in choices.values())


def test_what_is_kept() -> None:
    assert types("q8_0", "memory_attention.*")[0] == "f16"
    assert types("f16", "memory_attention.*")[:3] == ["f32", "f32", "f16"]
    assert types("bf16", "*.linear?.weight", "*.conv_s0.*")[:3] == ["f16", "f32", "f16"]
    assert choose(SHAPES, "q8_0", ["mem*"])["memory_attention.layers.0.linear1.weight"].reason == "asked for"


def test_patterns_that_fit_nothing() -> None:
    message = r"'linear1' fits none of the 10 tensors\. .* whole name, with \* .* `masklet info --tensors`"
    with pytest.raises(InputError, match=message):
        choose(SHAPES, "q8_0", ["memory_attention.*", "linear1"])
    with pytest.raises(InputError, match=r"close: 'sam_mask_decoder\.conv_s0\.weight'"):
        choose(SHAPES, "q8_0", ["sam_mask_decoder.conv_s1.weight"])


def test_types_that_are_not_known() -> None:
    with pytest.raises(InputError, match="'q5_k'; allowed are f16, bf16, q8_0, q4_1, q4_0"):
        choose(SHAPES, "q5_k")
    assert set(TYPES) == {"f16", "bf16", "q8_0", "q4_1", "q4_0"}


def test_every_row_of_the_table_fits_a_published_tensor() -> None:
    shapes = {
        key: array.shape
        for config in (tiny_config(), tiny_sam1_config(), tiny_edgetam_config())
        for key, array in stand_in_weights(config).items()
    }
    reasons = {choice.reason for choice in choose(shapes, "bf16").values()}
    assert set(EXACT.values()) <= reasons
