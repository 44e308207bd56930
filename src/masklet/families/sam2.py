"""SAM 2 and SAM 2.1 (Ravi et al. 2024, arXiv:2408.00714): configuration, presets and recognition.

In: tensor names and shapes of a checkpoint, or metadata that masklet wrote. Out: a `Sam2Config`.
Light: the modules that write graphs are in `sam2_stages`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from types import ModuleType

from masklet.families.family import (
    Config,
    Family,
    Shapes,
    check_sizes,
    count_blocks,
    has_decoder,
    unknown_network,
)
from masklet.model.config import HieraConfig
from masklet.model.tokens import MemoryPlaces, TokenOrder, stage_orders

NAME = "sam2"
SIZE_MULTIPLE = 32  # pixels: the trunk's coarsest stride
IMAGE_STAGES = ("encode_image", "encode_points", "encode_mask", "decode_masks")
VIDEO_STAGES = ("begin_frame", "attend_memory", "encode_memory", "point_to_object", "shrink_mask")

# Tensors that only video needs, by prefix: a file with none of them still segments pictures.
VIDEO_TENSORS = (
    "memory_attention.",
    "memory_encoder.",
    "mask_downsample.",
    "obj_ptr_proj.",
    "obj_ptr_tpos_proj.",
    "maskmem_tpos_enc",
    "no_mem_pos_enc",
    "no_obj_ptr",
    "no_obj_embed_spatial",
)
# Tensors of the published files that nothing reads, with the reason.
UNUSED_TENSORS = {
    "no_mem_pos_enc": "position of the empty memory; the published settings add no_mem_embed instead",
}


@dataclass(frozen=True)
class Sam2Config:
    """One SAM 2 network. `version` is "2.0" or "2.1"; `image_size` the side of its square input in pixels."""

    version: str
    trunk: HieraConfig
    d_model: int  # channels of neck, prompt encoder and decoder
    memory_dim: int  # channels of a memory
    mlp_dim: int  # hidden channels in the layers of decoder and memory attention
    memory_layers: int  # of memory attention
    image_size: int

    @property
    def family(self) -> str:
        return NAME

    @property
    def width(self) -> int:
        return self.trunk.embed_dim

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.trunk.stages

    def orders(self, image_size: int, nested: bool) -> tuple[TokenOrder, ...]:
        """The token orders of the trunk's stages."""
        return stage_orders(self.trunk, image_size, nested)[0]

    def block(self, image_size: int, nested: bool) -> int:
        """The block of the third stage's nested order; 0 is raster order."""
        block = stage_orders(self.trunk, image_size, nested)[1]
        return block // 4 if block > 4 else 0

    def memory_places(self, image_size: int) -> MemoryPlaces:
        """Those of the embedding."""
        return MemoryPlaces(self.orders(image_size, nested=False)[2].grid_hw)

    def to_json(self) -> str:
        """The configuration as the metadata text that `table.from_metadata` reads."""
        return json.dumps({"family": NAME, **asdict(self)}, sort_keys=True)


def _trunk(dim: int, heads: int, stages: tuple, blocks: tuple, windows: tuple, table: int) -> HieraConfig:
    return HieraConfig(dim, heads, stages, blocks, windows, (table, table))


TRUNKS = {
    "tiny": _trunk(96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7),
    "small": _trunk(96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7),
    "base_plus": _trunk(112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14),
    "large": _trunk(144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7),
}
PRESETS = {
    f"{name}_hiera_{size}": Sam2Config(version, trunk, 256, 64, 2048, 4, 1024)
    for name, version in (("sam2", "2.0"), ("sam2.1", "2.1"))
    for size, trunk in TRUNKS.items()
}
# Its windows divide every grid of a 256 and a 384 pixel input, so that nothing is padded there.
PRESETS["masklet-nano"] = Sam2Config(
    "2.1", _trunk(32, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 8, 4), 8), 128, 64, 512, 2, 384
)


def matches(shapes: Shapes) -> bool:
    """True when the tensors look like SAM 2's in Meta's own keys."""
    return "image_encoder.trunk.patch_embed.proj.weight" in shapes and has_decoder(shapes)


def recognise(shapes: Shapes) -> Sam2Config:
    """The published configuration that tensor names and shapes belong to.

    Raises UnknownFormatError when the trunk is none of the published ones.
    """
    prefix = "image_encoder.trunk.blocks."
    blocks = count_blocks(shapes, prefix)
    changes = [index for index in range(blocks) if f"{prefix}{index}.proj.weight" in shapes]
    bounds = [0, *changes, blocks]
    stages = tuple(after - before for before, after in pairwise(bounds))
    width = shapes["image_encoder.trunk.patch_embed.proj.weight"][0]

    # The two versions differ in exactly these tensors.
    version = "2.1" if {"no_obj_embed_spatial", "obj_ptr_tpos_proj.weight"} & shapes.keys() else "2.0"
    for config in PRESETS.values():
        if config.version == version and (config.trunk.embed_dim, config.trunk.stages) == (width, stages):
            return config
    known = ", ".join(f"{size} {t.embed_dim} {t.stages}" for size, t in TRUNKS.items())
    raise unknown_network(f"SAM 2 with a trunk of width {width} and blocks {stages}", known)


def _check_numbers(config: Sam2Config) -> None:
    trunk = config.trunk
    check_sizes((trunk.embed_dim, trunk.num_heads, config.image_size, config.mlp_dim, config.memory_layers))
    check_sizes((*trunk.stages, *trunk.window_spec, *trunk.window_pos_embed_bkg_spatial_size))
    check_channels(config)
    if len(trunk.stages) != 4 or len(trunk.window_spec) != 4 or config.version not in ("2.0", "2.1"):
        raise ValueError("four stages, four windows and version 2.0 or 2.1 are needed")
    if (
        sum(trunk.stages) > 256
        or config.memory_layers > 64
        or config.image_size % SIZE_MULTIPLE
        or trunk.embed_dim % trunk.num_heads
    ):
        raise ValueError(
            "at most 256 blocks, 64 layers of memory attention, an input side in steps of 32, a width that "
            "the heads divide"
        )


def check_channels(config: Config) -> None:
    """Raises ValueError unless picture and memory have numbers of channels that go together."""
    check_sizes((config.d_model, config.memory_dim))
    if config.d_model % config.memory_dim or config.d_model % 8 or config.memory_dim % 4:
        raise ValueError("d_model must be a multiple of 8 and of memory_dim, memory_dim one of 4")


def _network() -> ModuleType:
    from masklet.families import sam2_stages

    return sam2_stages


FAMILY = Family(
    name=NAME,
    title="SAM 2",
    config=Sam2Config,
    trunk=HieraConfig,
    presets=PRESETS,
    image_stages=IMAGE_STAGES,
    video_stages=VIDEO_STAGES,
    video_tensors=VIDEO_TENSORS,
    unused_tensors=UNUSED_TENSORS,
    size_multiple=SIZE_MULTIPLE,
    matches=matches,
    recognise=recognise,
    check=_check_numbers,
    network=_network,
)
