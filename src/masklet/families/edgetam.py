"""EdgeTAM (Zhou et al. 2025, arXiv:2501.07256): configuration, preset and recognition.

In: tensor names and shapes of a checkpoint, or metadata that masklet wrote. Out: an `EdgeTamConfig`.
Light: the modules that write graphs are in `edgetam_stages`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from types import ModuleType

from masklet.families import sam2
from masklet.families.family import Family, Shapes, check_sizes, count_blocks, has_decoder, unknown_network
from masklet.model.config import PATCH_STRIDE, STAGES, RepVitConfig
from masklet.model.tokens import MemoryPlaces, TokenOrder, raster, upscaled_orders

NAME, TITLE = "edgetam", "EdgeTAM"
STEM, LATENTS, LATENTS_2D = (  # tensors that tell the network
    "image_encoder.trunk.body.stem.conv1.c.weight",
    "spatial_perceiver.latents",
    "spatial_perceiver.latents_2d",
)
EMBEDDING_STRIDE = 4 * PATCH_STRIDE  # pixels


@dataclass(frozen=True)
class EdgeTamConfig:
    """One EdgeTAM network. `image_size` is the side of its square input in pixels."""

    trunk: RepVitConfig
    d_model: int  # channels of neck, prompt encoder and decoder
    memory_dim: int  # channels of a memory
    mlp_dim: int  # hidden channels in the layers of decoder and memory attention
    memory_layers: int  # of memory attention
    perceiver_layers: int
    latents: int  # memory tokens that look at the whole picture
    latents_2d: int  # memory tokens that look at one window each; a square number
    image_size: int

    @property
    def family(self) -> str:
        return NAME

    @property
    def version(self) -> str:
        return "1"

    @property
    def width(self) -> int:
        return self.trunk.embed_dims[0]

    @property
    def blocks(self) -> tuple[int, ...]:
        return self.trunk.depths

    def orders(self, image_size: int, nested: bool) -> tuple[TokenOrder, ...]:
        """The token orders of the trunk's stages: raster behind convolutions, but for the two that masks are
        drawn with."""
        grid = image_size // EMBEDDING_STRIDE
        return *upscaled_orders(grid, grid, nested), raster(grid // 2, grid // 2)

    def block(self, image_size: int, nested: bool) -> int:
        """0: the embedding is in raster order."""
        return 0

    def memory_places(self, image_size: int) -> MemoryPlaces:
        """Latents without a place, and one for each window."""
        side = math.isqrt(self.latents_2d)
        return MemoryPlaces((side, side), placeless=self.latents)

    def to_json(self) -> str:
        """The configuration as the metadata text that `table.from_metadata` reads."""
        return json.dumps({"family": NAME, **asdict(self)}, sort_keys=True)


REPVIT_M1 = RepVitConfig((48, 96, 192, 384), (2, 2, 14, 2))
PRESETS = {"edgetam": EdgeTamConfig(REPVIT_M1, 256, 64, 2048, 2, 2, 256, 256, 1024)}


def matches(shapes: Shapes) -> bool:
    """True when the tensors look like EdgeTAM's in Meta's own keys."""
    return STEM in shapes and has_decoder(shapes)


def recognise(shapes: Shapes) -> EdgeTamConfig:
    """The published configuration, if tensor names and shapes are its own. Raises UnknownFormatError."""
    body = "image_encoder.trunk.body."
    depths = tuple(count_blocks(shapes, f"{body}stages_{stage}.blocks.") for stage in range(STAGES))
    width = 2 * shapes[STEM][0]
    latents = tuple(shapes[name][0] for name in (LATENTS, LATENTS_2D) if name in shapes)
    for config in PRESETS.values():
        if (config.width, config.blocks) == (width, depths) and latents in (
            (config.latents, config.latents_2d),
            (),  # a file of the image part
        ):
            return config
    published = PRESETS["edgetam"]
    raise unknown_network(
        f"EdgeTAM with a trunk of width {width}, blocks {depths} and latents {latents}",
        f"{published.width}, {published.blocks} and {(published.latents, published.latents_2d)}",
    )


def _check_numbers(config: EdgeTamConfig) -> None:
    trunk = config.trunk
    check_sizes((config.mlp_dim, config.image_size, config.memory_layers, config.perceiver_layers))
    check_sizes((config.latents, config.latents_2d, *trunk.embed_dims, *trunk.depths))
    sam2.check_channels(config)
    if len(trunk.embed_dims) != STAGES or len(trunk.depths) != STAGES or trunk.embed_dims[0] % 2:
        raise ValueError("four stages are needed, the first of an even width")
    if sum(trunk.depths) > 256 or max(config.memory_layers, config.perceiver_layers) > 64:
        raise ValueError("at most 256 blocks, and 64 layers of memory attention and of the perceiver")
    if config.image_size % sam2.SIZE_MULTIPLE or math.isqrt(config.latents_2d) ** 2 != config.latents_2d:
        raise ValueError("an input side in steps of 32 and a square number of latents_2d are needed")


def _network() -> ModuleType:
    from masklet.families import edgetam_stages

    return edgetam_stages


FAMILY = Family(
    name=NAME,
    title=TITLE,
    config=EdgeTamConfig,
    trunk=RepVitConfig,
    presets=PRESETS,
    image_stages=sam2.IMAGE_STAGES,
    video_stages=sam2.VIDEO_STAGES,
    video_tensors=(*sam2.VIDEO_TENSORS, "spatial_perceiver."),
    unused_tensors={
        **sam2.UNUSED_TENSORS,
        ".bn.num_batches_tracked": "how long batch norms were trained",
    },
    size_multiple=sam2.SIZE_MULTIPLE,
    matches=matches,
    recognise=recognise,
    check=_check_numbers,
    network=_network,
)
