"""Records of a fixed size: the ones used last in memory, the rest in one temporary file without a name.

In: named arrays of known types and shapes, and a budget of bytes. Out: the same arrays, bit by bit,
read-only. Knows nothing about what the records mean.

The file is read and written in plain calls, never mapped: mapped pages count as the process's memory. It is
in the folder that `tempfile` chooses (TMPDIR), and gone when the store is closed or forgotten, even after a
crash: nothing points to it but the open file. Where that folder is a RAM disk, let TMPDIR name another.
"""

from __future__ import annotations

import errno
import os
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Any

import numpy as np

from masklet.errors import InputError, OutputError

_WAYS_OUT = 'Let the variable TMPDIR name another folder, or choose state="memory" or state="forget"'


class RecordStore:
    """A dictionary of records under keys that it hands out. Safe to call from several threads, one at a time;
    not usable in a forked child once the file exists.
    """

    def __init__(
        self, fields: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], budget: int | None
    ) -> None:
        """`fields` are the arrays of every record: name -> (dtype, shape). `budget` bounds what is kept in
        memory, in bytes; None: everything is, and no file is made."""
        self._layout = np.dtype([(name, *field) for name, field in fields.items()], align=True)
        if not self._layout.itemsize or self._layout.hasobject or (budget is not None and budget < 0):
            raise InputError(
                f"a record of {dict(fields)} with a budget of {budget} bytes cannot be kept; give arrays of "
                "numbers, and a budget of 0 bytes or more, or None"
            )
        self._capacity = None if budget is None else budget // self._layout.itemsize
        self._keys = count()
        self._memory: OrderedDict[int, np.ndarray] = OrderedDict()  # used last, comes last
        self._slots: dict[int, int] = {}  # where in the file an unchanged copy lies
        self._free: list[int] = []
        self._num_slots = 0
        self._file: Any = None
        self._close_file = lambda: None
        self._process = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._memory.keys() | self._slots.keys())

    @property
    def bytes_in_memory(self) -> int:
        """What the records in memory take."""
        return len(self._memory) * self._layout.itemsize

    @property
    def bytes_on_disk(self) -> int:
        """What the file takes, room for further records included."""
        return self._num_slots * self._layout.itemsize

    def put(self, record: Mapping[str, np.ndarray]) -> int:
        """Keep a copy of a record; its key. Raises `OutputError` where the disk refuses: this record was not
        kept then, and all others still are."""
        packed = self._pack(record)
        with self._lock:
            key = next(self._keys)
            self._keep(key, packed)
            return key

    def replace(self, key: int, record: Mapping[str, np.ndarray]) -> None:
        """Keep another record under a key. Raises `OutputError` where the disk refuses: the old one is kept
        then."""
        packed = self._pack(record)
        with self._lock:
            self._check(key)
            old_slot = self._slots.pop(key, None)
            try:
                self._keep(key, packed)
            except BaseException:
                if old_slot is not None:
                    self._slots[key] = old_slot
                raise
            if old_slot is not None:
                self._free.append(old_slot)

    def get(self, key: int) -> dict[str, np.ndarray]:
        """The record's arrays, which stay as they are whatever happens to the record. Raises `OutputError`
        where the file cannot be read."""
        with self._lock:
            self._check(key)
            packed = self._memory.get(key)
            if packed is None:
                packed = self._read(key)
                if self._capacity:
                    with suppress(OutputError):  # the disk may refuse what has to leave; this one can be read
                        self._keep(key, packed)
            else:
                self._memory.move_to_end(key)
        return {name: packed[name] for name in self._layout.names or ()}

    def drop(self, key: int) -> None:
        """Forget a record; its place in the file serves the next one."""
        with self._lock:
            self._check(key)
            self._memory.pop(key, None)
            if key in self._slots:
                self._free.append(self._slots.pop(key))

    def close(self) -> None:
        """Forget all records and free the file. The store is as new."""
        with self._lock:
            self._close_file()
            self._memory.clear()
            self._slots.clear()
            self._free.clear()
            self._num_slots, self._file, self._close_file = 0, None, lambda: None

    def _check(self, key: int) -> None:
        if key not in self._memory and key not in self._slots:
            raise InputError(f"there is no record {key!r}; it was dropped, or it is another store's")

    def _pack(self, record: Mapping[str, np.ndarray]) -> np.ndarray:
        """One read-only block of bytes, a copy."""
        packed = np.empty((), self._layout)
        fields = self._layout.fields or {}
        got = {name: (array.dtype, array.shape) for name, array in record.items()}
        wanted = {name: (packed[name].dtype, packed[name].shape) for name in fields}
        if got != wanted:
            raise InputError(f"a record of {got} does not fit this store; its records are {wanted}")
        for name, array in record.items():
            packed[name][...] = array
        packed.setflags(write=False)
        return packed

    # ----------------------------------------------------------------------------- memory, and what leaves it

    def _keep(self, key: int, packed: np.ndarray) -> None:
        """Make a record the one used last, in memory if the budget has room for one at all."""
        if self._capacity == 0:
            self._slots[key] = self._write(packed)
            return
        if key not in self._memory:
            while self._capacity is not None and len(self._memory) >= self._capacity:
                oldest, leaving = next(iter(self._memory.items()))
                if oldest not in self._slots:
                    self._slots[oldest] = self._write(leaving)
                del self._memory[oldest]  # last: after a failed write it is still here
        self._memory[key] = packed
        self._memory.move_to_end(key)

    # ----------------------------------------------------------------------------------------------- the file

    def _write(self, packed: np.ndarray) -> int:
        """The slot that now holds the record's bytes."""
        descriptor = self._open()
        slot = self._free[-1] if self._free else self._num_slots
        data = packed.reshape(1).view(np.uint8).data
        start, done = slot * len(data), 0
        try:
            while done < len(data):  # a call may write less than it was given
                written = _write_at(descriptor, data[done:], start + done)
                if not written:
                    raise OSError(errno.EIO, "the system wrote nothing")
                done += written
        except OSError as error:
            raise self._cannot_write(error) from error
        if self._free:
            self._free.pop()
        else:
            self._num_slots += 1
        return slot

    def _read(self, key: int) -> np.ndarray:
        descriptor, size = self._open(), self._layout.itemsize
        start, done, pieces = self._slots[key] * size, 0, []
        try:
            while done < size:
                piece = _read_at(descriptor, size - done, start + done)
                if not piece:
                    raise OSError(errno.EIO, "the file is shorter than what was written to it")
                pieces.append(piece)
                done += len(piece)
        except OSError as error:
            raise OutputError(
                f"cannot read tracking state back from a temporary file in {_folder()}: {_reason(error)}. "
                f"{_WAYS_OUT}, and track again."
            ) from error
        return np.frombuffer(b"".join(pieces), self._layout).reshape(())

    def _open(self) -> int:
        """The file's descriptor. It is made when first needed."""
        if self._file is None:
            try:
                # Unlinked at once, or deleted when closed on Windows: a crash leaves nothing behind.
                self._file = tempfile.TemporaryFile(prefix="masklet-", buffering=0)  # noqa: SIM115
            except OSError as error:
                raise self._cannot_write(error) from error
            self._close_file = weakref.finalize(self, self._file.close)
            self._process = os.getpid()
        elif self._process != os.getpid():
            raise OutputError(
                f"tracking state that process {self._process} keeps in a temporary file is used in its "
                f"forked child {os.getpid()}; start tracking after the fork, or start workers with 'spawn'"
            )
        return self._file.fileno()

    def _cannot_write(self, error: OSError) -> OutputError:
        return OutputError(
            f"cannot write {self._layout.itemsize / 2**20:.3g} MiB of tracking state, for which the memory "
            f"budget has no room, to a temporary file in {_folder()}: {_reason(error)}. What was kept before "
            f"is still there. Free some space. {_WAYS_OUT}."
        )


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        return "the disk (or your quota on it) is full"
    return error.strerror or str(error)


def _folder() -> str:
    try:
        return repr(tempfile.gettempdir())
    except OSError:
        return "TMPDIR"


def _write_at(descriptor: int, data: memoryview, start: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, start)
    os.lseek(descriptor, start, os.SEEK_SET)  # Windows; the store's lock keeps the two calls together
    return os.write(descriptor, data)


def _read_at(descriptor: int, size: int, start: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, start)
    os.lseek(descriptor, start, os.SEEK_SET)
    return os.read(descriptor, size)
