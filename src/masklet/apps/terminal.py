"""What commands say, and where: results on stdout, progress and messages on stderr.

In: text, tables, JSON documents, progress. Out: the two streams. A terminal gets colours and moving bars; a
file or a pipe gets plain lines, never wrapped. Knows nothing about models.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from masklet.errors import OutputError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn

_UNITS = ("B", "kB", "MB", "GB", "TB")

# ----------------------------------------------------------------------------------------- results, on stdout


def write(text: str) -> None:
    """Write to stdout, now. A full disk is an `OutputError`.

    A reader that went away, as `head` does, is a `BrokenPipeError`: typer makes it a silent exit code 1.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        _drop_stdout()
        if isinstance(error, BrokenPipeError):
            raise
        raise OutputError(f"cannot write the result to standard output: {error.strerror or error}") from error


def write_json(document: Mapping[str, Any]) -> None:
    """One JSON document on stdout."""
    write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def write_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Aligned columns on stdout; `right` as in `aligned`."""
    first, *others = aligned(header, rows, right)
    write(_emphasised(f"{first}\n") + "".join(f"{line}\n" for line in others))


def aligned(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> list[str]:
    """The lines of a table; `right` has an "r" at each column that is aligned right, in order."""
    widths = [max(len(line[column]) for line in (header, *rows)) for column in range(len(header))]
    flush_right = [right[column : column + 1] == "r" for column in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(cells, widths, flush_right, strict=True)
        ]
        return "  ".join(padded).rstrip()

    return [line(header), *map(line, rows)]


def write_fields(fields: Mapping[str, str]) -> None:
    """Names and values on stdout, one pair a line; further lines of a value are indented like its first."""
    width = max(map(len, fields))
    lines = []
    for name, value in fields.items():
        first, *rest = value.split("\n")
        lines.append(f"{_emphasised(name.ljust(width))}  {first}")
        lines += [f"{'':{width}}  {line}" for line in rest]
    write("\n".join(lines) + "\n")


def _emphasised(text: str) -> str:
    """Bold where stdout is a terminal that wants it."""
    if not sys.stdout.isatty():
        return text
    from rich.console import Console

    # Into memory: a console on stdout would write to it here, outside `write` and its care for errors.
    console = Console(file=io.StringIO(), force_terminal=True, markup=False, highlight=False)
    with console.capture() as captured:
        console.print(text, style="bold", end="", soft_wrap=True)
    return captured.get()


def _drop_stdout() -> None:
    """Send what is still buffered for stdout nowhere, so that it doesn't fail again when Python exits."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is not a file, as in tests
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def human_size(count: float) -> str:
    """A number of bytes for people, in powers of 1000, as download pages state it."""
    if count < 1000:
        return f"{count:.0f} B"
    power = 0
    while round(count, 1) >= 1000 and power < len(_UNITS) - 1:
        count /= 1000
        power += 1
    return f"{count:.1f} {_UNITS[power]}"


# ---------------------------------------------------------------------------------------- messages, on stderr


def note(text: str) -> None:
    """One line for the person at the terminal."""
    print(text, file=sys.stderr)


def error(text: str) -> None:
    """What went wrong, prefixed with "error:"."""
    if not sys.stderr.isatty():
        note(f"error: {text}")
        return
    from rich.text import Text

    _console().print(Text.assemble(("error:", "bold red"), " ", text), soft_wrap=True)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """A moving sign beside `text` while the block runs, on a terminal only."""
    if not sys.stderr.isatty():
        yield
        return
    with _console().status(text):
        yield


@contextlib.contextmanager
def download_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a download; the block's value is called with the bytes done and in all."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import DownloadColumn, TransferSpeedColumn

    with _progress(DownloadColumn(), TransferSpeedColumn()) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def search_bar(label: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for a search; the block's value is called with the steps done and in all."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.progress import MofNCompleteColumn

    with _progress(MofNCompleteColumn()) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextlib.contextmanager
def frame_bar(label: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar for the frames of a video; the block's value is called with the number that are done.

    It shows frames per second and, where the number of all frames is known, the time left.
    """
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    import time

    from rich.progress import MofNCompleteColumn, TextColumn

    columns = (MofNCompleteColumn(), TextColumn("{task.fields[rate]}", markup=False))
    with _progress(*columns, speed_estimate_period=120) as progress:
        task = progress.add_task(label, total=total, rate="")
        began = time.monotonic()

        def advance(done: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-6)
            progress.update(task, completed=done, rate=f"{rate:.3g} frames/s")

        yield advance


def _progress(*columns: ProgressColumn, speed_estimate_period: float = 30) -> Progress:
    """A bar on stderr that goes away at its end: label, bar, the columns, the time left."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    label = TextColumn("{task.description}", markup=False)
    return Progress(
        *(label, BarColumn(), *columns, TimeRemainingColumn()),
        console=_console(),
        transient=True,
        # Rich would send to stderr what the block writes to stdout, such as results that a pipe waits for.
        redirect_stdout=False,
        redirect_stderr=False,
        speed_estimate_period=speed_estimate_period,
    )


def _console() -> Console:
    """Stderr as a terminal; rich is imported for one only, which saves a script a tenth of a second."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False)
