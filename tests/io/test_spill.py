"""A store of records against a plain dictionary, and against disks that are full, short or broken."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masklet.errors import InputError, OutputError
from masklet.io import spill
from masklet.io.spill import RecordStore

FIELDS = {
    "memory": (np.dtype(np.uint16), (3, 5)),
    "logits": (np.dtype(np.float32), (2, 7)),
    "score": (np.dtype(np.float64), ()),
}
SIZE = 96  # bytes of a record: 30, padded to 32, 56 and 8
NEEDS_PWRITE = pytest.mark.skipif(not hasattr(os, "pwrite"), reason="the fake replaces os.pwrite")


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the stores of this test make their files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def record(seed: int) -> dict[str, np.ndarray]:
    """Any bits, not-a-numbers included."""
    made = np.random.default_rng(seed)
    return {
        name: np.frombuffer(made.bytes(dtype.itemsize * int(np.prod(shape))), dtype).reshape(shape).copy()
        for name, (dtype, shape) in FIELDS.items()
    }


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].tobytes() == b[name].tobytes() and a[name].dtype == b[name].dtype for name in a
    )


def file_size(store: RecordStore) -> int:
    return 0 if store._file is None else os.fstat(store._file.fileno()).st_size


# ------------------------------------------------------------------------------------------ like a dictionary


@pytest.mark.parametrize("budget", [0, SIZE - 1, SIZE, 3 * SIZE, 5 * SIZE + 1, 1000 * SIZE, None])
@pytest.mark.parametrize("system", ["POSIX", "Windows"])
def test_any_sequence_of_calls(budget: int | None, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if system == "Windows":
        monkeypatch.delattr(os, "pread", raising=False)
        monkeypatch.delattr(os, "pwrite", raising=False)
    draw, store, expected = random.Random(str(budget)), RecordStore(FIELDS, budget), {}
    most = 0
    for step in range(1500):
        action = draw.choice(
            ["put", "put", "get", "get", "drop", "replace"] if len(expected) < 20 else ["drop"]
        )
        key = draw.choice(list(expected)) if expected else None
        if action == "put":
            given = record(step)
            key = store.put(given)
            assert key not in expected
            expected[key] = record(step)
            for array in given.values():
                array[...] = 0  # the caller's own arrays are his
        elif key is not None and action == "replace":
            store.replace(key, record(step))
            expected[key] = record(step)
        elif key is not None and action == "drop":
            store.drop(key)
            del expected[key]
        elif key is not None:
            assert same(store.get(key), expected[key])
        most = max(most, len(expected))
        assert len(store) == len(expected)
        allowed = len(expected) * SIZE if budget is None else budget
        assert store.bytes_in_memory <= min(allowed, len(expected) * SIZE)
        # One slot more than records: a replacement is written before the old one is given up.
        assert file_size(store) == store.bytes_on_disk <= (most + 1) * SIZE
    for key, value in expected.items():
        assert same(store.get(key), value)
    assert (budget is None or budget >= 1000 * SIZE) == (store.bytes_on_disk == 0)
    store.close()


def test_memory_is_used_up_to_the_budget_and_the_oldest_leave() -> None:
    store = RecordStore(FIELDS, 2 * SIZE + SIZE // 2)
    first, second = store.put(record(1)), store.put(record(2))
    assert (store.bytes_in_memory, store.bytes_on_disk) == (2 * SIZE, 0)
    store.get(first)
    store.put(record(3))
    assert (store.bytes_in_memory, store.bytes_on_disk) == (2 * SIZE, SIZE)
    assert first in store._memory
    assert second not in store._memory
    store.close()


@NEEDS_PWRITE
def test_a_record_that_did_not_change_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    writes, pwrite = [], os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda *call: writes.append(call) or pwrite(*call))
    store = RecordStore(FIELDS, SIZE)
    keys = [store.put(record(seed)) for seed in range(3)]
    for _ in range(4):
        for seed, key in enumerate(keys):
            assert same(store.get(key), record(seed))
    assert len(writes) == 3
    store.replace(keys[0], record(7))
    store.get(keys[1])
    assert len(writes) == 4
    store.close()


@pytest.mark.parametrize("budget", [0, SIZE, None])
def test_arrays_are_read_only_and_outlive_the_record(budget: int | None) -> None:
    store = RecordStore(FIELDS, budget)
    key = store.put(record(1))
    held = store.get(key)
    for array in held.values():
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
    store.replace(key, record(2))
    store.put(record(3))
    assert same(store.get(key), record(2))
    store.drop(key)
    store.put(record(4))
    store.close()
    assert same(held, record(1))


def test_memory_and_file_are_empty_after_close() -> None:
    store = RecordStore(FIELDS, SIZE)
    keys = [store.put(record(seed)) for seed in range(3)]
    store.close()
    store.close()
    assert (len(store), store.bytes_in_memory, store.bytes_on_disk) == (0, 0, 0)
    with pytest.raises(InputError, match="no record"):
        store.get(keys[0])
    key = store.put(record(5))
    store.put(record(6))
    assert same(store.get(key), record(5))
    store.close()


@pytest.mark.parametrize("action", ["get", "drop", "replace"])
def test_a_dropped_record_is_not_there(action: str) -> None:
    store = RecordStore(FIELDS, None)
    key = store.put(record(1))
    store.drop(key)
    arguments = [record(2)] if action == "replace" else []
    with pytest.raises(InputError, match=f"no record {key}"):
        getattr(store, action)(key, *arguments)


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory": np.zeros((3, 5), np.uint16)},
        record(0) | {"more": np.zeros(1)},
        record(0) | {"memory": np.zeros((3, 4), np.uint16)},
        record(0) | {"memory": np.zeros((3, 5), np.int16)},
    ],
)
def test_a_record_of_another_kind_is_refused(wrong: dict[str, np.ndarray]) -> None:
    store = RecordStore(FIELDS, None)
    key = store.put(record(1))
    with pytest.raises(InputError, match="does not fit"):
        store.put(wrong)
    with pytest.raises(InputError, match="does not fit"):
        store.replace(key, wrong)
    assert same(store.get(key), record(1))


@pytest.mark.parametrize(
    ("fields", "budget"), [({}, None), (FIELDS, -1), ({"a": (np.dtype(object), (1,))}, None)]
)
def test_impossible_stores_are_refused(fields: dict[str, Any], budget: int | None) -> None:
    with pytest.raises(InputError, match="cannot be kept"):
        RecordStore(fields, budget)


def test_several_threads() -> None:
    store, wrong = RecordStore(FIELDS, 4 * SIZE), []

    def work(start: int) -> None:
        keys = {seed: store.put(record(seed)) for seed in range(start, start + 20)}
        seeds = random.Random(start).choices(list(keys), k=200)
        wrong.extend(seed for seed in seeds if not same(store.get(keys[seed]), record(seed)))

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 100, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(store) == 60
    store.close()


# --------------------------------------------------------------------------------------------------- the file


def test_the_file_has_no_name_and_is_freed(temporary_folder: Path) -> None:
    """A store that nobody closed frees its file without a ResourceWarning, which would be an error here."""
    store = RecordStore(FIELDS, 0)
    assert store._file is None
    store.put(record(1))
    if os.name == "posix":
        assert os.listdir(temporary_folder) == []
    file, gone = store._file, weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None
    assert file.closed
    assert os.listdir(temporary_folder) == []


@NEEDS_PWRITE
def test_the_system_may_write_and_read_less_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, start: pwrite(file, data[:17], start))
    monkeypatch.setattr(os, "pread", lambda file, size, start: pread(file, min(size, 13), start))
    store = RecordStore(FIELDS, 0)
    keys = [store.put(record(seed)) for seed in range(5)]
    assert all(same(store.get(key), record(seed)) for seed, key in enumerate(keys))
    store.close()


class Disk:
    """os.pwrite on a disk that has so many bytes left: the last call that fits in part writes a part."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
        self.left, self._number, self._pwrite = 0, number, os.pwrite
        monkeypatch.setattr(os, "pwrite", self.write)

    def write(self, file: int, data: memoryview, start: int) -> int:
        if not self.left:
            raise OSError(self._number, os.strerror(self._number))
        written = self._pwrite(file, data[: self.left], start)
        self.left -= written
        return written


@NEEDS_PWRITE
@pytest.mark.parametrize("budget", [0, SIZE, 3 * SIZE])
def test_a_full_disk_loses_nothing(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    store, disk = RecordStore(FIELDS, budget), Disk(monkeypatch)
    disk.left = 2 * SIZE + SIZE // 3
    keys = [store.put(record(seed)) for seed in range(2 + budget // SIZE)]
    with pytest.raises(OutputError) as caught:
        store.put(record(76))
    for part in (
        "MiB of tracking state",
        repr(tempfile.gettempdir()),
        "full",
        "TMPDIR",
        'state="memory"',
        "forget",
    ):
        assert part in str(caught.value)
    assert len(store) == len(keys)
    assert store.bytes_in_memory <= budget

    with pytest.raises(OutputError, match="full"):
        store.put(record(77))
    with pytest.raises(OutputError, match="full"):
        store.replace(keys[0], record(78))
    for _ in range(2):  # reading never needs the disk's space
        assert all(same(store.get(key), record(seed)) for seed, key in enumerate(keys))

    disk.left = 1000 * SIZE
    store.replace(keys[0], record(79))
    keys += [store.put(record(seed)) for seed in range(len(keys), 20)]
    assert same(store.get(keys[0]), record(79))
    assert all(same(store.get(key), record(seed)) for seed, key in enumerate(keys) if seed)
    assert store.bytes_on_disk == file_size(store) <= 21 * SIZE
    store.close()


@NEEDS_PWRITE
def test_dropping_makes_room_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    store, disk = RecordStore(FIELDS, 0), Disk(monkeypatch)
    disk.left = SIZE
    key = store.put(record(1))
    store.drop(key)
    disk.left = SIZE  # what overwrites takes no further space
    assert same(store.get(store.put(record(2))), record(2))
    assert store.bytes_on_disk == SIZE
    store.close()


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_real_limit_on_the_size_of_files() -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = RecordStore(FIELDS, 0)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2 * SIZE + 1, limits[1]))
    try:
        keys = [store.put(record(seed)) for seed in range(2)]
        with pytest.raises(OutputError, match="too large"):
            store.put(record(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    keys.append(store.put(record(2)))
    assert all(same(store.get(key), record(seed)) for seed, key in enumerate(keys))
    store.close()


@NEEDS_PWRITE
@pytest.mark.parametrize("returned", [b"", OSError(errno.EIO, os.strerror(errno.EIO))])
def test_a_read_that_fails(returned: bytes | OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        if isinstance(returned, OSError):
            raise returned
        return returned

    store = RecordStore(FIELDS, SIZE)
    first, second = store.put(record(1)), store.put(record(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", broken)
        with pytest.raises(OutputError, match=r"cannot read tracking state.*TMPDIR.*forget"):
            store.get(first)
        assert same(store.get(second), record(2))
    assert same(store.get(first), record(1))
    store.close()


def test_a_system_that_writes_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_write_at", lambda *_: 0)
    store = RecordStore(FIELDS, 0)
    with pytest.raises(OutputError, match="wrote nothing"):
        store.put(record(1))
    assert len(store) == 0
    store.close()


@pytest.mark.parametrize("folder", ["no/such", None])
def test_no_folder_for_temporary_files(folder: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    if folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
    else:
        monkeypatch.setattr(tempfile, "gettempdir", nowhere)
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: nowhere())
    store = RecordStore(FIELDS, SIZE)
    key = store.put(record(1))
    with pytest.raises(OutputError, match=folder or "No usable"):
        store.put(record(2))
    assert same(store.get(key), record(1))


def _child(store: RecordStore, key: int, answer: Any) -> None:
    try:
        store.get(key)
    except OutputError as error:
        answer.put(str(error))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_is_told_so() -> None:
    fork = multiprocessing.get_context("fork")
    store, answer = RecordStore(FIELDS, 0), fork.Queue()
    key = store.put(record(1))
    child = fork.Process(target=_child, args=(store, key, answer))
    child.start()
    said = answer.get(timeout=60)
    child.join()
    assert "forked child" in said
    assert same(store.get(key), record(1))
    store.close()
