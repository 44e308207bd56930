"""Memories by frame in a store that several books share."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import numpy as np
import pytest

from masklet.errors import OutputError
from masklet.pipeline.frame_book import FrameBook, record_store
from masklet.pipeline.memory import FrameMemory


@pytest.fixture(params=[None, 0, 5000], ids=["memory", "disk", "a few in memory"])
def store(request):
    store = record_store(tokens=16, memory_dim=8, channels=32, side=16, budget=request.param)
    yield store
    store.close()


def memory(seed: int) -> FrameMemory:
    rng = np.random.default_rng(seed)
    return FrameMemory(
        rng.normal(size=(1, 16, 16)).astype(np.float32),
        rng.normal(size=32).astype(np.float32),
        rng.integers(0, 1 << 16, (16, 8)).astype(np.uint16),
        object_score=float(rng.normal()),
        predicted_iou=float(rng.random()),
        stability=float(rng.random()),
    )


def assert_same(got: FrameMemory, expected: FrameMemory) -> None:
    assert expected.memory is not None
    np.testing.assert_array_equal(got.logits, expected.logits, strict=True)
    np.testing.assert_array_equal(got.pointer, expected.pointer, strict=True)
    np.testing.assert_array_equal(got.memory, expected.memory, strict=True)
    assert (got.object_score, got.predicted_iou, got.stability) == (
        expected.object_score,
        expected.predicted_iou,
        expected.stability,
    )


def test_what_went_in_comes_out(store):
    book = FrameBook(store)
    for frame in range(12):
        book[frame] = memory(frame)
    for frame in (11, 0, 5, 5, 10):
        assert_same(book[frame], memory(frame))
    assert len(book) == len(store) == 12


def test_a_book_behaves_as_a_dictionary(store):
    book, plain = FrameBook(store), {}
    for frame in (4, 9, 2):
        book[frame] = memory(frame)
        plain[frame] = memory(frame)
    book[4] = plain[4] = memory(40)  # keeps its place in the order
    assert list(book) == list(plain) == [4, 9, 2]
    assert (9 in book, 3 in book) == (True, False)
    assert_same(book[4], memory(40))
    assert book.get(3) is None
    with pytest.raises(KeyError):
        book[3]
    with pytest.raises(KeyError):
        del book[3]
    del book[9]
    assert list(book) == [4, 2]
    assert_same(book.pop(2), memory(2))
    assert book.pop(2, None) is None
    assert len(store) == 1


def test_replacing_does_not_leak(store):
    book = FrameBook(store)
    for seed in range(20):
        book[3] = memory(seed)
    assert len(store) == 1
    assert_same(book[3], memory(19))


def test_books_share_a_store_and_not_their_frames(store):
    one, other = FrameBook(store), FrameBook(store)
    one[0], other[0], other[1] = memory(0), memory(10), memory(11)
    one.clear()
    assert (len(one), len(other), len(store)) == (0, 2, 2)
    assert_same(other[0], memory(10))


def test_clearing_reads_nothing_back(store, monkeypatch):
    """The dictionary's own `clear` looks up every record before it deletes it: of a long clip, all of the
    file."""
    book = FrameBook(store)
    for frame in range(12):
        book[frame] = memory(frame)

    def refuse(*_: object) -> bytes:
        raise AssertionError("the file was read")

    monkeypatch.setattr(os, "pread", refuse)
    book.clear()
    assert len(book) == len(store) == 0


def test_a_full_disk_leaves_what_was_there(monkeypatch):
    store = record_store(tokens=16, memory_dim=8, channels=32, side=16, budget=0)
    book = FrameBook(store)
    book[0], book[1] = memory(0), memory(1)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OutputError, match="full"):
            book[1] = memory(2)
        with pytest.raises(OutputError, match="full"):
            book[5] = memory(5)
    assert list(book) == [0, 1]
    assert_same(book[1], memory(1))
    assert len(store) == 2
    book[5] = memory(5)
    assert_same(book[5], memory(5))
    store.close()


def test_records_cannot_be_changed_from_outside(store):
    book = FrameBook(store)
    mine = memory(0)
    book[0] = replace(mine, logits=mine.logits.copy())
    got = book[0]
    with pytest.raises(ValueError, match="read-only"):
        got.logits[0, 0, 0] = 1
    mine.pointer[:] = 0  # what was put in is a copy
    assert book[0].pointer.any()
