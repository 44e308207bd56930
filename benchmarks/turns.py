"""Programs in processes of their own that wait for their turns, so that peak memory is each one's own and no
thread pool disturbs another's.

In: command lines. Out: the answer to each turn: a process reads the turn's name from stdin, a line, and
prints one line of JSON. Knows nothing about what is measured.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, TypeVar

Taker = TypeVar("Taker")


class Program:
    """A process that takes turns."""

    def __init__(self, name: str, command: Sequence[object], threads: int, **environment: str) -> None:
        """`command` are the arguments of Python; `name` is for messages."""
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": str(threads), **environment},
        )

    def turn(self, step: str) -> dict[str, Any]:
        """What the process answers to this turn."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(step + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._name} ended in its turn {step!r}")
        return json.loads(line)

    def end(self) -> None:
        """No more turns."""
        self._process.communicate()


def in_turn(takers: list[Taker], number: int) -> list[Taker]:
    """The order of round `number`: each begins in its turn."""
    first = number % len(takers)
    return takers[first:] + takers[:first]


def peak_memory() -> int:
    """The most that this process has held so far, resident, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_apart(code: str) -> None:
    """Run code in a process of its own, which finds the same modules."""
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}\n{code}"], check=True)
