"""A model as files that other engines run: a portable ONNX file for each stage, and a manifest about them.

In: a `Model` and a folder. Out: the files, all or none. What a program around the files must do itself (scale
the picture, order the prompts, choose among the masks) stands in the manifest, with masklet's own numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from masklet import __version__, registry
from masklet.errors import InputError, OutputError
from masklet.families.family import CONFIG_KEY
from masklet.families.table import preset_name
from masklet.io.atomic import fill_folder
from masklet.pipeline import memory, object_track
from masklet.pipeline.conventions import conventions_of
from masklet.pipeline.model import Model
from masklet.runtime.cache import load_stage
from masklet.runtime.export import Port, ports, standalone
from masklet.runtime.prune import prune

FORMAT = "masklet-export-1"
MANIFEST = "manifest.json"
SUFFIX = ".onnx"

# Each stage's outputs that a picture needs, those that tracking needs (a family may have fewer), and what all
# of the values are.
IMAGE_OUTPUTS = {
    "encode_image": ("stride4", "stride8", "embedding"),
    "encode_points": ("sparse", "dense"),
    "encode_mask": ("dense",),
    "decode_masks": ("logits", "iou", "object_score", "tokens"),
}
VIDEO_OUTPUTS = {
    **IMAGE_OUTPUTS,
    "encode_image": ("stride4", "stride8", "embedding", "stride16"),
    "begin_frame": ("frame_tokens", "frame_queries", "frame_pixels"),
    "attend_memory": ("embedding",),
    "encode_memory": ("memories",),
    "point_to_object": ("pointers",),
    "shrink_mask": ("mask",),
}
MEANING = {
    "image": "the picture, scaled and normalised as stated under preprocessing",
    "stride4": "image features, one token for 4x4 pixels of the input; see token_order",
    "stride8": "image features, one token for 8x8 pixels of the input; see token_order",
    "embedding": "image features, one token for 16x16 pixels of the input; see token_order",
    "coords": "points as (x, y) in pixels of the input; see prompts",
    "labels": "what each point is; see prompts",
    "sparse": "prompt tokens",
    "dense": "prompt features of the image tokens: encode_mask's, or without a mask encode_points'",
    "mask": "mask logits of an earlier answer, at a quarter of the input's side",
    "logits": "four mask candidates, positive inside, row by row at a quarter of the input's side; see masks",
    "iou": "predicted IoU of each candidate, 0 to 1",
    "object_score": "logit, positive where the prompted object is in the picture",
    "tokens": "the mask tokens behind the candidates",
    "stride16": "the embedding without what says that there is no memory, for begin_frame and mask prompts",
    "frame_tokens": "the frame, ready to look at memories; once for all objects",
    "frame_queries": "what the frame's tokens ask of memories; once for all objects",
    "frame_pixels": "the frame, ready to become memories; once for all objects",
    "memories": "what is remembered of each object's mask in one frame; see tracking",
    "slots": "how old each memory is; see tracking",
    "pointers": "what is remembered of each object itself; see tracking",
    "distances": "how far each pointer is in time; see tracking",
    "mask_logits": "the kept candidate of each object, -1024 where its object_score is not positive",
    "binary": "true cuts the mask at zero, as for prompted frames; false softens it",
    "mask_token": "the token of the kept candidate of each object",
    "mask_prompt": "zeros and ones, a mask given instead of points",
}
SIZES = {
    "B": "number of prompted objects",
    "N": "number of points of each object, the padding point included",
    "D": "1, or B",
    "P": "1, or the number of image tokens",
    "E": "1, or B",
    "F": "number of frames remembered",
    "Q": "number of object pointers",
}


def export(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    stages: Sequence[str] | None = None,
    video: bool = False,
    overwrite: bool = False,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Path:
    """Write the model's stages and a manifest into a folder; returns the manifest's path.

    `video` adds what tracking needs to what pictures need; `stages` names some of them (None: all).
    The folder is made if it isn't there and must be empty otherwise; `overwrite` replaces an earlier export.
    Files appear when all of them are complete, the manifest last. `on_stage` is told each stage's name before
    it is written. Raises InputError for an unknown stage, OutputError, EngineError.
    """
    if video and not model.family.video_stages:
        raise InputError(f"{model.family.title} is for pictures; export it without video (--video).")
    outputs = VIDEO_OUTPUTS if video else IMAGE_OUTPUTS
    chosen = _checked_stages(stages, outputs)
    old = _earlier_files(Path(folder), overwrite)
    with fill_folder(folder, last=MANIFEST) as temporary:
        described = []
        for name in chosen:
            on_stage(name)
            described.append(_write_stage(model, name, outputs[name], temporary))
        text = json.dumps(_manifest(model, described, video), indent=2) + "\n"
        _write(temporary / MANIFEST, [text.encode()])
        for path in old:  # the manifest first: where there is one, it is true
            path.unlink()
    return Path(folder) / MANIFEST


def _checked_stages(stages: Sequence[str] | None, outputs: Mapping[str, Any]) -> tuple[str, ...]:
    if stages is None:
        return tuple(outputs)
    unknown = [name for name in stages if name not in outputs]
    if unknown or not stages:
        given = ", ".join(map(repr, unknown)) or "an empty list"
        more = "" if "begin_frame" in outputs else ", and with video (--video) those of tracking"
        raise InputError(f"Got {given} as stages to export; there are {', '.join(outputs)}{more}.")
    return tuple(name for name in outputs if name in stages)


def _earlier_files(folder: Path, overwrite: bool) -> list[Path]:
    """Files of an earlier export, the manifest first. Raises OutputError where there is anything to lose."""
    if not folder.is_dir():
        if folder.exists():
            raise OutputError(f"cannot export to {str(folder)!r}: it is a file; give a folder.")
        return []
    try:
        found = sorted(folder.iterdir(), key=lambda path: (path.name != MANIFEST, path.name))
    except OSError as error:
        raise OutputError(f"cannot export to {str(folder)!r}: {error.strerror or error}.") from error
    if not found:
        return []
    if not overwrite:
        raise OutputError(
            f"cannot export to {str(folder)!r}: it is not empty. Give another folder, or --overwrite "
            "(overwrite=True) to replace an earlier export."
        )
    ours = _listed_files(folder / MANIFEST)
    foreign = [path.name for path in found if path.name not in ours or not path.is_file()]
    if foreign:
        raise OutputError(
            f"cannot replace {str(folder)!r}: it is not just an earlier export, it holds "
            f"{', '.join(foreign[:3])}. Nothing was deleted; give another folder."
        )
    return found


def _listed_files(path: Path) -> set[str]:
    """What an export consists of, by its manifest; empty if that is none of ours."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return set()
        return {MANIFEST, *(stage["file"] for stage in manifest["stages"])}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return set()


def _write_stage(model: Model, name: str, outputs: Sequence[str], folder: Path) -> dict[str, Any]:
    """Write one stage's file and describe it."""
    model.stage(name)  # checks that the file has its tensors
    stage = load_stage(model.config, name, model.image_size, "portable")
    stage = prune(stage, [output for output in outputs if output in stage.outputs])
    config = model.config.to_json()
    properties = {"masklet.version": __version__, "masklet.stage": name, CONFIG_KEY: config}
    path = folder / f"{name}{SUFFIX}"
    sha256 = _write(path, standalone(stage, model.tensor, properties))
    taken, given = ports(stage)
    return {
        "name": name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "inputs": [_described(port) for port in taken],
        "outputs": [_described(port) for port in given],
    }


def _write(path: Path, pieces: Iterable[bytes | memoryview]) -> str:
    """Write a file through to the disk; returns its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "xb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _described(port: Port) -> dict[str, Any]:
    return {**asdict(port), "meaning": MEANING[port.name]}


def _manifest(model: Model, stages: list[dict[str, Any]], video: bool) -> dict[str, Any]:
    name = preset_name(model.config)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "masklet": __version__,
        "model": name,
        "family": model.config.family,
        "version": model.config.version,
        "licence": registry.find(name).licence if name else None,
        "licence_is": "that of the published checkpoint; weights of your own have yours",
        "source": Path(model.source).name,
        "image_size": model.image_size,
        "stages": stages,
        "sizes": SIZES,
        **conventions_of(model.config).words,
    }
    if video:
        manifest["tracking"] = _tracking()
    return manifest


def _tracking() -> dict[str, Any]:
    """What a program around the files must do to follow objects through a video."""
    return {
        "frames": "resized to S x S by Pillow's bicubic on bytes; then as pictures are",
        "prompted_frame": (
            "decode_masks with embedding of encode_image; with stride16 in its place for a mask prompt, "
            "which goes through shrink_mask and encode_mask and is itself the mask. Then encode_memory with"
            " binary true"
        ),
        "later_frame": (
            "attend_memory, decode_masks with its embedding and two padding points, then encode_memory with"
            " binary false"
        ),
        "kept": (
            "with at most one point the candidate of 1, 2, 3 with the highest iou, and its token; with "
            "more, the one of masks.one, and token 0. All of its logits are absent_logit where object_score"
            " is not positive"
        ),
        "absent_logit": object_track.ABSENT_LOGIT,
        "rounding": "memories are rounded to bfloat16 (to nearest, ties to even) before they are looked at",
        "memories": (
            f"all prompted frames with slot {memory.CONDITIONING_SLOT}; the last {memory.WINDOW} frames, "
            "one frame old with slot 0, two frames with slot 1 and so on; a prompted frame counts once"
        ),
        "pointers": (
            f"those of prompted frames that are not in the future, then of up to {memory.MAX_POINTERS - 1} "
            "frames before; fewer in clips that are shorter"
        ),
        "distances": (
            f"frames between, over {memory.MAX_POINTERS - 1}, or over the clip's length - 1 if that is less"
        ),
        "feeding_back": (
            f"a correction takes the frame's earlier logits, clipped to +-{object_track.FED_BACK_LIMIT:g}, "
            "through encode_mask"
        ),
    }
