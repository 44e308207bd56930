"""What a predictor did while a scenario played: yields, state, choices.

In and out: numpy arrays and plain numbers, in the reference's layout; to and from one flat dictionary for
`.npz`. Knows nothing about networks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from video_cases import Event


@dataclass(frozen=True)
class Decision:
    """What one run of the network for one object and frame chose, and by how much.

    `mask` is the kept candidate, None where a mask prompt is its own answer. `margins` are the smallest
    changes that turn a choice: the object score's distance from 0, the best predicted IoU's from the next,
    and what mask logits must move by to turn "stable".
    """

    step: int
    frame: int
    obj: int
    reverse: bool
    prompted: bool
    score: float
    ious: tuple[float, ...]
    mask: int | None
    stability: float
    margins: dict[str, float]
    # What was attended to, in order: (frame, row of the table of ages), (frame, time as encoded; 0 in 2.0).
    memories: tuple[tuple[int, int], ...] = ()
    pointers: tuple[tuple[int, float], ...] = ()
    # What there was to choose from: frames in the order of their stores.
    conditioning: tuple[int, ...] = ()
    tracked: tuple[int, ...] = ()

    @property
    def margin(self) -> float:
        return min(self.margins.values())


@dataclass
class Recording:
    """A scenario as the reference played it.

    `kept[e]` has for event e and each object with a state in its frame: `low_res` (h, w), `pointer` (C,),
    `score`, and `memory` (C, h, w) bfloat16 as uint16 once it is encoded. `forced` has the steps of
    `Scenario.forced`, with the arrays of `reference_video._Recorder._whole`. Where masks may not overlap,
    `lead[e]` (H, W) tells by how much the winner of each pixel won.
    """

    num_frames: int
    events: list[Event] = field(default_factory=list)
    kept: list[dict[int, dict[str, np.ndarray]]] = field(default_factory=list)
    lead: dict[int, np.ndarray] = field(default_factory=dict)
    decisions: list[Decision] = field(default_factory=list)
    forced: dict[tuple[int, int, int], dict[str, np.ndarray]] = field(default_factory=dict)

    def decision(self, key: tuple[int, int, int]) -> Decision:
        """The last one for (step, frame, object)."""
        return [d for d in self.decisions if (d.step, d.frame, d.obj) == key][-1]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """For `np.savez`."""
        events = [(event.step, event.frame, event.object_ids) for event in self.events]
        plain = {
            "num_frames": self.num_frames,
            "events": events,
            "decisions": [asdict(decision) for decision in self.decisions],
        }
        arrays = {"plain": np.array(json.dumps(plain))}
        for index, (event, kept) in enumerate(zip(self.events, self.kept, strict=True)):
            arrays[f"event/{index}"] = event.logits
            for obj, state in kept.items():
                arrays.update({f"kept/{index}/{obj}/{name}": array for name, array in state.items()})
        arrays.update({f"lead/{index}": array for index, array in self.lead.items()})
        for key, state in self.forced.items():
            prefix = "/".join(map(str, key))
            arrays.update({f"forced/{prefix}/{name}": array for name, array in state.items()})
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Recording:
        """The inverse of `to_arrays`."""
        plain = json.loads(str(arrays["plain"]))
        events = [
            Event(step, frame, tuple(ids), arrays[f"event/{index}"])
            for index, (step, frame, ids) in enumerate(plain["events"])
        ]
        found = cls(plain["num_frames"], events, [{} for _ in events])
        found.decisions = [_decision(values) for values in plain["decisions"]]
        for name, array in arrays.items():
            kind, *path = name.split("/")
            if kind == "kept":
                index, obj, what = path
                found.kept[int(index)].setdefault(int(obj), {})[what] = array
            elif kind == "lead":
                found.lead[int(path[0])] = array
            elif kind == "forced":
                *key, what = path
                step, frame, obj = map(int, key)
                found.forced.setdefault((step, frame, obj), {})[what] = array
        return found


def _decision(values: dict[str, Any]) -> Decision:
    lists = ("ious", "conditioning", "tracked")
    pairs = {name: tuple(tuple(pair) for pair in values[name]) for name in ("memories", "pointers")}
    return Decision(**{**values, **{name: tuple(values[name]) for name in lists}, **pairs})
