"""Two ways through the same scenario, compared: what was yielded, what was remembered, and single steps.

In: a `Recording` of the reference, and what someone else yielded and kept. Out: a `Report` in words. Knows
nothing about who that someone is; numpy only.

A network that is run on its own outputs makes discrete choices, and a difference of 1e-5 may turn one: the
object's score against 0, the best predicted IoU, "stable", and, where masks may not overlap, the owner of a
pixel. A frame may miss the bars only where the reference itself nearly chose otherwise, or behind such a
frame; it is reported apart.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from measures import cosine, iou
from recordings import Decision, Recording
from video_cases import Event, Reset, Scenario

LOGITS_COSINE = 0.9999
MASK_IOU = 0.995
FLIP_MARGIN = 1e-4  # of scores and predicted IoU, and of logits against the thresholds of "stable"
# In logits, from the first to the second owner of a pixel: as for the others 1e-4, of the range of logits.
TIE = 5e-3


@dataclass
class Report:
    """`failures` must be empty; `flips` are frames that missed the bars with an excuse."""

    failures: list[str] = field(default_factory=list)
    flips: list[str] = field(default_factory=list)
    masks: int = 0
    worst_cosine: float = 1.0
    worst_iou: float = 1.0
    most_ties: float = 0.0

    def __str__(self) -> str:
        lines = [
            f"{self.masks} masks: cosine >= {self.worst_cosine:.8f}, IoU >= {self.worst_iou:.5f}, "
            f"{len(self.flips)} behind a flip, ties in up to {self.most_ties:.2%} of a frame",
            *self.failures[:10],
            *self.flips[:10],
        ]
        return "\n  ".join(lines)


def values(bits: np.ndarray) -> np.ndarray:
    """The float32 values of bfloat16 given as uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def compare_events(scenario: Scenario, recording: Recording, events: Iterable[Event]) -> Report:
    """Every yielded mask of every object against the reference's."""
    report, excused, last_step = Report(), set(), -1
    events = list(events)
    for index, (theirs, ours) in enumerate(zip(recording.events, events, strict=False)):
        head = (theirs.step, theirs.frame, theirs.object_ids)
        if head != (ours.step, ours.frame, ours.object_ids) or theirs.logits.shape != ours.logits.shape:
            found = (ours.step, ours.frame, ours.object_ids, ours.logits.shape)
            report.failures.append(f"event {index}: {found} instead of {(*head, theirs.logits.shape)}")
            return report
        if any(isinstance(step, Reset) for step in scenario.steps[last_step + 1 : theirs.step]):
            excused.clear()
        last_step = theirs.step
        _compare_masks(report, recording, index, ours, excused)
    if len(events) != len(recording.events):
        report.failures.append(f"{len(events)} events instead of {len(recording.events)}")
    return report


def _compare_masks(report: Report, recording: Recording, index: int, ours: Event, excused: set[int]) -> None:
    theirs = recording.events[index]
    lead = recording.lead.get(index)
    decided = np.full(theirs.logits.shape[2:], True) if lead is None else lead >= TIE
    report.most_ties = max(report.most_ties, 1 - float(decided.mean()))
    for position, obj in enumerate(theirs.object_ids):
        a, b = ours.logits[position, 0][decided], theirs.logits[position, 0][decided]
        found = cosine(a, b), iou(a > 0, b > 0)
        report.masks += 1
        if found[0] >= LOGITS_COSINE and found[1] >= MASK_IOU:
            report.worst_cosine = min(report.worst_cosine, found[0])
            report.worst_iou = min(report.worst_iou, found[1])
            continue
        decision = latest_decision(recording, theirs, obj)
        place = f"step {theirs.step}, frame {theirs.frame}, object {obj}"
        line = f"{place}: cosine {found[0]:.7f}, IoU {found[1]:.4f}"
        if obj in excused or (decision is not None and decision.margin < FLIP_MARGIN):
            excused.update([obj] if lead is None else theirs.object_ids)
            report.flips.append(f"{line}, margins {decision.margins if decision else None}")
        else:
            report.failures.append(line)


def latest_decision(recording: Recording, event: Event, obj: int) -> Decision | None:
    """The choice that the mask of an object in an event came from."""
    found = [
        decision
        for decision in recording.decisions
        if decision.obj == obj and decision.frame == event.frame and decision.step <= event.step
    ]
    return found[-1] if found else None
