"""SAM's reference: Meta's `segment-anything` 1.0 on PyTorch, filled with lively weights and watched by hooks.

In: the name of a published variant, or an encoder's numbers and an input size. Out: torch models, and the
outputs of their stages as numpy arrays in the reference's own layout, under the names that a dump gives them.
Knows nothing about our networks. torch and segment_anything are imported inside functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import numpy as np
import reference

if TYPE_CHECKING:
    from segment_anything import SamPredictor
    from segment_anything.modeling import Sam

PACKAGE = "segment-anything"


@dataclass(frozen=True)
class Variant:
    """A network, and the seed that parity fills it with. Published ones have the last three in common."""

    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    seed: int
    window: int = 14
    d_model: int = 256
    mlp_dim: int = 2048


VARIANTS: dict[str, Variant] = {
    "sam_vit_b": Variant(768, 12, 12, (2, 5, 8, 11), 0),
    "sam_vit_l": Variant(1024, 24, 16, (5, 11, 17, 23), 1),
    "sam_vit_h": Variant(1280, 32, 16, (7, 15, 23, 31), 2),
}
# Small enough for default tests: windows of 3 pad the grid of 8.
TINY = Variant(32, 4, 2, (1, 3), 0, window=3, d_model=64, mlp_dim=256)
TINY_SIZE = 128


def build(variant: str, image_size: int = 1024) -> Sam:
    """A published variant with lively weights, on the CPU."""
    return _filled(VARIANTS[variant], image_size)


def build_tiny() -> Sam:
    """The small network, with lively weights."""
    return _filled(TINY, TINY_SIZE)


def load(variant: str, checkpoint: Path, image_size: int = 1024) -> Sam:
    """A published variant with the weights of a .pth file."""
    import torch

    model = _compose(VARIANTS[variant], image_size)
    model.load_state_dict(torch.load(checkpoint), assign=True)
    return model


def save_pt(model: Sam, path: Path) -> Path:
    """Save as Meta publishes SAM: the state alone."""
    import torch

    torch.save(model.state_dict(), path)
    return path


def _filled(variant: Variant, image_size: int) -> Sam:
    import torch

    model = _compose(variant, image_size)
    weights = reference.lively_weights(reference.state_shapes(model), variant.seed)
    model.load_state_dict({name: torch.from_numpy(x) for name, x in weights.items()}, assign=True)
    return model


def _compose(variant: Variant, image_size: int) -> Sam:
    """The network without values. Other input sizes need the parts by hand: the package's own function has
    1024 written into it."""
    reference.prepare_torchvision()
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    width, grid = variant.d_model, image_size // 16
    with torch.device("meta"):  # every value will be replaced
        encoder = ImageEncoderViT(
            img_size=image_size,
            embed_dim=variant.embed_dim,
            depth=variant.depth,
            num_heads=variant.num_heads,
            out_chans=width,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=variant.window,
            global_attn_indexes=variant.global_attn_indexes,
        )
        prompts = PromptEncoder(width, (grid, grid), (image_size, image_size), 16)
        transformer = TwoWayTransformer(depth=2, embedding_dim=width, mlp_dim=variant.mlp_dim, num_heads=8)
        decoder = MaskDecoder(transformer_dim=width, transformer=transformer)
    return Sam(encoder, prompts, decoder).eval()


def predictor(model: Sam) -> SamPredictor:
    """The reference's predictor."""
    reference.prepare_torchvision()
    from segment_anything import SamPredictor

    return SamPredictor(model)


def dump_encoder(model: Sam, image: np.ndarray, into: SamPredictor | None = None) -> dict[str, np.ndarray]:
    """Set `image` ((H, W, 3) uint8), and return every step of its encoding:

    `pixels` (1, 3, S, S); `image_encoder.patch_embed` and `.blocks.N` (1, H, W, C); `.blocks.N.attn.rel_h`
    and `.rel_w` (windows * heads, h, w, h or w); `image_encoder.neck.0` to `.2` (1, C, H, W); `image_embed`.
    """
    encoder = model.image_encoder
    watched = {
        "image_encoder": reference._inputs("pixels"),
        "image_encoder.patch_embed": reference._output,
        **{f"image_encoder.blocks.{index}": reference._output for index in range(len(encoder.blocks))},
        **{f"image_encoder.neck.{index}": reference._output for index in range(3)},
    }
    into = into or predictor(model)
    with reference.watching(model, watched) as seen, _watching_positions(seen):
        into.set_image(np.array(image))
    return {**seen, "image_embed": into.get_image_embedding().detach().numpy()}


def dump_prompt(encoded: SamPredictor, **arguments: Any) -> dict[str, np.ndarray]:
    """The answer to a prompt on a predictor whose image is set, and every step of it, under the names of
    `reference.dump_prompt`. Arguments are those of our `predict`: where the reference's own takes no batches,
    this is its `predict_torch`."""
    model = encoded.model
    decoder = "mask_decoder"
    watched = {
        "prompt_encoder": reference._outputs("sparse", "dense"),
        **{
            f"{decoder}.transformer.layers.{index}": reference._outputs("queries", "keys")
            for index in range(2)
        },
        f"{decoder}.transformer": reference._outputs("hs", "src"),
        f"{decoder}.output_upscaling.4": reference._output,
        **{f"{decoder}.output_hypernetworks_mlps.{index}": reference._output for index in range(4)},
    }

    def record(output: tuple) -> None:
        for name, tensor in zip(("all_masks", "all_ious"), output, strict=True):
            seen[f"{decoder}.{name}"] = tensor.detach().numpy().copy()

    watching_masks = reference.watching_all_masks(model.mask_decoder, record)
    with reference.watching(model, watched) as seen, watching_masks:
        masks, ious, low_res_masks = _predict(encoded, **arguments)
    steps = {re.sub("^(prompt_encoder|mask_decoder)", r"sam_\1", name): x for name, x in seen.items()}
    return {**steps, "masks": masks.astype(bool), "ious": ious, "low_res_masks": low_res_masks}


def _predict(encoded: SamPredictor, normalize_coords: bool = True, **arguments: Any) -> Any:
    import torch

    height, width = encoded.original_size
    points = arguments.get("point_coords")
    if points is not None and not normalize_coords:
        arguments["point_coords"] = points * np.array([width, height])
    if np.ndim(points) != 3 and np.ndim(arguments.get("box")) != 2:
        return encoded.predict(**arguments)

    # As the reference's notebook does it for several boxes.
    given: dict[str, Any] = {"point_coords": None, "point_labels": None, "boxes": None}
    if points is not None:
        coords = encoded.transform.apply_coords(arguments["point_coords"], encoded.original_size)
        given["point_coords"] = torch.as_tensor(coords, dtype=torch.float)
        given["point_labels"] = torch.as_tensor(arguments["point_labels"], dtype=torch.int)
    if arguments.get("box") is not None:
        boxes = encoded.transform.apply_boxes(arguments["box"], encoded.original_size)
        given["boxes"] = torch.as_tensor(boxes, dtype=torch.float)
    answer = encoded.predict_torch(**given, multimask_output=arguments["multimask_output"])
    return tuple(tensor.numpy() for tensor in answer)


@contextmanager
def _watching_positions(seen: dict[str, np.ndarray]) -> Iterator[None]:
    """The terms of relative positions exist only inside a function: they are what it adds to no scores. Each
    is found by blinding the other's table. Recorded in the order of the blocks."""
    import torch
    from segment_anything.modeling import image_encoder

    original, count = image_encoder.add_decomposed_rel_pos, 0

    def recording(attn: Any, q: Any, rel_h: Any, rel_w: Any, q_size: Any, k_size: Any) -> Any:
        nonlocal count
        shape = len(q), *q_size, *k_size
        for name, tables in (("rel_h", (rel_h, 0 * rel_w)), ("rel_w", (0 * rel_h, rel_w))):
            terms = original(torch.zeros_like(attn), q, *tables, q_size, k_size).view(shape)
            terms = terms[..., 0] if name == "rel_h" else terms[..., 0, :]
            seen[f"image_encoder.blocks.{count}.attn.{name}"] = terms.detach().numpy().copy()
        count += 1
        return original(attn, q, rel_h, rel_w, q_size, k_size)

    with mock.patch.object(image_encoder, "add_decomposed_rel_pos", recording):
        yield
