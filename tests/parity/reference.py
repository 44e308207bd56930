"""The reference that parity compares with: Meta's `sam2` on PyTorch, filled with lively weights and watched
by hooks.

In: the name of a published variant or a `TinyConfig`, and a seed. Out: torch models, and the outputs of their
stages as numpy arrays in the reference's own layout, named by the reference's own module paths. Knows nothing
about our networks. torch and sam2 are imported inside functions: importing this file needs numpy only.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet.testing import lively_weights

if TYPE_CHECKING:
    import torch
    from sam2.modeling.sam2_base import SAM2Base
    from sam2.sam2_image_predictor import SAM2ImagePredictor

PACKAGE = "sam2"
REFERENCE_VERSIONS = {"sam2": "1.1.0", "torch": "2.13.0"}


@dataclass(frozen=True)
class Variant:
    """A published model: its configuration in the `sam2` package, and what parity fills it with."""

    config: str
    seed: int
    object_score_bias: float


# Versions 2.0 and 2.1 of a size compute the same on pictures: other weights make them two tests, not one.
# Seeds and biases were chosen for what `test_seeds_reach_both_sides` asks.
VARIANTS: dict[str, Variant] = {
    "sam2.1_hiera_tiny": Variant("configs/sam2.1/sam2.1_hiera_t.yaml", 6, 0.356),
    "sam2_hiera_tiny": Variant("configs/sam2/sam2_hiera_t.yaml", 1, -0.155),
    "sam2.1_hiera_base_plus": Variant("configs/sam2.1/sam2.1_hiera_b+.yaml", 0, 0.347),
    "sam2_hiera_base_plus": Variant("configs/sam2/sam2_hiera_b+.yaml", 4, -0.293),
    "sam2.1_hiera_small": Variant("configs/sam2.1/sam2.1_hiera_s.yaml", 0, 0.964),
    "sam2_hiera_small": Variant("configs/sam2/sam2_hiera_s.yaml", 7, 0.53),
    "sam2.1_hiera_large": Variant("configs/sam2.1/sam2.1_hiera_l.yaml", 2, 0.926),
    "sam2_hiera_large": Variant("configs/sam2/sam2_hiera_l.yaml", 0, 0.355),
}


@dataclass(frozen=True)
class TinyConfig:
    """A model of the same family that is small enough for default tests. Channels: `memory_dim` divides
    `d_model`, which is a multiple of 16 (eight heads at half the width)."""

    version: str  # "2.0" or "2.1"
    image_size: int
    embed_dim: int
    num_heads: int
    stages: tuple[int, ...]
    global_att_blocks: tuple[int, ...]
    window_spec: tuple[int, ...]
    window_pos_embed_bkg_spatial_size: tuple[int, int]
    d_model: int
    memory_dim: int

    def to_json(self) -> str:
        return json.dumps(asdict(self))


TINY_CONFIGS: dict[str, TinyConfig] = {
    # Like tiny and base+: windows 14 and 7 pad the grids 16 and 8; a global block ends stage 3.
    "tiny_2.1": TinyConfig("2.1", 256, 16, 1, (1, 2, 4, 2), (4, 6), (8, 4, 14, 7), (7, 7), 32, 8),
    # Like large, with base+'s table: windows 16 and 8 pad the grids 10 and 5; several heads from the start.
    "tiny_2.0": TinyConfig("2.0", 160, 24, 2, (2, 2, 3, 1), (5,), (8, 4, 16, 8), (14, 14), 64, 16),
}


# ----------------------------------------------------------------------------------------------------- models


def build(variant: str, seed: int | None = None, image_size: int = 1024, **fill: Any) -> SAM2Base:
    """A published variant as `build_sam2` makes it, on the CPU, with lively weights: those that parity uses,
    or those of `seed` (`fill` goes to `lively_weights`)."""
    chosen = VARIANTS[variant]
    model = _compose(chosen.config, [f"++model.image_size={image_size}"])
    if seed is None:
        return fill_lively(model, chosen.seed, **{"object_score_bias": chosen.object_score_bias, **fill})
    return fill_lively(model, seed, **fill)


def load(variant: str, checkpoint: Path, image_size: int = 1024) -> SAM2Base:
    """A published variant with the weights of a .pt file, as the reference loads it."""
    return _compose(VARIANTS[variant].config, [f"++model.image_size={image_size}"], checkpoint)


def build_tiny(config: TinyConfig, seed: int = 0, **fill: Any) -> SAM2Base:
    """A small model, through the same configuration file and the same code as the published ones."""
    return fill_lively(_compose(*tiny_settings(config)), seed, **fill)


def tiny_settings(config: TinyConfig) -> tuple[str, list[str]]:
    """The configuration file of a small model, and what it overrides there."""
    channels = [config.embed_dim * 2**stage for stage in (3, 2, 1, 0)]
    trunk, neck = "model.image_encoder.trunk", "model.image_encoder.neck"
    attention, encoder = "model.memory_attention", "model.memory_encoder"
    settings: dict[str, Any] = {
        "model.image_size": config.image_size,
        f"{trunk}.embed_dim": config.embed_dim,
        f"{trunk}.num_heads": config.num_heads,
        f"{trunk}.stages": list(config.stages),
        f"{trunk}.global_att_blocks": list(config.global_att_blocks),
        f"{trunk}.window_spec": list(config.window_spec),
        f"{trunk}.window_pos_embed_bkg_spatial_size": list(config.window_pos_embed_bkg_spatial_size),
        f"{neck}.d_model": config.d_model,
        f"{neck}.backbone_channel_list": channels,
        f"{neck}.position_encoding.num_pos_feats": config.d_model,
        f"{attention}.d_model": config.d_model,
        f"{attention}.layer.d_model": config.d_model,
        f"{attention}.layer.self_attention.embedding_dim": config.d_model,
        f"{attention}.layer.cross_attention.embedding_dim": config.d_model,
        f"{attention}.layer.cross_attention.kv_in_dim": config.memory_dim,
        f"{encoder}.in_dim": config.d_model,
        f"{encoder}.out_dim": config.memory_dim,
        f"{encoder}.position_encoding.num_pos_feats": config.memory_dim,
        f"{encoder}.mask_downsampler.embed_dim": config.d_model,
        f"{encoder}.fuser.layer.dim": config.d_model,
    }
    file = {"2.0": "configs/sam2/sam2_hiera_t.yaml", "2.1": "configs/sam2.1/sam2.1_hiera_t.yaml"}[
        config.version
    ]
    return file, [f"++{key}={value}" for key, value in settings.items()]


def fill_lively(model: SAM2Base, seed: int, **fill: Any) -> SAM2Base:
    """Replace every tensor of the model's state by its lively value."""
    import torch

    weights = lively_weights(state_shapes(model), seed, **fill)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    return model


def state_shapes(model: SAM2Base) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor, in the order of the model's state."""
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def save_pt(model: SAM2Base, path: Path) -> Path:
    """Save as Meta publishes: one dictionary with the key "model"."""
    import torch

    torch.save({"model": model.state_dict()}, path)
    return path


def prepare_torchvision() -> None:
    """Make torchvision importable without its compiled operators, and import the reference with its warnings
    hushed.

    There is no CPU build of torchvision beside this torch; importing it asks only that two operators are
    known.
    """
    import torch

    if not hasattr(torch.ops.torchvision, "nms"):
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import sam2.build_sam
        import sam2.sam2_image_predictor  # noqa: F401


def _compose(config: str, overrides: list[str], checkpoint: Path | None = None) -> SAM2Base:
    prepare_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sam2.build_sam import build_sam2

        return build_sam2(config, checkpoint, device="cpu", hydra_overrides_extra=overrides)


# ------------------------------------------------------------------------------------------ outputs of stages


def predictor(model: SAM2Base) -> SAM2ImagePredictor:
    """The reference's image predictor. It hard-codes the feature sizes of 1024; here they follow."""
    prepare_torchvision()
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.script is deprecated
        made = SAM2ImagePredictor(model)
    made._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
    return made


def dump_encoder(
    model: SAM2Base, image: np.ndarray, into: SAM2ImagePredictor | None = None
) -> dict[str, np.ndarray]:
    """Set `image` ((H, W, 3) uint8), and return every step of its encoding:

    `pixels` (1, 3, S, S); `image_encoder.trunk.patch_embed` and `.blocks.N` (1, H, W, C);
    `image_encoder.neck.N` (1, C, H, W), N = 0 the finest; `sam_mask_decoder.conv_s0` and `.conv_s1`;
    `image_embed`, which has `no_mem_embed`. `into` is a predictor that keeps the image for `dump_prompt`.
    """
    trunk = model.image_encoder.trunk
    watched = {
        "image_encoder.trunk": _inputs("pixels"),
        "image_encoder.trunk.patch_embed": _output,
        **{f"image_encoder.trunk.blocks.{index}": _output for index in range(len(trunk.blocks))},
        "image_encoder.neck": lambda path, _, out: {f"{path}.{level}": x for level, x in enumerate(out[0])},
        "sam_mask_decoder.conv_s0": _output,
        "sam_mask_decoder.conv_s1": _output,
    }
    into = into or predictor(model)
    with watching(model, watched) as seen:
        into.set_image(np.array(image))  # a copy: torch warns about read-only arrays
    return {**seen, "image_embed": into.get_image_embedding().numpy()}


def dump_prompt(encoded: SAM2ImagePredictor, **arguments: Any) -> dict[str, np.ndarray]:
    """`predict(**arguments)` on a predictor whose image is set, and every step of it:

    `masks` bool, `ious`, `low_res_masks` as returned; under `sam_prompt_encoder`: `.sparse` (O, N, C),
    `.dense` (O, C, h, w); under `sam_mask_decoder`: `.transformer.layers.N.queries` and `.keys`,
    `.transformer.hs` (O, T, C), `.transformer.src` (O, h*w, C), `.output_upscaling.4` (O, C/8, 4h, 4w) the
    upscaled embedding, `.output_hypernetworks_mlps.N` (O, C/8), and for all four mask tokens `.all_masks` (O,
    4, 4h, 4w), `.all_ious` (O, 4), `.mask_tokens` (O, 4, C), `.object_score_logits` (O, 1), `.stability` (O,
    4), and `.sam_tokens` (O, M, C).
    """
    model = encoded.model
    decoder = "sam_mask_decoder"
    watched = {
        "sam_prompt_encoder": _outputs("sparse", "dense"),
        **{f"{decoder}.transformer.layers.{index}": _outputs("queries", "keys") for index in range(2)},
        f"{decoder}.transformer": _outputs("hs", "src"),
        f"{decoder}.output_upscaling.4": _output,
        **{f"{decoder}.output_hypernetworks_mlps.{index}": _output for index in range(4)},
        decoder: lambda path, _, out: {f"{path}.sam_tokens": out[2]},
    }

    def record(output: tuple) -> None:
        names = ("all_masks", "all_ious", "mask_tokens", "object_score_logits")
        seen.update(
            {f"{decoder}.{name}": _to_numpy(tensor) for name, tensor in zip(names, output, strict=True)}
        )
        stability = model.sam_mask_decoder._get_stability_scores(output[0])
        seen[f"{decoder}.stability"] = _to_numpy(stability)

    with watching(model, watched) as seen, watching_all_masks(model.sam_mask_decoder, record):
        masks, ious, low_res_masks = encoded.predict(**arguments)
    return {**seen, "masks": masks.astype(bool), "ious": ious, "low_res_masks": low_res_masks}


@contextmanager
def watching(model: torch.nn.Module, watched: dict[str, Any]) -> Iterator[dict[str, np.ndarray]]:
    """Hooks on the modules of these paths; each value makes (path, inputs, output) into named tensors."""
    seen: dict[str, np.ndarray] = {}

    def hook(path: str, pick: Any) -> Any:
        def record(_module: Any, inputs: Any, output: Any) -> None:
            seen.update({name: _to_numpy(tensor) for name, tensor in pick(path, inputs, output).items()})

        return record

    handles = [
        model.get_submodule(path).register_forward_hook(hook(path, pick)) for path, pick in watched.items()
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watching_all_masks(decoder: Any, record: Callable[[tuple], None]) -> Iterator[None]:
    """`predict_masks` is a method, not a module: it is the only place where all four masks are. `record` is
    called with what it returns."""
    original = decoder.predict_masks

    def recording(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        record(output)
        return output

    decoder.predict_masks = recording
    try:
        yield
    finally:
        del decoder.predict_masks  # the class's own shows again


def _output(path: str, _inputs: Any, output: Any) -> dict[str, Any]:
    return {path: output}


def _outputs(*names: str) -> Any:
    return lambda path, _, output: {f"{path}.{name}": x for name, x in zip(names, output, strict=True)}


def _inputs(name: str) -> Any:
    return lambda _path, inputs, _output: {name: inputs[0]}


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A copy: what a hook sees may be a view that a later step overwrites."""
    return tensor.detach().to("cpu").numpy().copy()
