"""What is remembered of one object, by frame, kept in a store that may spill to disk.

In and out: `FrameMemory` by frame number, as a dictionary. All objects of a video share one store, and so one
budget.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping

import numpy as np

from masklet.io.spill import RecordStore
from masklet.pipeline.memory import FrameMemory


def record_store(tokens: int, memory_dim: int, channels: int, side: int, budget: int | None) -> RecordStore:
    """A store for frames with T = `tokens` memory tokens, C = `channels` and logits of `side` x `side`
    pixels."""
    return RecordStore(
        {
            "logits": (np.dtype(np.float32), (1, side, side)),
            "pointer": (np.dtype(np.float32), (channels,)),
            "memory": (np.dtype(np.uint16), (tokens, memory_dim)),
        },
        budget,
    )


class FrameBook(MutableMapping[int, FrameMemory]):
    """Final memories of one object, in the order in which they came."""

    def __init__(self, store: RecordStore) -> None:
        self._store = store
        self._entries: dict[int, tuple[int, tuple[float, float, float]]] = {}  # frame -> key, scores

    def __getitem__(self, frame: int) -> FrameMemory:
        key, scores = self._entries[frame]
        arrays = self._store.get(key)
        return FrameMemory(arrays["logits"], arrays["pointer"], arrays["memory"], *scores)

    def __setitem__(self, frame: int, memory: FrameMemory) -> None:
        arrays = {"logits": memory.logits, "pointer": memory.pointer, "memory": memory.memory}
        key = self._store.put(arrays)  # may fail: what was there before stays
        old = self._entries.get(frame)
        self._entries[frame] = key, (memory.object_score, memory.predicted_iou, memory.stability)
        if old is not None:
            self._store.drop(old[0])

    def __delitem__(self, frame: int) -> None:
        self._store.drop(self._entries.pop(frame)[0])

    def clear(self) -> None:
        """Forget all frames. The inherited method would read each one back first."""
        for frame in list(self._entries):
            del self[frame]

    def __contains__(self, frame: object) -> bool:
        return frame in self._entries

    def __iter__(self) -> Iterator[int]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
