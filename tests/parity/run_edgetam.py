"""Plays EdgeTAM's reference, `edgetam-dimos` 1.0.1 on PyTorch, in a process of its own.

Its package is called `sam2`, like the other reference: whoever starts this script puts its folder in front of
the others (PYTHONPATH). In: a folder that has `frames` as JPEG files, and an input size. Out, in the same
folder: `edgetam.pt` with lively weights, laid out as published; `image.npz`, the answers to all prompts on a
picture, and the steps of one; `clip.npz`, the logits of both objects in every frame.

timm builds the trunk, and would download weights that are replaced at once: it is told not to.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import prompt_cases
import reference

from masklet.testing import lively_weights, synthetic_clip

SEED, OBJECT_SCORE_BIAS = 1, 1.0  # present in every frame of the clip, and two masks that differ
COUNTER = "num_batches_tracked"
CLIP_SEED, FRAMES, SIZE_HW = 5, 12, (144, 192)
CASE = "box_negative_point"  # whose steps are recorded


def prompts_of_clip() -> list[dict[str, Any]]:
    """Two objects, both prompted on the first frame."""
    clip = synthetic_clip(CLIP_SEED, FRAMES, SIZE_HW)
    points = np.stack([clip.point_xy(0, 0), clip.point_xy(0, 2)])
    return [
        {"frame_idx": 0, "obj_id": 1, "points": points, "labels": np.array([1, 0], np.int32)},
        {"frame_idx": 0, "obj_id": 7, "box": clip.box_xyxy(0, 1)},
    ]


def build(size: int) -> Any:
    """The published configuration at an input size, as a predictor of video, filled with lively weights."""
    reference.prepare_torchvision()
    import timm.models
    import torch

    create = timm.models.create_model
    timm.models.create_model = lambda *given, **options: create(*given, **{**options, "pretrained": False})
    from sam2.build_sam import build_sam2_video_predictor

    query = "model.memory_attention.layer.cross_attention.q_sizes"
    overrides = [f"++model.image_size={size}", f"++{query}=[{size // 16},{size // 16}]"]
    model = build_sam2_video_predictor("edgetam.yaml", device="cpu", hydra_overrides_extra=overrides)
    model.fill_hole_area = 0  # the builder sets 8 after everyone else's overrides
    model.spatial_perceiver.forward = _one_by_one(model.spatial_perceiver.forward)
    shapes = {name: x for name, x in reference.state_shapes(model).items() if not name.endswith(COUNTER)}
    weights = lively_weights(shapes, SEED, object_score_bias=OBJECT_SCORE_BIAS)
    state = model.state_dict() | {name: torch.from_numpy(array) for name, array in weights.items()}
    model.load_state_dict(state)
    return model


def _one_by_one(perceiver: Any) -> Any:
    """The perceiver for each object by itself: of several at once it fails to view expanded latents."""
    import torch

    def forward(memories: Any, position: Any) -> Any:
        pairs = [perceiver(memories[[index]], position[[index]]) for index in range(len(memories))]
        return tuple(torch.cat(parts) for parts in zip(*pairs, strict=True))

    return forward


def answers(model: Any) -> dict[str, np.ndarray]:
    """Steps of the picture under the names of a dump; `case/name` for what prompts gave."""
    trunk = "image_encoder.trunk.body"
    body = model.get_submodule(trunk)
    names = [
        name
        for name, _ in body.named_modules()
        if name == "stem"
        or name.endswith((".downsample", ".pre_block"))
        or name.split(".")[-2:-1] == ["blocks"]
    ]
    watched = {
        "image_encoder.trunk": reference._inputs("pixels"),
        **{f"{trunk}.{name}": reference._output for name in names if name != "stages_0.downsample"},
        "image_encoder.neck": lambda path, _, out: {f"{path}.{level}": x for level, x in enumerate(out[0])},
        "sam_mask_decoder.conv_s0": reference._output,
        "sam_mask_decoder.conv_s1": reference._output,
    }
    encoded = reference.predictor(model)
    with reference.watching(model, watched) as seen:
        encoded.set_image(prompt_cases.picture("landscape").image)
    results = {**seen, "image_embed": encoded.get_image_embedding().numpy()}
    for case in prompt_cases.cases_for("landscape", model.image_size):
        steps = reference.dump_prompt(encoded, **case.arguments)
        kept = {name: steps[name] for name in ("masks", "ious", "low_res_masks")}
        results |= {f"{case.name}/{name}": array for name, array in kept.items()}
        results |= steps if case.name == CASE else {}
    return results


def tracked(model: Any, frames: Path) -> dict[str, np.ndarray]:
    """Logits (F, O, H, W) of the clip, the objects' scores (F, O) and, of the first frame, both memories."""
    scores, memories = [], []
    decoder = model.sam_mask_decoder
    handle = decoder.register_forward_hook(lambda _m, _i, out: scores.append(out[3].numpy().copy()))
    perceiver = model.spatial_perceiver
    other = perceiver.register_forward_hook(lambda _m, _i, out: memories.append(out[0].numpy().copy()))
    state = model.init_state(str(frames))
    for prompt in prompts_of_clip():
        model.add_new_points_or_box(state, **prompt)
    logits = [array[:, 0].numpy().copy() for _, _, array in model.propagate_in_video(state)]
    handle.remove()
    other.remove()
    batched = [score[:, 0] for score in scores if len(score) == 2]
    return {"logits": np.stack(logits), "scores": np.stack(batched), "memories": np.stack(memories)}


def main(folder: Path, size: int) -> None:
    import torch

    warnings.simplefilter("ignore")
    model = build(size)
    torch.save({"model": model.state_dict()}, folder / "edgetam.pt")
    with torch.inference_mode():
        np.savez(folder / "image.npz", **answers(model))
        np.savez(folder / "clip.npz", **tracked(model, folder / "frames"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
