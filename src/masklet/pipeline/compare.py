"""Two sets of named arrays, compared tensor by tensor: where do two runs of one network first part?

In: two .npz files, or two mappings of names to arrays; A is the one in question, B the one to trust. Out: a
`Comparison`. Files are untrusted: nothing in them is executed. Knows nothing about networks.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

from masklet.errors import InputError

TOLERANCE = 1e-4  # relative; float32 networks of this depth differ by 1e-6 to 1e-5 between engines


@dataclass(frozen=True)
class Difference:
    """How one tensor of A differs from B's.

    `cosine` is that of the flattened tensors, `maximum` the largest |a - b|, `relative` that over the largest
    |b|; for two boolean tensors `relative` is 1 - IoU. Both are infinite where one side has a NaN or an
    infinity that the other hasn't. All three are None where the shapes differ.
    """

    name: str
    shape_a: tuple[int, ...]
    shape_b: tuple[int, ...]
    cosine: float | None
    maximum: float | None
    relative: float | None

    def within(self, tolerance: float) -> bool:
        """True when the shapes are the same and the relative difference is at most the tolerance."""
        return self.relative is not None and self.relative <= tolerance


@dataclass(frozen=True)
class Comparison:
    """Differences of all common tensors in A's order, and the names that one side alone has."""

    differences: tuple[Difference, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    tolerance: float

    @property
    def first_divergence(self) -> Difference | None:
        """The first tensor that differs by more than the tolerance, in the order of the data."""
        return next((d for d in self.differences if not d.within(self.tolerance)), None)


def compare_files(
    path_a: str | os.PathLike[str], path_b: str | os.PathLike[str], tolerance: float = TOLERANCE
) -> Comparison:
    """`compare` two .npz files, one pair of tensors in memory at a time.

    Raises InputError for a file that is no readable .npz of numbers.
    """
    with _arrays(path_a) as a, _arrays(path_b) as b:
        return compare(a, b, tolerance)


def compare(
    a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray], tolerance: float = TOLERANCE
) -> Comparison:
    """Compare the tensors that both have. Raises InputError when there are none."""
    if not tolerance >= 0:
        raise InputError(f"The tolerance is {tolerance}; give a number of at least 0, such as {TOLERANCE:g}.")
    common = [name for name in a if name in b]
    if not common:
        raise InputError(
            f"The two have no tensor of the same name. A holds {_some(a)}; B holds {_some(b)}. "
            "Write both with `masklet dump`, or rename one side's."
        )
    return Comparison(
        differences=tuple(difference(name, a[name], b[name]) for name in common),
        only_a=tuple(name for name in a if name not in b),
        only_b=tuple(name for name in b if name not in a),
        tolerance=tolerance,
    )


def difference(name: str, a: np.ndarray, b: np.ndarray) -> Difference:
    """Compare two arrays of numbers, in float64."""
    for array in (a, b):
        if array.dtype.kind not in "biuf":
            raise InputError(f"The tensor {name!r} has the type {array.dtype}; only numbers can be compared.")
    if a.shape != b.shape:
        return Difference(name, a.shape, b.shape, None, None, None)
    masks = a.dtype.kind == b.dtype.kind == "b"
    x, y = (array.astype(np.float64).ravel() for array in (a, b))

    # Values that are not finite must be the same on both sides, and count no further.
    finite = np.isfinite(x) & np.isfinite(y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if not np.all(finite | same):
        return Difference(name, a.shape, b.shape, _cosine(x[finite], y[finite]), np.inf, np.inf)
    if not finite.all():
        x, y = x[finite], y[finite]

    cosine = _cosine(x, y)
    if masks:
        union = np.count_nonzero((x + y) > 0)
        relative = 1 - np.count_nonzero(x * y) / union if union else 0.0
        return Difference(name, a.shape, b.shape, cosine, float(np.any(x != y)), float(relative))
    with np.errstate(over="ignore"):
        maximum, scale = _largest(x - y), _largest(y)
    relative = 0.0 if maximum == 0 else maximum / scale if scale > 0 else np.inf
    return Difference(name, a.shape, b.shape, cosine, maximum, float(relative))


def _largest(x: np.ndarray) -> float:
    return float(np.abs(x).max(initial=0.0))


def _cosine(x: np.ndarray, y: np.ndarray) -> float:
    """Of finite vectors; 1 for two zero vectors, 0 for one."""
    size_x, size_y = _largest(x), _largest(y)
    if size_x == 0 or size_y == 0:
        return float(size_x == size_y)
    x, y = x / size_x, y / size_y  # squares of extreme values would leave float64
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _some(names: Mapping[str, np.ndarray]) -> str:
    listed = list(names)
    return ", ".join(listed[:4]) + (f" and {len(listed) - 4} more" if len(listed) > 4 else "") or "nothing"


@contextmanager
def _arrays(path: str | os.PathLike[str]) -> Iterator[Mapping[str, np.ndarray]]:
    """The arrays of an .npz file, read when asked for."""
    name = os.fsdecode(path)
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open(path, "rb"))  # by NumPy, a damaged one would stay open
            if not zipfile.is_zipfile(file):
                raise ValueError("no archive of arrays, or one that is cut off")
            file.seek(0)
            opened = stack.enter_context(np.load(file, allow_pickle=False))
        except Exception as error:  # a damaged archive makes NumPy and zipfile raise many unrelated types
            raise InputError(f"{name}: not a readable .npz file: {_reason(error)}") from error
        yield _Checked(opened, name)


class _Checked(Mapping[str, np.ndarray]):
    """An open .npz file whose members' errors are ours."""

    def __init__(self, file: Mapping[str, np.ndarray], path: str) -> None:
        self._file, self._path = file, path

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            array = self._file[name]
        except Exception as error:  # as above
            raise InputError(f"{self._path}: the tensor {name!r} cannot be read: {_reason(error)}") from error
        if not isinstance(array, np.ndarray):  # a member without NumPy's header comes back as bytes
            raise InputError(f"{self._path}: {name!r} is not an array; write the file with numpy.savez.")
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).rstrip(".") + "."
