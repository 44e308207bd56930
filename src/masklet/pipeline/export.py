"""A model as files that other engines run: a portable ONNX file for each stage, and a manifest about them.

In: a `Model` and a folder. Out: the files, all or none. What a program around the files must do itself (scale
the picture, order the prompts, choose among the masks) stands in the manifest, with masklet's own numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from masklet import __version__, registry
from masklet.errors import InputError, OutputError
from masklet.families import sam2
from masklet.io.atomic import fill_folder
from masklet.pipeline import preprocess, prompts
from masklet.pipeline.image import LOGIT_LIMIT
from masklet.pipeline.model import Model
from masklet.runtime.cache import load_stage
from masklet.runtime.export import Port, ports, standalone
from masklet.runtime.prune import prune

FORMAT = "masklet-export-1"
MANIFEST = "manifest.json"
SUFFIX = ".onnx"

# Each stage's outputs that a picture needs, and what all of its values are.
OUTPUTS = {
    "encode_image": ("stride4", "stride8", "embedding"),
    "encode_points": ("sparse", "dense"),
    "encode_mask": ("dense",),
    "decode_masks": ("logits", "iou", "object_score", "tokens"),
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
}
SIZES = {
    "B": "number of prompted objects",
    "N": "number of points of each object, the padding point included",
    "D": "1, or B",
    "P": "1, or the number of image tokens",
}


def export(
    model: Model,
    folder: str | os.PathLike[str],
    *,
    stages: Sequence[str] | None = None,
    overwrite: bool = False,
    on_stage: Callable[[str], None] = lambda name: None,
) -> Path:
    """Write the model's stages (None: all) and a manifest into a folder; returns the manifest's path.

    The folder is made if it isn't there and must be empty otherwise; `overwrite` replaces an earlier export.
    Files appear when all of them are complete, the manifest last. `on_stage` is told each stage's name before
    it is written. Raises InputError for an unknown stage, OutputError, EngineError.
    """
    chosen = _checked_stages(stages)
    old = _earlier_files(Path(folder), overwrite)
    with fill_folder(folder, last=MANIFEST) as temporary:
        described = []
        for name in chosen:
            on_stage(name)
            described.append(_write_stage(model, name, temporary))
        text = json.dumps(_manifest(model, described), indent=2) + "\n"
        _write(temporary / MANIFEST, [text.encode()])
        for path in old:  # the manifest first: where there is one, it is true
            path.unlink()
    return Path(folder) / MANIFEST


def _checked_stages(stages: Sequence[str] | None) -> tuple[str, ...]:
    if stages is None:
        return tuple(OUTPUTS)
    unknown = [name for name in stages if name not in OUTPUTS]
    if unknown or not stages:
        given = ", ".join(map(repr, unknown)) or "an empty list"
        raise InputError(f"Got {given} as stages to export; there are {', '.join(OUTPUTS)}.")
    return tuple(name for name in OUTPUTS if name in stages)


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


def _write_stage(model: Model, name: str, folder: Path) -> dict[str, Any]:
    """Write one stage's file and describe it."""
    stage = prune(load_stage(model.config, name, model.image_size, "portable"), OUTPUTS[name])
    config = model.config.to_json()
    properties = {"masklet.version": __version__, "masklet.stage": name, sam2.CONFIG_KEY: config}
    path = folder / f"{name}{SUFFIX}"
    sha256 = _write(path, standalone(stage, model.tensor, properties))
    inputs, outputs = ports(stage)
    return {
        "name": name,
        "file": path.name,
        "bytes": path.stat().st_size,
        "sha256": sha256,
        "inputs": [_described(port) for port in inputs],
        "outputs": [_described(port) for port in outputs],
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


def _manifest(model: Model, stages: list[dict[str, Any]]) -> dict[str, Any]:
    name = sam2.preset_name(model.config)
    return {
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
        "token_order": (
            "Image features (stride4, stride8, embedding, and dense from encode_mask) list their tokens in "
            "nested blocks, not row by row. That is a detail of these files: hand the tensors on as they "
            "are. Mask inputs and logits are row by row."
        ),
        "preprocessing": {
            "input": "(1, 3, S, S) float32, channels red, green, blue, S = image_size",
            "resize": "to S x S (stretched, not padded), bilinear, antialiased, not rounded",
            "value": "(pixel / 255 - mean) / std",
            "mean": [round(float(value), 6) for value in preprocess.MEAN],
            "std": [round(float(value), 6) for value in preprocess.STD],
        },
        "prompts": {
            "coords": "(x * S / width, y * S / height) for x, y in pixels of the picture",
            "labels": {str(label): meaning for label, meaning in prompts.LABELS.items()},
            "order": (
                "for each object a box's two corners, then points, then one padding point (0, 0); "
                "with neither box nor points no padding point, N = 0"
            ),
        },
        "masks": {
            "threshold": 0.0,
            "to_picture": (
                "logits resized to the picture (bilinear, not antialiased, pixels are areas), > threshold"
            ),
            "several": "candidates 1, 2, 3 with their iou",
            "one": (
                "candidate 0 if it is stable: the count of logits > stability_delta is at least "
                "stability_threshold times the count of logits > -stability_delta, or the latter is 0; else "
                "the one of 1, 2, 3 with the highest iou"
            ),
            "stability_delta": prompts.STABILITY_DELTA,
            "stability_threshold": prompts.STABILITY_THRESHOLD,
            "feeding_back": f"clip the chosen logits to +-{LOGIT_LIMIT:g} before they go into encode_mask",
        },
    }
