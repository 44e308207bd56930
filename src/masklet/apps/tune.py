"""`masklet bench --tune`: which settings are fastest on this machine, written as a profile.

In: a model, and the settings that are given, which are kept. Out: a table of what was measured and why it was
chosen, and a profile. Precision is tried first, then threads; the candidates for one setting take turns, so
that a busy minute of the machine meets all of them.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masklet.apps import options, terminal
from masklet.apps.timing import CLICKS_PER_ENCODING, Steps, steps_of
from masklet.errors import InputError, OutputError

if TYPE_CHECKING:
    from masklet import Model

WORTHWHILE = 1.05  # times as fast as the first of the list: less is not chosen
QUICK = "int8"  # a precision that is tried beside the model's own
HEADER = ("tried", "precision", "threads", "encode", "click", "x faster", "")


@dataclass(frozen=True)
class Candidate:
    """Settings that are tried, and the seconds of their encodings and clicks."""

    precision: str
    threads: int
    encodings: list[float] = field(default_factory=list)
    clicks: list[float] = field(default_factory=list)

    @property
    def encoding(self) -> float:
        return statistics.median(self.encodings)

    @property
    def click(self) -> float:
        return statistics.median(self.clicks)

    @property
    def seconds(self) -> float:
        """Of a picture with its clicks."""
        return self.encoding + CLICKS_PER_ENCODING * self.click


@dataclass(frozen=True)
class Choice:
    """One setting: its candidates, which of them is taken, and why, in words."""

    setting: str
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    reason: str


def tune_model(given: options.Computation, repeats: int, *, overwrite: bool, json: bool) -> None:
    """Measure, print, and write the profile. `given.model` is a file, `given.profile` where to write.

    Raises OutputError before the work for a file that is there already or cannot be written, InputError when
    nothing says where to write."""
    from masklet import load, registry
    from masklet.io.atomic import open_atomic
    from masklet.io.toml import toml_text
    from masklet.pipeline.profile import PROFILE
    from masklet.runtime.devices import usable_cores

    weights = options.local_file(given.model)
    if given.profile is None and weights == registry.BUNDLED.path:
        raise InputError(
            f"{registry.BUNDLED.name} is part of the package, where no profile is kept; give --profile FILE, "
            "here and to the commands that shall use it."
        )
    path = given.profile or weights.parent / PROFILE
    _check_writable(path, overwrite)

    def loaded(precision: str | None, threads: int | None) -> Model:
        arguments = {**given.arguments(), "precision": precision, "threads": threads}
        return load(given.model, **arguments, profile=os.devnull)  # an earlier profile takes no part

    model = loaded(given.precision, given.threads)
    device = model.device.name
    choices = choose(
        Candidate(model.precision, given.threads or usable_cores()),
        precisions=given.precision is None and device == "cpu" and model.precision != QUICK,
        threads=given.threads is None and device == "cpu",
        steps=lambda one: steps_of(loaded(one.precision, one.threads)),
        repeats=repeats,
    )
    chosen = choices[-1].chosen
    values: dict[str, str | int | bool] = {"device": device, "threads": chosen.threads}
    values["precision"] = chosen.precision
    if given.image_size is not None:
        values["image_size"] = given.image_size
    values["cache"] = True
    table = HEADER, [row for choice in choices for row in _rows(choice)], "  rrrr"
    reasons = [f"{choice.setting} {choice.reason}" for choice in choices]
    title = f"masklet bench --tune: {options.model_name(model)}, {usable_cores()} usable cores"
    with open_atomic(path) as file:
        file.write(toml_text(values, [title, "", *terminal.aligned(*table), "", *reasons]).encode())
    if json:
        terminal.write_json(_document(path, values, choices))
    else:
        terminal.write_table(*table)
        terminal.write("".join(f"{reason}\n" for reason in reasons) + f"profile {path}\n")
    if chosen.precision == QUICK and given.precision is None:
        terminal.note("int8 computes approximately; --tune --precision auto keeps what the file has.")


def choose(
    first: Candidate,
    *,
    precisions: bool,
    threads: bool,
    steps: Callable[[Candidate], Steps],
    repeats: int,
) -> list[Choice]:
    """Try what may be tried, beginning with `first`. At least one choice, perhaps of a single candidate."""
    choices: list[Choice] = []
    if precisions:
        tried = (first, Candidate(QUICK, first.threads))
        choices.append(_choice("precision", tried, steps, repeats))
        first = choices[0].chosen
    counts = sorted({max(first.threads // part, 1) for part in (1, 2, 4)}, reverse=True)
    if threads and len(counts) > 1:
        tried = tuple(Candidate(first.precision, count) for count in counts)
        choices.append(_choice("threads", tried, steps, repeats))
    return choices or [_choice("settings", (first,), steps, repeats)]


def _choice(
    setting: str, candidates: tuple[Candidate, ...], steps: Callable[[Candidate], Steps], repeats: int
) -> Choice:
    """Time the candidates; the fastest is taken if that is worthwhile beside the first."""
    named = [f"{one.precision}, {one.threads} threads" for one in candidates]
    terminal.note(f"Timing {repeats} encodings each of: {'; '.join(named)}")
    _measure([(one, steps(one)) for one in candidates], repeats)
    first, best = candidates[0], min(candidates, key=lambda one: one.seconds)
    name = {id(one): str(getattr(one, setting, "as given")) for one in candidates}
    gain = first.seconds / best.seconds
    if len(candidates) == 1:
        return Choice(setting, candidates, first, "as given: nothing is left to choose")
    if best is first:
        return Choice(setting, candidates, first, f"{name[id(first)]}: the fastest")
    if gain < WORTHWHILE:
        reason = f"{name[id(first)]}: {name[id(best)]} is only {gain:.2f} times as fast"
        return Choice(setting, candidates, first, reason)
    reason = f"{name[id(best)]}: {gain:.2f} times as fast as {name[id(first)]}"
    return Choice(setting, candidates, best, reason)


def _measure(candidates: Sequence[tuple[Candidate, Steps]], repeats: int) -> None:
    """Fill in the seconds of candidates that take turns, each first in its turn; round 0 warms up."""
    for number in range(repeats + 1):
        first = number % len(candidates)
        for candidate, steps in [*candidates[first:], *candidates[:first]]:
            encoding = steps.encode()
            clicks = [steps.click(index) for index in range(CLICKS_PER_ENCODING)]
            if number:
                candidate.encodings.append(encoding)
                candidate.clicks.extend(clicks)


def _check_writable(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise OutputError(
            f"{str(path)!r} is there already; give --overwrite to replace it, or --profile with another name."
        )
    if not path.parent.is_dir():
        raise OutputError(
            f"cannot write {str(path)!r}: the folder {str(path.parent)!r} does not exist; create it first."
        )
    if not os.access(path.parent, os.W_OK):
        raise OutputError(
            f"cannot write {str(path)!r}: no permission to write to the folder {str(path.parent)!r}; give "
            "--profile with a name in another one."
        )


def _rows(choice: Choice) -> list[tuple[str, ...]]:
    """The table's lines for one setting: every candidate beside the first."""
    base = choice.candidates[0].seconds
    return [
        (
            choice.setting,
            one.precision,
            str(one.threads),
            f"{one.encoding:.3g} s",
            f"{1000 * one.click:.3g} ms",
            f"{base / one.seconds:.2f}",
            "chosen" if one is choice.chosen else "",
        )
        for one in choice.candidates
    ]


def _document(path: Path, values: dict[str, Any], choices: Sequence[Choice]) -> dict[str, Any]:
    return {
        "profile": str(path),
        "settings": values,
        "choices": [
            {
                "setting": choice.setting,
                "reason": choice.reason,
                "candidates": [
                    {
                        "precision": one.precision,
                        "threads": one.threads,
                        "encode_seconds": one.encodings,
                        "click_seconds": one.clicks,
                        "chosen": one is choice.chosen,
                    }
                    for one in choice.candidates
                ],
            }
            for choice in choices
        ],
    }
