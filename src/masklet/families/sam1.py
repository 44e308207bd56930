"""SAM (Kirillov et al. 2023, arXiv:2304.02643) with its ViT encoders: configuration, presets and recognition.

In: tensor names and shapes of a checkpoint, or metadata that masklet wrote. Out: a `Sam1Config`.
Light: the modules that write graphs are in `sam1_stages`.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from types import ModuleType

from masklet.errors import UnknownFormatError
from masklet.families.family import Family, Shapes, check_sizes, count_blocks, has_decoder, unknown_network
from masklet.model.config import VIT_PATCH, VitConfig
from masklet.model.tokens import MemoryPlaces, TokenOrder, upscaled_orders

NAME = "sam1"
TABLE, NECK = "image_encoder.pos_embed", "image_encoder.neck.0.weight"  # tensors that tell the network
IMAGE_STAGES = ("encode_image", "encode_points", "encode_mask", "decode_masks")


@dataclass(frozen=True)
class Sam1Config:
    """One SAM network. `image_size` is the side of the square input in pixels that its tables are made
    for."""

    trunk: VitConfig
    d_model: int  # channels of neck, prompt encoder and decoder
    mlp_dim: int  # hidden channels in the decoder's layers
    image_size: int

    @property
    def family(self) -> str:
        return NAME

    @property
    def version(self) -> str:
        return "1"

    @property
    def memory_dim(self) -> int:
        return 0

    @property
    def width(self) -> int:
        return self.trunk.embed_dim

    @property
    def blocks(self) -> tuple[int, ...]:
        return (self.trunk.depth,)

    def orders(self, image_size: int, nested: bool) -> tuple[TokenOrder, ...]:
        """The orders of masks at strides 4 and 8, and of the embedding."""
        grid = image_size // VIT_PATCH
        return upscaled_orders(grid, grid, nested)

    def block(self, image_size: int, nested: bool) -> int:
        """0: the embedding is in raster order."""
        return 0

    def memory_places(self, image_size: int) -> MemoryPlaces:
        """None."""
        return MemoryPlaces((0, 0))

    def to_json(self) -> str:
        """The configuration as the metadata text that `table.from_metadata` reads."""
        return json.dumps({"family": NAME, **asdict(self)}, sort_keys=True)


TRUNKS = {
    "vit_b": VitConfig(768, 12, 12, (2, 5, 8, 11), 14),
    "vit_l": VitConfig(1024, 24, 16, (5, 11, 17, 23), 14),
    "vit_h": VitConfig(1280, 32, 16, (7, 15, 23, 31), 14),
}
PRESETS = {f"sam_{size}": Sam1Config(trunk, 256, 2048, 1024) for size, trunk in TRUNKS.items()}


def matches(shapes: Shapes) -> bool:
    """True when the tensors look like those of SAM with a ViT."""
    return all(len(shapes.get(name, ())) == 4 for name in (TABLE, NECK)) and has_decoder(shapes)


def recognise(shapes: Shapes) -> Sam1Config:
    """The configuration that tensor names and shapes belong to: a published one, or one of these fine-tuned
    at another input size. Raises UnknownFormatError for another encoder."""
    width, grid = shapes[NECK][1], shapes[TABLE][1]
    depth = count_blocks(shapes, "image_encoder.blocks.")
    for preset in PRESETS.values():
        if (preset.trunk.embed_dim, preset.trunk.depth) == (width, depth):
            config = Sam1Config(preset.trunk, preset.d_model, preset.mlp_dim, VIT_PATCH * grid)
            try:
                _check_numbers(config)
            except ValueError as error:
                raise UnknownFormatError(f"SAM with a position table of side {grid}: {error}") from error
            return config
    known = ", ".join(f"{size} {t.embed_dim} and {t.depth}" for size, t in TRUNKS.items())
    raise unknown_network(f"SAM with an encoder of width {width} and {depth} blocks", known)


def _check_numbers(config: Sam1Config) -> None:
    trunk = config.trunk
    check_sizes((trunk.embed_dim, trunk.depth, trunk.num_heads, trunk.window))
    check_sizes((config.d_model, config.mlp_dim, config.image_size))
    if trunk.depth > 256 or config.image_size % VIT_PATCH or trunk.embed_dim % trunk.num_heads:
        raise ValueError("at most 256 blocks, an input side in steps of 16, a width that the heads divide")
    if not all(isinstance(n, int) and 0 <= n < trunk.depth for n in trunk.global_attn_indexes):
        raise ValueError("global blocks must be among the blocks")
    if config.d_model % 16:
        raise ValueError("d_model must be a multiple of 16")


def _network() -> ModuleType:
    from masklet.families import sam1_stages

    return sam1_stages


FAMILY = Family(
    name=NAME,
    title="SAM",
    config=Sam1Config,
    trunk=VitConfig,
    presets=PRESETS,
    image_stages=IMAGE_STAGES,
    unused_tensors={},
    size_multiple=VIT_PATCH,
    matches=matches,
    recognise=recognise,
    check=_check_numbers,
    network=_network,
)
