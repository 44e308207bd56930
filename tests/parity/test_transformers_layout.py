"""The key map of transformers' files, proved against transformers: its models, filled through the map with
Meta's tensors, answer as Meta's; what they save reads back as Meta's tensors, bit by bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference

from masklet import load
from masklet.families import sam2
from masklet.families.keymaps import Tensors, canonical
from masklet.io.checkpoints import open_checkpoint
from masklet.testing import Scene, synthetic_scene

pytest.importorskip("sam2")
torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

TINY = ("sam2.1_hiera_tiny", "sam2_hiera_tiny")
SIZE = 256  # pixels; the names don't depend on it
FRAMES = 4

# Two torch programs for the same network: 1e-5 of the values' spread is their f32 rounding. A wrong name of
# equal shape changes everything: weights are lively.
IMAGE_TOLERANCE = 1e-4
# Memories are rounded to bfloat16: where the two stand on either side of a tie, one element moves by 2^-8.
VIDEO_TOLERANCE = 2e-3


# ----------------------------------------------------------------------------------------------------- models


def transformers_model(variant: str, kind: str = "Sam2VideoModel", size: int = SIZE) -> Any:
    """`Sam2Model` or `Sam2VideoModel` of a published size, its weights not yet filled."""
    reference.prepare_torchvision()  # transformers imports torchvision
    import transformers

    config = sam2.PRESETS[variant]
    trunk, newer = config.trunk, config.version == "2.1"
    widths = [trunk.embed_dim * 2**stage for stage in range(4)]
    backbone = transformers.Sam2HieraDetConfig(
        hidden_size=trunk.embed_dim,
        image_size=[size, size],
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[trunk.num_heads * 2**stage for stage in range(4)],
        blocks_per_stage=list(trunk.stages),
        global_attention_blocks=list(trunk.global_att_blocks),
        window_size_per_stage=list(trunk.window_spec),
        window_positional_embedding_background_size=list(trunk.window_pos_embed_bkg_spatial_size),
    )
    vision = transformers.Sam2VisionConfig(
        backbone_config=backbone,
        backbone_channel_list=widths[::-1],
        backbone_feature_sizes=[[size // stride] * 2 for stride in (4, 8, 16)],
    )
    if kind == "Sam2Model":
        prompts = transformers.Sam2PromptEncoderConfig(image_size=size)
        settings = transformers.Sam2Config(vision_config=vision, prompt_encoder_config=prompts)
    else:
        settings = transformers.Sam2VideoConfig(
            vision_config=vision,
            prompt_encoder_config=transformers.Sam2VideoPromptEncoderConfig(image_size=size),
            image_size=size,
            memory_attention_rope_feat_sizes=[size // 16] * 2,
            enable_temporal_pos_encoding_for_object_pointers=newer,
            enable_occlusion_spatial_embedding=newer,
        )
    with torch.device("meta"):  # no memory, no random numbers
        return getattr(transformers, kind)(settings).eval()


def mapped(model: Any) -> Tensors:
    """A model's state as `canonical` sees it in a file; all values are equal."""
    state = model.state_dict()
    tensors = {name: SimpleNamespace(shape=tuple(t.shape), dtype="f32") for name, t in state.items()}
    checkpoint: Any = SimpleNamespace(
        path=Path("model.safetensors"),
        tensors=tensors,
        array=lambda name: np.zeros(tensors[name].shape, np.float32),
    )
    return canonical(checkpoint)


def filled(model: Any, weights: Mapping[str, Any]) -> Any:
    """`model` with Meta's tensors, through the inverse of the map."""
    state, tensors = {}, mapped(model)
    for key, (name, row) in tensors._sources.items():
        assert (row is None) == (name not in state) or row, name
        state[name] = weights[key] if not row else torch.cat([state[name], weights[key]])
    return model
