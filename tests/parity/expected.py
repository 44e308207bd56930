"""What the reference answers for every variant and prompt case, kept on disk so that it is computed once.

In: a variant's name, a picture's and a case's. Out: dictionaries of numpy arrays by module path (see
`reference`). A kept answer is read without torch; a missing or damaged one is computed. Large intermediates
are kept as `masklet.testing.sampled` elements: compare them through `kept`.

    python tests/parity/expected.py [VARIANT ...] [--threads N] [--checkpoints]     fills the folder

The folder is `MASKLET_PARITY_CACHE`, or `.parity-cache` in the repository. In it a variant has a folder of
its own, whose name ends with a hash of what the answers depend on: the versions of the reference, the
variant's seed, the pictures, the prompts, and the rule that fills weights.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import time
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import prompt_cases
import reference

from masklet.testing import lively_weights, sampled

if TYPE_CHECKING:
    from sam2.sam2_image_predictor import SAM2ImagePredictor

ROOT = Path(__file__).parents[2]
# Read on import: before the first test runs, the user's variables are taken away (tests/conftest.py).
CACHE_FOLDER = Path(os.environ.get("MASKLET_PARITY_CACHE") or ROOT / ".parity-cache")
KEPT_ELEMENTS = 1 << 16
# What the bars speak of is kept whole.
WHOLE = frozenset(
    (
        *("image_embed", "masks", "ious", "low_res_masks"),
        *(
            f"sam_mask_decoder.{name}"
            for name in ("conv_s0", "conv_s1", "all_masks", "mask_tokens", "sam_tokens")
        ),
    )
)


def kept(name: str, array: np.ndarray) -> np.ndarray:
    """The elements of `array` that an answer holds under `name`."""
    return array if name in WHOLE else sampled(array, KEPT_ELEMENTS)


class Expected:
    """The reference's answers for one variant."""

    def __init__(self, variant: str, folder: Path | None = None) -> None:
        self.variant = variant
        self.folder = (folder or CACHE_FOLDER) / f"{variant}-{cache_key(variant)}"
        self._encoded: dict[str, SAM2ImagePredictor] = {}

    def encoder(self, picture: str = "landscape") -> dict[str, np.ndarray]:
        """`reference.dump_encoder` of a picture."""
        return self._answer(f"{picture}.encoder", lambda: self._encode(picture)[0])

    def prompt(self, case: str, picture: str = "landscape") -> dict[str, np.ndarray]:
        """`reference.dump_prompt` of a case on a picture."""
        arguments = {c.name: c.arguments for c in prompt_cases.cases_for(picture)}[case]

        def compute() -> dict[str, np.ndarray]:
            if picture not in self._encoded:
                self._encode(picture)
            return reference.dump_prompt(self._encoded[picture], **arguments)

        return self._answer(f"{picture}.{case}", compute)

    def checkpoint(self) -> Path:
        """The variant's weights as Meta publishes them, a .pt file."""
        path = self.folder / f"{self.variant}.pt"
        if not path.exists():
            _write(path, lambda partial: reference.save_pt(self.model, partial))
        return path

    @property
    def model(self) -> Any:
        """The reference model; built on first use, the last one built is kept."""
        return _built(self.variant)

    def _encode(self, picture: str) -> tuple[dict[str, np.ndarray], SAM2ImagePredictor]:
        model = self.model
        encoded = reference.predictor(model)
        seen = reference.dump_encoder(model, prompt_cases.picture(picture).image, encoded)
        self._encoded[picture] = encoded
        return seen, encoded

    def _answer(self, stem: str, compute: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        path = self.folder / f"{stem}.npz"
        try:
            with path.open("rb") as file, np.load(file) as stored:
                return {name: stored[name] for name in stored.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError):
            answer = {name: kept(name, array) for name, array in compute().items()}
            _write(path, lambda partial: np.savez(partial, **answer))
            return answer


@lru_cache
def cache_key(variant: str) -> str:
    """A hash of everything that a variant's answers follow from."""
    digest = hashlib.sha256(repr((sorted(reference.REFERENCE_VERSIONS.items()), KEPT_ELEMENTS)).encode())
    digest.update(repr(reference.VARIANTS[variant]).encode())
    for name in prompt_cases.PICTURES:
        digest.update(prompt_cases.picture(name).image.tobytes())
        for case in prompt_cases.cases_for(name):
            digest.update(case.name.encode())
            for key, value in case.arguments.items():
                digest.update(key.encode() + np.asarray(value).tobytes())
    probes = {  # one tensor of each role
        "image_encoder.trunk.pos_embed": (1, 8, 7, 7),
        "image_encoder.trunk.blocks.0.norm1.weight": (8,),
        "image_encoder.trunk.blocks.0.attn.qkv.weight": (24, 8),
        "image_encoder.trunk.blocks.0.attn.qkv.bias": (24,),
        "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 8),
        "sam_prompt_encoder.point_embeddings.0.weight": (1, 8),
        "sam_mask_decoder.output_upscaling.0.weight": (8, 4, 2, 2),
        "sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.weight": (4, 8),
        "memory_encoder.fuser.layers.0.gamma": (8,),
    }
    for name, array in lively_weights(probes).items():
        digest.update(name.encode() + array.tobytes())
    return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _built(variant: str) -> Any:
    return reference.build(variant)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write beside `path` and rename, so that an interrupted run leaves no half file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def main() -> None:
    """Fill the folder for the named variants, or for all."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=f"of {', '.join(reference.VARIANTS)}")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--checkpoints", action="store_true", help="also write each variant's .pt file")
    options = parser.parse_args()
    unknown = set(options.variants) - set(reference.VARIANTS)
    if unknown:
        parser.error(f"unknown variant {', '.join(sorted(unknown))}; known: {', '.join(reference.VARIANTS)}")
    if options.threads:
        import torch

        torch.set_num_threads(options.threads)

    for variant in options.variants or reference.VARIANTS:
        expected, started = Expected(variant), time.perf_counter()
        for picture in prompt_cases.PICTURES:
            expected.encoder(picture)
            for case in prompt_cases.cases_for(picture):
                expected.prompt(case.name, picture)
        if options.checkpoints:
            expected.checkpoint()
        print(f"{variant}: {time.perf_counter() - started:.0f} s, {expected.folder}", file=sys.stderr)


if __name__ == "__main__":
    main()
