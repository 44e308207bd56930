"""Builders of torch files, byte by byte as PyTorch writes them, and of their pickles."""

from __future__ import annotations

import errno
import io
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from masklet.io.checkpoints import open_checkpoint

FLOATS = np.arange(24, dtype=np.float32)


class Ops:
    """Pickle instructions as `torch.save` emits them (protocol 2)."""

    @staticmethod
    def text(text: str) -> bytes:
        encoded = text.encode("utf-8", "surrogatepass")
        return b"X" + struct.pack("<I", len(encoded)) + encoded

    @staticmethod
    def integer(value: int) -> bytes:
        if 0 <= value < 256:
            return b"K" + bytes([value])
        if -(1 << 31) <= value < 1 << 31:
            return b"J" + struct.pack("<i", value)
        encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        return b"\x8a" + bytes([len(encoded)]) + encoded

    @classmethod
    def integers(cls, values: Iterable[int]) -> bytes:
        return b"(" + b"".join(cls.integer(value) for value in values) + b"t"

    @staticmethod
    def name(module: str, name: str) -> bytes:
        return f"c{module}\n{name}\n".encode()

    @classmethod
    def storage(cls, key: str, kind: str, count: int) -> bytes:
        module = "torch.storage" if kind == "UntypedStorage" else "torch"
        head = cls.text("storage") + cls.name(module, kind) + cls.text(key) + cls.text("cpu")
        return b"(" + head + cls.integer(count) + b"tQ"

    @classmethod
    def tensor(
        cls,
        key: str,
        kind: str,
        count: int,
        shape: Iterable[int],
        strides: Iterable[int],
        offset: int = 0,
        *,
        dtype: str | None = None,
        tail: bytes = b"",
    ) -> bytes:
        version = "_rebuild_tensor_v2" if dtype is None else "_rebuild_tensor_v3"
        hooks = cls.name("collections", "OrderedDict") + b")R"
        arguments = (
            cls.storage(key, kind, count) + cls.integer(offset) + cls.integers(shape) + cls.integers(strides)
        )
        arguments += b"\x89" + hooks + (cls.name("torch", dtype) if dtype else b"") + tail
        return cls.name("torch._utils", version) + b"(" + arguments + b"tR"

    @classmethod
    def parameter(cls, tensor: bytes) -> bytes:
        hooks = cls.name("collections", "OrderedDict") + b")R"
        return cls.name("torch._utils", "_rebuild_parameter") + b"(" + tensor + b"\x88" + hooks + b"tR"

    @classmethod
    def mapping(cls, items: Mapping[str, bytes], *, ordered: bool = False) -> bytes:
        empty = cls.name("collections", "OrderedDict") + b")R" if ordered else b"}"
        return empty + b"(" + b"".join(cls.text(key) + value for key, value in items.items()) + b"u"

    @classmethod
    def tensors(cls, *names: str) -> bytes:
        """A dict of tensors, each of them the whole storage `0` of 24 floats."""
        return cls.mapping({name: cls.tensor("0", "FloatStorage", 24, [24], [1]) for name in names})

    @staticmethod
    def whole(value: bytes) -> bytes:
        return b"\x80\x02" + value + b"."


def build_torch_zip(
    pickle: bytes,
    storages: Mapping[str, bytes],
    *,
    root: str = "archive",
    byteorder: bytes | None = b"little",
    more: Mapping[str, bytes] | None = None,
    checksums: bool = True,
) -> bytes:
    """An archive as PyTorch's writer lays it out.

    That is: 64-byte alignment by an `FB` field of Zs, zeros in local headers, data descriptors except after
    empty members, and both forms of the end of the directory.
    """
    members = {"data.pkl": pickle, ".format_version": b"1"}
    if byteorder is not None:
        members["byteorder"] = byteorder
    members |= {f"data/{key}": content for key, content in storages.items()}
    members |= {"version": b"3\n", **(more or {})}

    body, directory = bytearray(), bytearray()
    for member, content in members.items():
        name = f"{root}/{member}".encode()
        start, flags = len(body), 0x808 if content else 0x800
        crc32 = zlib.crc32(content) if checksums else 0
        padding = -(start + 30 + len(name) + 4) % 64
        body += struct.pack("<4s5H3L2H", b"PK\x03\x04", 0, flags, 0, 0, 0, 0, 0, 0, len(name), padding + 4)
        body += name + struct.pack("<2sH", b"FB", padding) + b"Z" * padding + content
        if content:
            body += struct.pack("<4s3L", b"PK\x07\x08", crc32, len(content), len(content))
        sizes = (crc32, len(content), len(content))
        directory += struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 0, 0, flags, 0, 0, 0, *sizes, len(name), 0, 0, 0, 0, 0, start
        )
        directory += name
    at, count, size = len(body), len(members), len(directory)
    body += directory
    end64 = len(body)
    body += struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 798, 45, 0, 0, count, count, size, at)
    body += struct.pack("<4sLQL", b"PK\x06\x07", 0, end64, 1)
    body += struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, at, 0)
    return bytes(body)


@pytest.fixture(scope="session")
def ops() -> type[Ops]:
    return Ops


@pytest.fixture(scope="session")
def torch_zip() -> Callable[..., bytes]:
    return build_torch_zip


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes bytes to a file and gives its path; the name says nothing, as it should not matter."""

    def write(content: bytes, name: str = "file") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


@pytest.fixture
def opened(ops, torch_zip, write):
    """Opens a file with the given tensors under "model", all of them over one storage `0` of 24 floats."""

    def opened(tensors, storages=None, **settings):
        value = ops.mapping({"model": ops.mapping(tensors, ordered=True)})
        storages = {"0": FLOATS.tobytes()} if storages is None else storages
        return open_checkpoint(write(torch_zip(ops.whole(value), storages, **settings)))

    return opened


@pytest.fixture
def unpickled(torch_zip, write):
    """Opens a file around a bare pickle."""
    return lambda pickled: open_checkpoint(write(torch_zip(pickled, {"0": FLOATS.tobytes()})))


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType, int], None]:
    """Lets the files of a module of results end at so many bytes, in the middle of a write like a real
    disk."""

    def fill(module: ModuleType, limit: int) -> None:
        class Limited(io.FileIO):
            def write(self, data: Any) -> int:
                room = limit - self.tell()
                if room <= 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return super().write(memoryview(data)[:room])

        monkeypatch.setattr(module, "io", type("io", (), {"FileIO": Limited}))

    return fill
