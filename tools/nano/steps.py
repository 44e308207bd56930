"""Forward passes of training: pictures with rounds of prompts, clips through the memory.

In: a network and a batch. Out: its losses; for evaluation the IoUs. Knows nothing about optimisers or time.

The picture is encoded once, its objects share the features. On clips the memory is what the network itself
predicted, and gradients flow through all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from batches import ClipBatch, StillBatch
from losses import NONE, Losses, correction_clicks, mask_iou, mean_losses, prompt_losses
from network import normalise
from prompts import CELL
from sam2.modeling.sam2_base import SAM2Base
from similarity import Similarity

CLICK, BOX, MASK = "click", "box", "mask"  # the first prompt
LOGIT_LIMIT = 32.0  # of masks that are fed back, as the published predictor does
POINT, TOP_LEFT, BOTTOM_RIGHT = 1, 2, 3  # labels of points
VIDEO_LENGTH = 24  # frames; distances in time are scaled as in videos longer than the pointers reach


@dataclass(frozen=True)
class StillPlan:
    """What is prompted: the first prompt, then so many corrections, with the last mask fed back or not."""

    first: str
    corrections: int
    feedback: bool
    exact: bool = False  # clicks at the deepest error instead of drawn ones


@dataclass(frozen=True)
class ClipPlan:
    """The prompt of the first frame, and the frame where a click corrects, None without."""

    first: str
    correct_at: int | None


@dataclass(frozen=True)
class Encoded:
    """Features of B pictures: strides 4, 8, 16 as (B, C, H, W), and the positions of the last."""

    levels: list[torch.Tensor]
    position: torch.Tensor

    def of(self, rows: torch.Tensor) -> Encoded:
        """Those of some pictures, one row for each object."""
        return Encoded([level[rows] for level in self.levels], self.position[rows])


def encode(model: SAM2Base, images: torch.Tensor) -> Encoded:
    """(B, S, S, 3) uint8 -> features, as `SAM2Base.forward_image` gives them.

    Two 1x1 convolutions follow one another at strides 4 and 8, of the neck and of the decoder. They are
    joined here, since the wide maps between them cost a sixth of an encoding on a CPU.
    """
    neck, decoder = model.image_encoder.neck, model.sam_mask_decoder
    stride4, stride8, stride16, stride32 = (
        level.permute(0, 2, 3, 1) for level in model.image_encoder.trunk(normalise(images))
    )
    lateral32, lateral16, lateral8, lateral4 = (step.conv for step in neck.convs)
    top = F.interpolate(_pointwise(stride32, lateral32).float(), scale_factor=2.0, mode="nearest")
    embedding = _pointwise(stride16, lateral16) + top
    levels = [
        _pointwise(stride4, lateral4, decoder.conv_s0),
        _pointwise(stride8, lateral8, decoder.conv_s1),
        embedding,
    ]
    return Encoded(levels, neck.position_encoding(embedding))


def _pointwise(x: torch.Tensor, *convolutions: Any) -> torch.Tensor:
    """1x1 convolutions one after the other as a single product: (B, H, W, C) -> (B, C', H, W)."""
    weight, bias = convolutions[0].weight.flatten(1), convolutions[0].bias
    for further in convolutions[1:]:
        weight, bias = further.weight.flatten(1) @ weight, further.weight.flatten(1) @ bias + further.bias
    return F.linear(x, weight, bias).permute(0, 3, 1, 2)


def still_losses(
    model: SAM2Base,
    batch: StillBatch,
    plan: StillPlan | None,
    device: torch.device,
    similarity: Similarity | None = None,
) -> Losses:
    """Losses of all rounds on pictures, their mean, none without a plan; and of the similarity of places."""
    target = _target(batch.coverages, device)
    encoded, owners = _encode_stills(model, batch, device)
    losses = Losses(NONE, NONE, NONE, NONE)
    if plan:
        rounds = list(still_rounds(model, encoded.of(owners), batch, target, plan))
        losses = mean_losses([prompt_losses(logits, iou, score, target) for logits, iou, score in rounds])
    if similarity:
        likeness = similarity(model.sam_mask_decoder, encoded.levels, target, owners)
        losses = losses._replace(likeness=likeness)
    return losses


def still_ious(model: SAM2Base, batch: StillBatch, plan: StillPlan, device: torch.device) -> torch.Tensor:
    """(rounds, O): IoU of the masks that a user would get."""
    target = _target(batch.coverages, device)
    encoded, owners = _encode_stills(model, batch, device)
    found = []
    for logits, iou, _ in still_rounds(model, encoded.of(owners), batch, target, plan):
        found.append(mask_iou(_best(logits, iou), target[:, None])[:, 0])
    return torch.stack(found)


def _encode_stills(model: SAM2Base, batch: StillBatch, device: torch.device) -> tuple[Encoded, torch.Tensor]:
    """The pictures' features, and the picture of each object, (O,)."""
    each = len(batch.coverages) // len(batch.images)
    owners = torch.arange(len(batch.coverages), device=device) // each
    return encode(model, torch.from_numpy(batch.images).to(device)), owners


def still_rounds(
    model: SAM2Base, encoded: Encoded, batch: StillBatch, target: torch.Tensor, plan: StillPlan
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Logits (O, M, H, W), IoUs (O, M) and object scores (O, 1) of each round; features of each object."""
    device = target.device
    embedding = encoded.levels[-1] + model.no_mem_embed.view(1, -1, 1, 1)

    coords, labels = first_prompt(BOX if plan.first == BOX else CLICK, batch.clicks, batch.boxes, device)
    fed = noisy_masks(target) if plan.first == MASK else None
    for number in range(plan.corrections + 1):
        several = coords.shape[1] == 1 and fed is None
        logits, iou, score = decode(model, embedding, encoded.levels[:2], coords, labels, fed, several)
        yield logits, iou, score
        if number < plan.corrections:
            best = _best(logits, iou).detach().float()
            clicks, signs = correction_clicks(best, target, exact=plan.exact)
            coords, labels = torch.cat([coords, clicks], 1), torch.cat([labels, signs], 1)
            fed = best.clamp(-LOGIT_LIMIT, LOGIT_LIMIT) if plan.feedback else None


def clip_losses(model: SAM2Base, batch: ClipBatch, plan: ClipPlan, device: torch.device) -> Losses:
    """Losses of all frames that are predicted, their mean."""
    found = []
    for frame, out in clip_frames(model, batch, plan, device):
        seen = (out[6][:, 0] > 0).float()  # where the network says "absent" its masks are constants
        found.append(prompt_losses(out[0], out[2], out[6], _target(batch.coverages[frame], device), seen))
    return mean_losses(found)


def clip_ious(model: SAM2Base, batch: ClipBatch, plan: ClipPlan, device: torch.device) -> torch.Tensor:
    """(F - 1, O): IoU on each frame after the first; 1 where an absent object gets no mask."""
    frames = clip_frames(model, batch, plan, device)
    return torch.stack(
        [
            mask_iou(out[3], _target(batch.coverages[frame], device)[:, None])[:, 0]
            for frame, out in frames
            if frame
        ]
    )


def clip_frames(
    model: SAM2Base, batch: ClipBatch, plan: ClipPlan, device: torch.device
) -> Iterator[tuple[int, tuple[torch.Tensor, ...]]]:
    """(frame, what SAM2Base's heads give) of each prediction; a corrected frame comes twice.

    A mask prompt's own frame isn't predicted, so it doesn't come.
    """
    frames = batch.images.shape[1]
    encoded = encode(model, torch.from_numpy(batch.images).to(device).flatten(0, 1))
    owners = torch.from_numpy(batch.owners).to(device)
    history: dict[str, dict[int, dict]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    for frame in range(frames):
        features = encoded.of(owners * frames + frame)
        points, masks = None, None
        if frame == 0 and plan.first == MASK:
            masks = torch.from_numpy(batch.first_masks).to(device)[:, None].float()
        elif frame == 0:
            points = _point_inputs(*first_prompt(plan.first, batch.clicks, batch.boxes, device))
        record, out = _step(model, features, frame, points, masks, None, history)
        if masks is None:
            yield frame, out
        if frame == plan.correct_at:
            target = _target(batch.coverages[frame], device)
            points = _point_inputs(*correction_clicks(out[3].detach().float(), target))
            fed = out[3].detach().clamp(-LOGIT_LIMIT, LOGIT_LIMIT)
            record, out = _step(model, features, frame, points, None, fed, history)
            yield frame, out
        if frame + 1 < frames:
            _remember(model, features, points, record, out)
            kind = "non_cond_frame_outputs" if points is None and masks is None else "cond_frame_outputs"
            history[kind][frame] = record


def first_prompt(
    kind: str, clicks: np.ndarray, boxes: np.ndarray, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates (O, 1 or 2, 2) and labels of a click or of a box as its two corners."""
    if kind == BOX:
        coords = torch.from_numpy(boxes).to(device).view(-1, 2, 2)
        labels = torch.tensor([TOP_LEFT, BOTTOM_RIGHT], dtype=torch.int32, device=device)
        return coords, labels.expand(len(coords), 2)
    coords = torch.from_numpy(clicks).to(device)[:, None]
    return coords, torch.full(coords.shape[:2], POINT, dtype=torch.int32, device=device)


def noisy_masks(target: torch.Tensor) -> torch.Tensor:
    """Logits (O, 1, H, W) of masks about like the targets: moved by a few cells, grown or shrunk, soft."""
    shift = torch.randint(-2, 3, (2,)).tolist()
    moved = torch.roll(target, shift, dims=(1, 2))[:, None]
    soft = F.avg_pool2d(moved, 3, stride=1, padding=1)
    level = 0.25 + 0.5 * torch.rand(len(target), 1, 1, 1, device=target.device)
    return 20 * (soft - level)


def _target(coverages: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(coverages).to(device).float() / CELL


def _best(logits: torch.Tensor, iou: torch.Tensor) -> torch.Tensor:
    return logits[torch.arange(len(logits), device=logits.device), iou.argmax(dim=1)][:, None]


def _point_inputs(coords: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"point_coords": coords, "point_labels": labels}


def decode(
    model: SAM2Base,
    embedding: torch.Tensor,
    high_res: list[torch.Tensor],
    coords: torch.Tensor,
    labels: torch.Tensor,
    fed: torch.Tensor | None,
    several: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three candidates, or the single one; without SAM2Base's enlarging, which pictures don't need."""
    sparse, dense = model.sam_prompt_encoder(points=(coords, labels), boxes=None, masks=fed)
    logits, iou, _, score = model.sam_mask_decoder.predict_masks(
        image_embeddings=embedding,
        image_pe=model.sam_prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        repeat_image=False,
        high_res_features=high_res,
    )
    kept = slice(1, None) if several else slice(0, 1)
    return logits[:, kept], iou[:, kept], score


def _flat(features: Encoded) -> tuple[list[torch.Tensor], list[tuple[int, int]]]:
    """SAM2Base wants (H W, B, C)."""
    sizes = [(level.shape[2], level.shape[3]) for level in features.levels]
    return [level.flatten(2).permute(2, 0, 1) for level in features.levels], sizes


def _step(
    model: SAM2Base,
    features: Encoded,
    frame: int,
    points: dict[str, torch.Tensor] | None,
    masks: torch.Tensor | None,
    fed: torch.Tensor | None,
    history: dict[str, dict[int, dict]],
) -> tuple[dict, tuple[torch.Tensor, ...]]:
    flat, sizes = _flat(features)
    record, out, _, _ = model._track_step(
        frame,
        frame == 0,
        flat,
        [features.position.flatten(2).permute(2, 0, 1)],
        sizes,
        points,
        masks,
        history,
        VIDEO_LENGTH,
        False,
        fed,
    )
    record["obj_ptr"] = out[5]
    return record, out


def _remember(
    model: SAM2Base,
    features: Encoded,
    points: dict[str, torch.Tensor] | None,
    record: dict,
    out: tuple[torch.Tensor, ...],
) -> None:
    flat, sizes = _flat(features)
    model._encode_memory_in_output(flat, sizes, points, True, out[4], out[6], record)
