"""What the reference's video predictor answers for every scenario, kept on disk so that it is computed once.

In: a variant's name, an image size, a scenario. Out: a `Recording`, the folder of JPEG files that it was made
from, and the weights as a checkpoint. A kept recording is read without torch; a missing or damaged one is
made.

The folder is that of `expected`; a variant's folder in it ends with a hash of what the recordings depend on.
"""

from __future__ import annotations

import hashlib
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import reference
import reference_video
import video_cases
from expected import CACHE_FOLDER, _write
from recordings import Recording
from video_cases import Scenario

from masklet.testing import lively_weights

FORMAT = 1  # of recordings: increase it when `reference_video` records something else


class ExpectedVideo:
    """The reference's answers for one variant at one image size."""

    def __init__(self, variant: str, image_size: int, folder: Path | None = None) -> None:
        self.variant, self.image_size = variant, image_size
        self.folder = (folder or CACHE_FOLDER) / f"video-{variant}-{image_size}"

    def recording(self, scenario: Scenario) -> Recording:
        """The scenario as the reference plays it."""
        path = self.folder / f"{scenario.name}-{self._key(scenario)}.npz"
        try:
            with path.open("rb") as file, np.load(file) as stored:
                return Recording.from_arrays({name: stored[name] for name in stored.files})
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError):
            made = reference_video.record(self.model, self.frames(scenario), scenario)
            _write(path, lambda partial: np.savez(partial, **made.to_arrays()))
            return made

    def frames(self, scenario: Scenario) -> Path:
        """The scenario's clip as a folder of JPEG files."""
        key = hashlib.sha256(repr(scenario.shots).encode()).hexdigest()[:16]
        return video_cases.write_frames(scenario.shots, self.folder / f"frames-{key}")

    @property
    def model(self) -> Any:
        """The reference's predictor; built on first use, the last one built is kept."""
        return _built(self.variant, self.image_size)

    def _key(self, scenario: Scenario) -> str:
        """A hash of everything that a recording follows from."""
        fill = reference_video.FILLS[self.variant, self.image_size]
        parts = (FORMAT, sorted(reference.REFERENCE_VERSIONS.items()), fill, scenario)
        digest = hashlib.sha256(repr(parts).encode())
        for file in sorted(self.frames(scenario).iterdir()):
            digest.update(file.read_bytes())
        probes = {  # one tensor of each role that lies behind memories; `expected.cache_key` has the others
            "memory_attention.layers.0.cross_attn_image.q_proj.weight": (8, 4),
            "memory_attention.layers.0.norm1.weight": (8,),
            "memory_encoder.fuser.layers.0.gamma": (8,),
            "obj_ptr_tpos_proj.weight": (4, 8),
            "maskmem_tpos_enc": (7, 1, 1, 4),
            "sam_mask_decoder.output_hypernetworks_mlps.0.layers.2.weight": (4, 8),
        }
        for name, array in lively_weights(probes).items():
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=1)
def _built(variant: str, image_size: int) -> Any:
    return reference_video.build(variant, image_size)
