"""The numbers that differ between published networks of one kind. Frozen, no defaults, no imports."""

from __future__ import annotations

from dataclasses import dataclass

PATCH_STRIDE = 4  # Hiera's first stage, in pixels
STAGES = 4
VIT_PATCH = 16  # side of a ViT's patches, in pixels


@dataclass(frozen=True)
class HieraConfig:
    """What differs between the published Hiera trunks."""

    embed_dim: int  # channels of the first stage; doubled at every further one
    num_heads: int  # of the first stage; doubled likewise
    stages: tuple[int, ...]  # blocks per stage
    global_att_blocks: tuple[int, ...]  # blocks, counted through all stages, without windows
    window_spec: tuple[int, ...]  # window side per stage, in tokens
    window_pos_embed_bkg_spatial_size: tuple[int, int]  # (H, W) of the background position table


@dataclass(frozen=True)
class VitConfig:
    """What differs between the published ViT encoders."""

    embed_dim: int  # channels
    depth: int  # blocks
    num_heads: int
    global_attn_indexes: tuple[int, ...]  # blocks without windows
    window: int  # side of the others' windows, in tokens


@dataclass(frozen=True)
class RepVitConfig:
    """What differs between RepViT trunks."""

    embed_dims: tuple[int, ...]  # channels per stage
    depths: tuple[int, ...]  # blocks per stage, besides those that make it smaller
