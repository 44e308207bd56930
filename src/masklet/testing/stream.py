"""Random words that are the same everywhere: what weights and pictures are drawn from.

In: a key. Out: the raw words of PCG64, a stream that numpy guarantees.
"""

from __future__ import annotations

import hashlib

import numpy as np


def raw_words(key: str, count: int) -> np.ndarray:
    """`count` uniform 64-bit words, little-endian, fixed by `key`."""
    seed = np.frombuffer(hashlib.sha256(key.encode()).digest(), "<u4").tolist()
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count).astype("<u8", copy=False)
