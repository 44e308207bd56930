"""Where each member of a zip archive lies in the file, so that it can be mapped instead of unpacked.

In: the bytes of an archive. Out: its directory (`read_directory`), and the place of each member's data
(`locate`). Knows nothing about what the members mean. Python's `zipfile` is not used: it gives no data
offsets, keeps a kilobyte for each of the millions of entries that a hostile directory can list, and accepts
damage.

Everything that is stated twice must agree: directory, local header and data descriptor of a member; and
members must lie one after the other without gaps, which is what every version of PyTorch writes. So a damaged
offset or length is found here, not in the weights.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from masklet.errors import CorruptFileError, UnknownFormatError
from masklet.io.tensor_table import Buffer, quoted

_END = struct.Struct("<4s4H2LH")  # end of central directory
_LOCATOR = struct.Struct("<4sLQL")  # of the zip64 end of central directory
_END_64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")  # of the central directory
_LOCAL = struct.Struct("<4s5H3L2H")
_DESCRIPTOR = struct.Struct("<4s3L")
_DESCRIPTOR_64 = struct.Struct("<4sLQQ")

_ENCRYPTED, _HAS_DESCRIPTOR, _UTF8 = 0x1, 0x8, 0x800
_IN_ZIP64_EXTRA = 0xFFFFFFFF
_END_LIMITS = (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, _IN_ZIP64_EXTRA, _IN_ZIP64_EXTRA)  # then: see the 64-bit end
_MAX_COMMENT = 0xFFFF
_MAX_DIRECTORY_BYTES = 16 << 20  # some 200,000 tensors


@dataclass(frozen=True)
class Entry:
    """A line of the directory; nothing in it has been compared with the rest of the file."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc32: int
    packed_nbytes: int
    nbytes: int
    header_offset: int


@dataclass(frozen=True)
class Member:
    """A member whose data were found at `offset` (absolute, in bytes)."""

    name: str
    offset: int
    nbytes: int
    crc32: int
    compressed: bool


@dataclass(frozen=True)
class Directory:
    """All entries, in the order of the directory."""

    entries: tuple[Entry, ...]
    offset: int  # where the directory begins, which is where the last member ends


def read_directory(data: Buffer) -> Directory:
    """The list of members at the end of an archive. Raises `CorruptFileError`."""
    count, nbytes, offset = _find_directory(data)
    if nbytes > _MAX_DIRECTORY_BYTES:
        raise CorruptFileError(
            f"its zip directory claims {nbytes:,} bytes; no checkpoint needs more than"
            f" {_MAX_DIRECTORY_BYTES:,}"
        )
    directory = data[offset : offset + nbytes]
    entries: dict[str, Entry] = {}
    position = 0
    while position < len(directory):
        entry, position = _read_entry(directory, position)
        if entry.name in entries:
            raise CorruptFileError(f"its zip directory lists {quoted(entry.name)} twice")
        entries[entry.name] = entry
    if len(entries) != count:
        raise CorruptFileError(f"its zip directory lists {len(entries)} members but states {count}")
    return Directory(tuple(entries.values()), offset)


def locate(data: Buffer, directory: Directory) -> dict[str, Member]:
    """The data of every member, by name; `CorruptFileError` unless headers agree and members adjoin."""
    members: dict[str, Member] = {}
    in_file_order = sorted(directory.entries, key=lambda entry: entry.header_offset)
    ends = [entry.header_offset for entry in in_file_order[1:]] + [directory.offset]
    if in_file_order and in_file_order[0].header_offset != 0:
        raise CorruptFileError("bytes before the first member of its zip archive")
    for entry, end in zip(in_file_order, ends, strict=True):
        offset = _check_local_header(data, entry, end)
        _check_tail(data, entry, offset + entry.packed_nbytes, end)
        members[entry.name] = Member(entry.name, offset, entry.nbytes, entry.crc32, entry.method != 0)
    return members


def _find_directory(data: Buffer) -> tuple[int, int, int]:
    """Number of entries, size and offset of the directory."""
    end = data.rfind(b"PK\x05\x06", max(0, len(data) - _END.size - _MAX_COMMENT))
    if end < 0 or end + _END.size > len(data):
        raise CorruptFileError(
            "the zip directory at its end is missing, as in a download that was cut off; download or copy"
            " the file again"
        )
    *stated, comment = _END.unpack(data[end : end + _END.size])[1:]
    if end + _END.size + comment != len(data):
        raise CorruptFileError("the end of its zip directory is damaged, or bytes follow it")
    locator = max(0, end - _LOCATOR.size)
    if data[locator : locator + 4] == b"PK\x06\x07":
        end, narrow = _find_zip64_directory(data, locator), stated
        stated = list(_END_64.unpack(data[end : end + _END_64.size])[4:])
        if any(
            small not in (wide, limit) for small, wide, limit in zip(narrow, stated, _END_LIMITS, strict=True)
        ):
            raise CorruptFileError("its two zip directory ends (32 and 64 bit) disagree")
    disk, directory_disk, on_disk, count, nbytes, offset = stated
    if disk or directory_disk or on_disk != count:
        raise CorruptFileError("its zip directory claims to be one part of several, or is damaged")
    if offset + nbytes != end:
        raise CorruptFileError(
            "its zip directory is not where the end of the file says; the file is damaged or incomplete"
        )
    return count, nbytes, offset


def _find_zip64_directory(data: Buffer, locator: int) -> int:
    _, disk, offset, disks = _LOCATOR.unpack(data[locator : locator + _LOCATOR.size])
    record = data[offset : offset + _END_64.size] if offset <= locator else b""
    if disk or disks != 1 or len(record) != _END_64.size or record[:4] != b"PK\x06\x06":
        raise CorruptFileError("its 64-bit zip directory end is damaged")
    (following,) = struct.unpack_from("<Q", record, 4)
    if offset + 12 + following != locator:
        raise CorruptFileError("its 64-bit zip directory end has a wrong length")
    return offset


def _read_entry(directory: bytes, position: int) -> tuple[Entry, int]:
    start = position + _ENTRY.size
    if start > len(directory) or directory[position : position + 4] != b"PK\x01\x02":
        raise CorruptFileError("its zip directory is damaged")
    fields = _ENTRY.unpack_from(directory, position)
    _, _, _, flags, method, _, _, crc32, packed, nbytes, name_length, extra_length, comment_length, disk = (
        fields[:14]
    )
    extra_start = start + name_length
    end = extra_start + extra_length + comment_length
    if end > len(directory):
        raise CorruptFileError("the last entry of its zip directory is damaged")
    raw_name = directory[start:extra_start]
    try:
        name = raw_name.decode("utf-8" if flags & _UTF8 else "cp437")
    except UnicodeDecodeError:
        raise CorruptFileError("a name in its zip directory is damaged") from None
    extra = directory[extra_start : extra_start + extra_length]
    nbytes, packed, offset = _widen([nbytes, packed, fields[16]], extra)
    if disk or (method == 0 and packed != nbytes):
        raise CorruptFileError(f"the zip directory entry of {quoted(name)} is damaged")
    if flags & _ENCRYPTED:
        raise UnknownFormatError("an encrypted zip archive; no checkpoint is one")
    return Entry(name, raw_name, flags, method, crc32, packed, nbytes, offset), end


def _widen(values: list[int], extra: bytes) -> list[int]:
    """Size, packed size and offset, with those at the 32-bit limit taken from the `extra` field."""
    if _IN_ZIP64_EXTRA not in values:
        return values
    position = 0
    while position + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, position)
        if kind == 1:
            needed = values.count(_IN_ZIP64_EXTRA)
            if length < 8 * needed or position + 4 + length > len(extra):
                break
            wide = iter(struct.unpack_from(f"<{needed}Q", extra, position + 4))
            return [next(wide) if value == _IN_ZIP64_EXTRA else value for value in values]
        position += 4 + length
    raise CorruptFileError("a 64-bit entry of its zip directory is damaged")


def _check_local_header(data: Buffer, entry: Entry, end: int) -> int:
    """The offset of the member's data."""
    start = entry.header_offset
    header = data[start : start + _LOCAL.size] if start + _LOCAL.size <= end else b""
    if header[:4] != b"PK\x03\x04":
        raise CorruptFileError(f"the header of {quoted(entry.name)} is not where its zip directory says")
    _, _, flags, method, _, _, crc32, packed, nbytes, name_length, extra_length = _LOCAL.unpack(header)
    name_start = start + _LOCAL.size
    offset = name_start + name_length + extra_length
    deferred = flags & _HAS_DESCRIPTOR  # then zeros are allowed here and the descriptor states the values
    agree = (
        flags == entry.flags
        and method == entry.method
        and data[name_start : name_start + name_length] == entry.raw_name
        and (crc32 == entry.crc32 or (deferred and not crc32))
        and (packed in (entry.packed_nbytes, _IN_ZIP64_EXTRA) or (deferred and not packed))
        and (nbytes in (entry.nbytes, _IN_ZIP64_EXTRA) or (deferred and not nbytes))
    )
    if not agree:
        raise CorruptFileError(f"the header of {quoted(entry.name)} disagrees with its zip directory")
    if offset + entry.packed_nbytes > end:
        raise CorruptFileError(
            f"{quoted(entry.name)} reaches into what follows it, or past the end of the file"
        )
    return offset


def _check_tail(data: Buffer, entry: Entry, start: int, end: int) -> None:
    """After a member's data and before `end` must be its descriptor, if it has one, and nothing else."""
    found = data[start : min(end, start + 25)]
    expected = [b""]
    if entry.flags & _HAS_DESCRIPTOR:
        # The format also allows it without the signature, which no writer of these files does: data that
        # begin 4 bytes late would then look right.
        sizes = (entry.packed_nbytes, entry.nbytes)
        expected = [_DESCRIPTOR_64.pack(b"PK\x07\x08", entry.crc32, *sizes)]
        if max(sizes) < 1 << 32:
            expected.append(_DESCRIPTOR.pack(b"PK\x07\x08", entry.crc32, *sizes))
    if found not in expected:
        raise CorruptFileError(f"what follows {quoted(entry.name)} in its zip archive is damaged")
