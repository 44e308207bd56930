"""Unpacks Qt resource files (.rcc), in which some programs keep their pictures.

In: a file of format version 1 to 3. Out: its entries with their paths. Format: Qt's rcc tool: a header, a
tree of nodes, names and data blobs, all numbers big-endian. Knows nothing about pictures.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

COMPRESSED, DIRECTORY, ZSTANDARD = 1, 2, 4


def entries(path: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of each file in a resource file; entries packed by Zstandard are left out."""
    blob = path.read_bytes()
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", blob)
    if magic != b"qres":
        raise ValueError(f"{path.name}: got magic {magic!r}; a Qt resource file starts with b'qres'.")
    node_size = 14 if version == 1 else 22

    def walk(number: int, prefix: str) -> Iterator[tuple[str, bytes]]:
        node = tree + number * node_size
        name_at, flags = struct.unpack_from(">IH", blob, node)
        name = f"{prefix}/{_name(blob, names + name_at)}" if number else ""
        if flags & DIRECTORY:
            count, first = struct.unpack_from(">II", blob, node + 6)
            for child in range(first, first + count):
                yield from walk(child, name)
        elif not flags & ZSTANDARD:
            start = data + struct.unpack_from(">I", blob, node + 10)[0]
            content = blob[start + 4 : start + 4 + struct.unpack_from(">I", blob, start)[0]]
            yield name, zlib.decompress(content[4:]) if flags & COMPRESSED else content

    yield from walk(0, "")


def unpack(path: Path) -> None:
    """Writes the files below a folder beside `path` that is named like it, from each `resource` folder on."""
    for name, content in entries(path):
        target = path.with_suffix("") / name.rsplit("/resource/", 1)[-1].lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)


def _name(blob: bytes, start: int) -> str:
    length = struct.unpack_from(">H", blob, start)[0]
    return blob[start + 6 : start + 6 + 2 * length].decode("utf-16-be")
