"""What the writers of golden files share: reading one, comparing two contents, and the command line.

In: a writer's `golden` and what it allows to differ. Out: files in tests/golden, or lines that say what
differs. Knows nothing about what the files hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parents[1] / "tests" / "golden"

Content = dict[str, np.ndarray]
# Key, our array and the stored one, of the same shape and type: what is wrong, None if nothing is.
Problem = Callable[[str, np.ndarray, np.ndarray], str | None]


def read(name: str) -> Content:
    """The stored content of one file."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        return {key: stored[key] for key in stored.files}


def unequal(ours: np.ndarray, theirs: np.ndarray) -> str | None:
    """The problem of arrays that must be equal."""
    return None if np.array_equal(ours, theirs) else "differs"


def compare(found: Content, stored: Content, problem: Problem) -> list[str]:
    """What differs by more than is allowed, one line each; versions may."""
    lines = [f"{key}: only on one side" for key in sorted(set(found) ^ set(stored))]
    for key in sorted(set(found) & set(stored) - {"versions"}):
        ours, theirs = found[key], stored[key]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            lines.append(f"{key}: {ours.dtype}{ours.shape}, stored {theirs.dtype}{theirs.shape}")
        elif what := problem(key, ours, theirs):
            lines.append(f"{key}: {what}")
    return lines


def run(names: Iterable[str], golden: Callable[[str], Content], problem: Problem, prefix: str = "") -> None:
    """Write the golden files, or check them."""
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    check = parser.parse_args().check
    failed = False
    for name in names:
        content, file = golden(name), f"{prefix}{name}"
        if check:
            lines = compare(content, read(file), problem)
            failed |= bool(lines)
            print(f"{file}: {'equal' if not lines else chr(10).join(['differs', *lines])}")
        else:
            FOLDER.mkdir(parents=True, exist_ok=True)
            path = FOLDER / f"{file}.npz"
            np.savez_compressed(path, **content)
            print(f"{file}: {path.stat().st_size} bytes")
    sys.exit(1 if failed else 0)
