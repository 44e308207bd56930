"""Stand-ins for tests and demonstrations: seeded "lively" weights, pictures and clips with known masks.

In: tensor names and shapes, or a seed and a picture's size. Out: numpy arrays; and checkpoints made of them.

Everything here is bit-identical on every platform and numpy version: only the raw words of PCG64 (a stream
that numpy guarantees), integer arithmetic, and single float32 operations, which IEEE 754 rounds exactly. No
value passes through a library's `exp`, `sin` or `normal`, so expected outputs made on one machine hold on
all.
"""

from __future__ import annotations

from masklet.testing.scenes import Clip, Scene, occlusion_clip, synthetic_clip, synthetic_scene
from masklet.testing.weights import (
    lively_weights,
    sampled,
    stand_in_weights,
    tiny_config,
    tiny_edgetam_config,
    tiny_sam1_config,
    weights_sha256,
    write_stand_in,
)

__all__ = [
    "Clip",
    "Scene",
    "lively_weights",
    "occlusion_clip",
    "sampled",
    "stand_in_weights",
    "synthetic_clip",
    "synthetic_scene",
    "tiny_config",
    "tiny_edgetam_config",
    "tiny_sam1_config",
    "weights_sha256",
    "write_stand_in",
]
