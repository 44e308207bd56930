"""Comparing named arrays: the measures, the order, files that are none, values that are no numbers."""

from __future__ import annotations

import io
import pickle
import zipfile

import numpy as np
import pytest

from masklet.errors import InputError
from masklet.pipeline.compare import compare, compare_files, difference

RNG = np.random.default_rng(0)
A = RNG.standard_normal((2, 3, 4)).astype(np.float32)


class Bomb:
    def __reduce__(self):
        return print, ("a pickle was executed",)


def test_equal_arrays():
    found = difference("x", A, A.copy())
    assert (found.maximum, found.relative) == (0.0, 0.0)
    assert found.cosine == pytest.approx(1, abs=1e-15)
    assert found.within(0)


def test_the_measures():
    b = A.copy()
    b[0, 0, 0] += 0.5
    found = difference("x", A, b)
    assert found.maximum == pytest.approx(0.5, rel=1e-6)
    assert found.relative == pytest.approx(0.5 / np.abs(b).max(), rel=1e-6)
    expected = np.sum(A * b, dtype=np.float64) / np.sqrt(np.sum(A**2.0) * np.sum(b**2.0))
    assert found.cosine == pytest.approx(expected, rel=1e-6)
    assert found.within(1)
    assert not found.within(1e-4)


def test_relative_is_to_b():
    small, large = np.array([1.0, 0.0]), np.array([2.0, 0.0])
    assert difference("x", small, large).relative == 0.5
    assert difference("x", large, small).relative == 1.0


@pytest.mark.parametrize(
    ("a", "b", "cosine", "relative"),
    [
        (np.zeros(3), np.zeros(3), 1, 0),
        (np.ones(3), np.zeros(3), 0, np.inf),
        (np.zeros((2, 0, 4)), np.zeros((2, 0, 4)), 1, 0),
        (np.array(2.0), np.array(2.0), 1, 0),
        (np.array([1e300, -1e300]), np.array([-1e300, 1e300]), -1, 2),
        (np.array([1.7e308]), np.array([-1.7e308]), -1, np.inf),
        (np.array([1, 2], np.int64), np.array([1.0, 2.0]), 1, 0),
    ],
)
def test_edges(a, b, cosine, relative):
    found = difference("x", a, b)
    assert found.cosine == pytest.approx(cosine)
    assert found.relative == pytest.approx(relative)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_no_number_on_one_side_is_a_divergence(value):
    b = A.copy()
    b[1, 1, 1] = value
    for found in (difference("x", A, b), difference("x", b, A)):
        assert found.relative == found.maximum == np.inf
        assert found.cosine == pytest.approx(1)
        assert not found.within(1e9)
    assert difference("x", b, b.copy()).within(0)


def test_opposite_infinities_differ():
    assert not difference("x", np.array([np.inf]), np.array([-np.inf])).within(1e9)


def test_boolean_masks_are_measured_by_iou():
    a, b = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    a[:5], b[:4] = True, True
    found = difference("masks", a, b)
    assert (found.maximum, found.relative) == (1.0, pytest.approx(0.2))
    assert difference("masks", np.zeros(3, bool), np.zeros(3, bool)).within(0)


def test_other_shapes_are_a_divergence():
    found = difference("x", A, A[:1])
    assert (found.shape_a, found.shape_b, found.relative) == ((2, 3, 4), (1, 3, 4), None)
    assert not found.within(np.inf)


def test_the_first_divergence_is_the_first_in_the_order_of_a():
    a = {"late": A, "early": A, "only": A, "same": A}
    b = {"same": A, "early": A + 1, "late": A + 1e-3, "other": A}
    found = compare(a, b)
    assert [d.name for d in found.differences] == ["late", "early", "same"]
    assert found.first_divergence is not None
    assert found.first_divergence.name == "late"
    assert (found.only_a, found.only_b) == (("only",), ("other",))
    looser = compare(a, b, 0.1)
    assert looser.first_divergence is not None
    assert looser.first_divergence.name == "early"
    assert compare({"same": A}, b).first_divergence is None


def test_files_one_pair_at_a_time(tmp_path):
    np.savez(tmp_path / "a.npz", x=A, y=A)
    np.savez_compressed(tmp_path / "b.npz", y=A + 1, x=A)
    found = compare_files(tmp_path / "a.npz", tmp_path / "b.npz")
    assert [d.name for d in found.differences] == ["x", "y"]
    assert found.first_divergence is not None
    assert found.first_divergence.name == "y"


@pytest.mark.parametrize("tolerance", [-1, float("nan")])
def test_refused_tolerances(tolerance):
    with pytest.raises(InputError, match="at least 0"):
        compare({"x": A}, {"x": A}, tolerance)


def test_nothing_in_common_says_what_each_holds():
    with pytest.raises(InputError, match=r"A holds one; B holds b0, b1, b2, b3 and 1 more"):
        compare({"one": A}, {f"b{index}": A for index in range(5)})
    with pytest.raises(InputError, match="B holds nothing"):
        compare({"one": A}, {})


# ----------------------------------------------------------------------------------- hostile files


def archive(**members: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name, data in members.items():
            file.writestr(f"{name}.npy", data)
    return content.getvalue()


def npy(array, **options) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **options)
    return content.getvalue()


GOOD = archive(x=npy(A))
HEADER = (
    npy(A)[:10]
    + b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999)}".ljust(117)
    + b"\n"
)
HOSTILE = {
    "nothing": b"",
    "text": b"not an archive at all",
    "pickle": pickle.dumps(Bomb()),
    "single_array": npy(A),
    "truncated": GOOD[: len(GOOD) // 2],
    "flipped": GOOD[:150] + bytes([GOOD[150] ^ 0xFF]) + GOOD[151:],
    "objects": archive(x=npy(np.array([Bomb()], dtype=object), allow_pickle=True)),
    "raw_member": archive(x=b"no header here"),
    "huge_claim": archive(x=HEADER + bytes(40)),
    "bad_header": archive(x=npy(A)[:10] + b"{'descr': __import__('os')}".ljust(117) + b"\n"),
    "strings": archive(x=npy(np.array(["a", "b"]))),
    "complex": archive(x=npy(A.astype(np.complex64))),
    "empty_archive": archive(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_archive_of_numbers_is_refused(tmp_path, kind, capsys):
    bad, good = tmp_path / "bad.npz", tmp_path / "good.npz"
    bad.write_bytes(HOSTILE[kind])
    good.write_bytes(GOOD)
    for first, second in ((bad, good), (good, bad)):
        with pytest.raises(InputError):
            compare_files(first, second)
    assert capsys.readouterr().out == ""


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.npz: not a readable \.npz"):
        compare_files(tmp_path / "missing.npz", tmp_path / "missing.npz")
