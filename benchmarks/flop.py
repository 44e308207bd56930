"""Multiplications and additions of products, from shapes: what a step must compute, and what a kernel did.

In: ONNX Runtime's profiles, or a configuration. Out: FLOP. Everything but products counts as free. Knows
nothing about timing programs or writing pages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from masklet.families.sam2 import Sam2Config

MEMORIES, POINTERS = (
    7,
    16,
)  # what a full step reads: the conditioning frame and six others, and their pointers
LAYERS, MLP = 4, 2048  # of memory attention


@dataclass(frozen=True)
class Kernel:
    """One operator's run."""

    operator: str
    microseconds: float
    flop: float


def kernels(profile: Path, runs: int) -> Iterator[Kernel]:
    """The kernels of the last `runs` runs in a session's profile."""
    events = json.loads(profile.read_text())
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    for event in events:
        if runs and event["ts"] >= starts[-runs] and event["name"].endswith("_kernel_time"):
            node = event["args"]
            yield Kernel(node["op_name"], event["dur"], _flop(node))


def _flop(node: dict[str, Any]) -> float:
    shapes = [next(iter(shape.values())) for shape in node["input_type_shape"]]
    out = next(iter(node["output_type_shape"][0].values())) if node["output_type_shape"] else []
    kind = node["op_name"]
    if kind in ("FusedMatMul", "MatMul", "Gemm"):
        return 2.0 * float(np.prod(out)) * shapes[0][-1]
    if kind == "MultiHeadAttention":
        (batch, queries, channels), keys = shapes[0], shapes[1][1]
        return 2.0 * batch * queries * keys * (channels + out[-1])
    if kind in ("Conv", "FusedConv", "NhwcFusedConv"):
        return 2.0 * float(np.prod(out)) * float(np.prod(shapes[1][1:]))
    if kind == "ConvTranspose":
        return 2.0 * float(np.prod(shapes[0])) * float(np.prod(shapes[1][1:]))
    return 0.0


def memory_attention(config: Sam2Config, *, folded: bool) -> float:
    """Memory attention for one object with full memory: as the reference computes it, or with the values left
    at the memory's own channels (their projection and the output's are one matrix).
    """
    tokens, width, narrow = (config.image_size // 16) ** 2, config.d_model, config.memory_dim
    keys = MEMORIES * tokens + POINTERS * width // narrow
    among = 8 * tokens * width**2 + 4 * tokens**2 * width  # four projections; scores and values
    queries, key_projection = 2 * tokens * width**2, 2 * keys * narrow * width
    if folded:
        to_memory = key_projection + 2 * tokens * keys * (width + narrow) + 2 * tokens * narrow * width
    else:
        to_memory = 2 * key_projection + 4 * tokens * keys * width + 2 * tokens * width**2
    return float(LAYERS * (among + queries + to_memory + 4 * tokens * width * MLP))
