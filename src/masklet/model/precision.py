"""How numbers are stored and multiplied in a stage, and which layers stay exact.

In: the checkpoint keys of a linear layer. Out: whether it may run in 8 bits. Knows nothing about graphs or
engines, and imports neither onnx nor onnxscript, so that a wrong word is refused early.

  f32   weights as they are
  f16   matrices kept as 16-bit floats and widened right before they are used, which computes in f32
  int8  linear layers as products of 8-bit integers: weights per output channel, activations per call
        (Jacob et al. 2018, arXiv:1712.05877); so are queries and keys of memory attention; the rest as f32
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

PRECISIONS = ("f32", "f16", "int8")

# Linear layers that int8 leaves in f32, by pattern of their checkpoint keys, with the reason.
EXACT: Mapping[str, str] = {
    "image_encoder.trunk.blocks.0.*": "everything behind it sees its error; 96 to 144 channels gain least",
    "sam_prompt_encoder.*": "a few rows, and a mask prompt's layers have 4 to 64 inputs",
    "sam_mask_decoder.*": "a few rows; what is lost here is lost in the mask",
    "obj_ptr_*": "a few rows, remembered for the whole clip",
    "memory_encoder.pix_feat_proj.*": "what follows it is remembered: the two worst layers of tracking",
    "memory_encoder.out_proj.*": "the same",
}


def kept_exact(keys: Iterable[str], exact: Iterable[str]) -> bool:
    """True when a layer made of these checkpoint tensors is on a list of patterns."""
    patterns = tuple(exact)
    return any(fnmatchcase(key, pattern) for key in keys for pattern in patterns)
