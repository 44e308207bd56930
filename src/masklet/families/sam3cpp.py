"""sam3.cpp's names of tensors, in its .ggml files of SAM 2, SAM 2.1 and EdgeTAM, as tables for `keymaps`.

In: canonical keys and shapes that the table gave. Out: what such files lack. Knows nothing about files.

EdgeTAM's trunk is stored merged: each convolution with its batch norm, and the three branches of a mixer as
one convolution. Networks here have the published parts. So a merged kernel is read as the first branch's, its
bias as that of the norm behind it, and the rest are constants that change nothing: norms that do nothing, and
a second branch that takes away the third, which is the input itself. Names and merging after that project's
converters (github.com/PABannier/sam3.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator

from masklet.model.derive import BATCH_NORM_EPS

# The notation is that of `keymaps`; ** is any rest of a name.
_MERGED = {
    "stem.conv#": "stem.conv{}",
    "stages.#.blocks.#.tm": "stages_{}.blocks.{}.token_mixer.conv",
    "stages.#.blocks.#.cm.conv#": "stages_{}.blocks.{}.channel_mixer.conv{}",
    "stages.#.ds.pre.tm": "stages_{}.downsample.pre_block.token_mixer.conv",
    "stages.#.ds.pre.cm.conv#": "stages_{}.downsample.pre_block.channel_mixer.conv{}",
    "stages.#.ds.(spatial|channel)": "stages_{}.downsample.{}_downsample",
    "stages.#.ds.ffn.conv#": "stages_{}.downsample.ffn.conv{}",
}
TABLE = {
    ("", ""): {
        "mem_enc.tpos_enc": "maskmem_tpos_enc",
        "trk_mask_ds.*": "mask_downsample.{}",
    },
    ("hiera.", "image_encoder.trunk."): {
        "patch_embed.*": "patch_embed.proj.{}",
        "blocks.#.mlp.fc1.*": "blocks.{}.mlp.layers.0.{}",
        "blocks.#.mlp.fc2.*": "blocks.{}.mlp.layers.1.{}",
        "**": "{}",
    },
    ("repvit.", "image_encoder.trunk.body."): {
        "stages.#.blocks.#.se.(fc1|fc2).*": "stages_{}.blocks.{}.se.{}.{}",
        **{f"{theirs}.weight": f"{ours}.c.weight" for theirs, ours in _MERGED.items()},
        **{f"{theirs}.bias": f"{ours}.bn.bias" for theirs, ours in _MERGED.items()},
    },
    ("fpn.", "image_encoder.neck."): {
        "convs.#.*": "convs.{}.conv.{}",
    },
    ("sam_pe.", "sam_prompt_encoder."): {
        "pe_gaussian": "pe_layer.positional_encoding_gaussian_matrix",
        "mask_ds.**": "mask_downscaling.{}",
        "**": "{}",
    },
    ("sam_dec.", "sam_mask_decoder."): {
        "twoway.#.sa.**": "transformer.layers.{}.self_attn.{}",
        "twoway.#.mlp.lin1.*": "transformer.layers.{}.mlp.layers.0.{}",
        "twoway.#.mlp.lin2.*": "transformer.layers.{}.mlp.layers.1.{}",
        "twoway.**": "transformer.layers.{}",
        "final_attn.**": "transformer.final_attn_token_to_image.{}",
        "final_norm.*": "transformer.norm_final_attn.{}",
        "upscale.**": "output_upscaling.{}",
        "hyper.**": "output_hypernetworks_mlps.{}",
        "**": "{}",
    },
    ("mem_attn.", "memory_attention."): {
        "layers.#.sa.**": "layers.{}.self_attn.{}",
        "layers.#.ca.**": "layers.{}.cross_attn_image.{}",
        "**": "{}",
    },
    ("mem_enc.", "memory_encoder."): {
        "ds.**": "mask_downsampler.encoder.{}",
        "fuser.**": "fuser.layers.{}",
        "**": "{}",
    },
    ("perceiver.", "spatial_perceiver."): {
        "layers.#.ca.(q|kv|out).weight": "layers.{}.attn.to_{}.weight",
        "layers.#.ca.**": "layers.{}.attn.{}",
        "layers.#.sa.(q|kv|out).weight": "layers.{}.self_attn.to_{}.weight",
        "layers.#.sa.**": "layers.{}.self_attn.{}",
        "layers.#.ff.norm.*": "layers.{}.ff.0.{}",
        "layers.#.ff.fc1.weight": "layers.{}.ff.1.weight",
        "layers.#.ff.fc2.weight": "layers.{}.ff.3.weight",
        "layers.#.sa_ff.norm.*": "layers.{}.self_ff.0.{}",
        "layers.#.sa_ff.fc1.weight": "layers.{}.self_ff.1.weight",
        "layers.#.sa_ff.fc2.weight": "layers.{}.self_ff.3.weight",
        "**": "{}",
    },
}

_NO_NORM = {"weight": 1.0, "running_mean": 0.0, "running_var": 1 - BATCH_NORM_EPS}


def unmerged(key: str, shape: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...], float]]:
    """The constant tensors (key, shape, value) that come with a merged convolution; none with other keys."""
    layer, end, _ = key.rpartition(".c.weight")
    if not end or len(shape) != 4:
        return
    channels = shape[:1]
    for name, value in _NO_NORM.items():
        yield f"{layer}.bn.{name}", channels, value
    if layer.endswith(".token_mixer.conv"):
        yield f"{layer}1.c.weight", (*channels, 1, 1, 1), -1.0
        for name, value in {**_NO_NORM, "bias": 0.0}.items():
            yield f"{layer}1.bn.{name}", channels, value
