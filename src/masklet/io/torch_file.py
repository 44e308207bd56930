"""PyTorch's checkpoint files (`torch.save` since 1.6), read and written without PyTorch.

In: the bytes of a `.pt` / `.pth` file. Out: `Contents`, the table of the state dict's tensors and where they
lie. Knows nothing about models.

Such a file is a zip archive whose members are stored, not compressed: `<root>/data.pkl` (a pickle of the
saved object, in which a tensor is a reference to a storage), `<root>/data/<key>` (the bytes of a storage,
64-byte aligned) and a few short ones. So the weights can be mapped where they are.

Damage is found when a file is opened if it is in the archive's structure or in the pickle, whose CRC-32 is
checked. The storages' checksums are not, since that reads the whole file: a flipped bit in a weight passes
unless `Checkpoint.verify` is called.
"""

from __future__ import annotations

import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from masklet.errors import CorruptFileError, InputError, UnknownFormatError
from masklet.io.atomic import open_atomic
from masklet.io.tensor_table import (
    STORED_DTYPES,
    Buffer,
    Checksum,
    Contents,
    TensorInfo,
    dtype_name,
    quoted,
    stored_bytes,
    tensor_nbytes,
)
from masklet.io.torch_pickle import STORAGES, TensorRef, read_pickle
from masklet.io.zip_directory import Member, locate, read_directory

LEGACY_MAGIC = (
    b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"  # the integer 0x1950a86a20f9469cfc6c, pickled
)

WRAPPERS = (
    "model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "weights",
    "ema", "ema_model", "ema_state_dict", "model_ema",
)  # fmt: skip
"""Top-level keys under which training scripts keep the state dict, in order of preference."""

_PREFIXES = ("module.", "_orig_mod.")  # from DataParallel and torch.compile
_MAX_PICKLE_BYTES = 64 << 20
_EXPANDED_BYTES = 16 << 20


def read_torch(data: Buffer) -> Contents:
    """Read the structure of a torch file. Raises the `CheckpointError` that says why it cannot be used."""
    directory = read_directory(data)
    root = _find_root([entry.name for entry in directory.entries])
    members = locate(data, directory)
    for member in members.values():
        if member.compressed:
            raise UnknownFormatError(
                f"its member {quoted(member.name)} is compressed, which torch.save never does; some tool"
                " repacked the file. Load it with PyTorch and torch.save it again"
            )
    # With set_crc32_options(False), torch.save writes no checksums but zeros.
    checked = any(member.crc32 for member in members.values())
    _check_byte_order(_read(data, members.get(f"{root}/byteorder"), checked))
    value = read_pickle(_read(data, members[f"{root}/data.pkl"], checked))
    state_dict, extra = find_state_dict(value)

    tensors, strides = {}, {}
    for name, ref in state_dict.items():
        info = _place(name, ref, members.get(f"{root}/data/{ref.storage.key}"), len(data))
        tensors[name] = info
        if not _is_row_major(ref.shape, ref.strides):
            strides[name] = ref.strides
    checksums = (Checksum(m.name, m.offset, m.nbytes, m.crc32) for m in members.values()) if checked else ()
    return Contents("torch", tensors, extra=extra, strides=strides, checksums=tuple(checksums))


def _find_root(names: list[str]) -> str:
    """The folder that everything is in: the file's name when it was saved, or `archive`."""
    roots = [
        name.removesuffix("/data.pkl")
        for name in names
        if name.count("/") == 1 and name.endswith("/data.pkl")
    ]
    if len(roots) != 1:
        raise UnknownFormatError(
            "a zip archive, but not one that torch.save wrote: it has no data.pkl. If it holds a checkpoint,"
            " unpack it first"
        )
    (root,) = roots
    if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
        raise UnknownFormatError(
            "a TorchScript archive (a compiled program). masklet needs the weights alone: in PyTorch,"
            ' torch.save({"model": torch.jit.load(file).state_dict()}, ...)'
        )
    return root


def _read(data: Buffer, member: Member | None, checked: bool) -> bytes:
    """A short member as a whole; empty if there is none."""
    if member is None:
        return b""
    if member.nbytes > _MAX_PICKLE_BYTES:
        raise CorruptFileError(
            f"its {member.name.rpartition('/')[2]} has {member.nbytes:,} bytes, more than the"
            f" {_MAX_PICKLE_BYTES:,} that the description of a model can need. If the file is yours, save"
            " the weights alone: torch.save(model.state_dict(), ...)"
        )
    content = data[member.offset : member.offset + member.nbytes]
    if checked and zlib.crc32(content) != member.crc32:
        raise CorruptFileError(
            f"its {quoted(member.name)} is damaged (checksum); download or copy the file again"
        )
    return content


def _check_byte_order(order: bytes) -> None:
    if order == b"big":
        raise UnknownFormatError(
            "saved on a big-endian machine; load it with PyTorch on an ordinary one and torch.save it again"
        )
    if order not in (b"", b"little"):  # files from before PyTorch 2.1 have none
        raise CorruptFileError("its byte order is neither little nor big")


def find_state_dict(value: Any) -> tuple[dict[str, TensorRef], tuple[str, ...]]:
    """The tensors of a saved object by name, and the names of what lies beside them.

    A state dict may be the object itself, or be kept under one of `WRAPPERS`, or be the only dict with
    tensors in the object.
    """
    if isinstance(value, TensorRef):
        raise UnknownFormatError("it holds a single tensor, not a model's state dict")
    if type(value) is not dict:
        raise UnknownFormatError(
            "it holds no dict; a model file is a state dict, or a dict with one under 'model'"
        )
    own = _tensors_of(value)
    dicts = {
        id(item): item for item in value.values() if type(item) is dict
    }  # each once, however often it is referred to
    found = {identity: tensors for identity, item in dicts.items() if (tensors := _tensors_of(item))}
    inner = {key: found[id(item)] for key, item in value.items() if id(item) in found}
    known = [key for key in WRAPPERS if key in inner]
    if own and not known and all(len(own) >= len(tensors) for tensors in inner.values()):
        return _strip_prefixes(own), tuple(key for key in value if key not in own)
    if not known and len(inner) > 1:
        names = ", ".join(quoted(key) for key in list(inner)[:8])
        raise UnknownFormatError(
            f"it holds several dicts of tensors ({names}), none under a usual name ({', '.join(WRAPPERS)});"
            ' save the right one alone: torch.save({"model": ...}, ...)'
        )
    if not inner:
        raise UnknownFormatError(
            "it holds no tensors by name; a model file is a state dict, or a dict with one under 'model'"
        )
    chosen = known[0] if known else next(iter(inner))
    beside = [key for key in value if key != chosen]
    beside += [f"{chosen}.{key}" for key in value[chosen] if key not in inner[chosen]]
    return _strip_prefixes(inner[chosen]), tuple(beside)


def _tensors_of(mapping: dict[str, Any]) -> dict[str, TensorRef]:
    return {key: item for key, item in mapping.items() if isinstance(item, TensorRef)}


def _strip_prefixes(tensors: dict[str, TensorRef]) -> dict[str, TensorRef]:
    for prefix in _PREFIXES * 2:  # either may be inside the other
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): ref for name, ref in tensors.items()}
    return tensors


def _place(name: str, ref: TensorRef, member: Member | None, file_nbytes: int) -> TensorInfo:
    """Where a tensor lies in the file, once it is known to lie inside its storage."""
    if member is None:
        raise CorruptFileError(f"the data of tensor {quoted(name)} are missing from the file")
    unit = STORED_DTYPES[ref.storage.dtype].itemsize if ref.storage.dtype else 1
    if member.nbytes != ref.storage.count * unit:
        raise CorruptFileError(
            f"the storage of tensor {quoted(name)} should have {ref.storage.count} elements of {unit} bytes,"
            f" but has {member.nbytes} bytes in the file"
        )
    nbytes = tensor_nbytes(name, ref.dtype, ref.shape)
    itemsize = STORED_DTYPES[ref.dtype].itemsize
    last = ref.offset + sum((size - 1) * stride for size, stride in zip(ref.shape, ref.strides, strict=True))
    if nbytes and (last + 1) * itemsize > member.nbytes:
        raise CorruptFileError(
            f"tensor {quoted(name)} reaches to byte {(last + 1) * itemsize} of a storage of {member.nbytes}"
            " bytes"
        )
    # An expanded view (stride 0) of a few bytes in the file can claim any size.
    if nbytes > max(file_nbytes, _EXPANDED_BYTES):
        raise CorruptFileError(f"tensor {quoted(name)} of shape {ref.shape} is larger than the whole file")
    start = min(ref.offset * itemsize, member.nbytes)  # an empty tensor's offset may be anything
    return TensorInfo(name, ref.dtype, ref.shape, member.offset + start, nbytes)


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


# Writing, for tests and for tools that need a torch file where PyTorch is not.

_ALIGNMENT = 64
_LOCAL_HEADER_BYTES = 30
_STORAGE_OF = {dtype: name for name, dtype in STORAGES.items()}


def write_torch_file(
    path: str | os.PathLike[str], tensors: Mapping[str, np.ndarray], wrap: str | None = "model"
) -> None:
    """Write `tensors` as `torch.save({wrap: tensors}, path)` would; a bare state dict where `wrap` is None.

    Takes the types of `write_safetensors` as far as PyTorch has a classic storage for them. Written all or
    nothing; the same input gives the same bytes. Raises `InputError` for a type that cannot be stored and
    `OutputError` where the disk refuses.
    """
    items = b"".join(
        _text(name) + _pickled_tensor(name, i, array) for i, (name, array) in enumerate(tensors.items())
    )
    state_dict = b"}(" + items + b"u"
    pickle = b"\x80\x02" + (state_dict if wrap is None else b"}" + _text(wrap) + state_dict + b"s") + b"."
    with open_atomic(path) as file, zipfile.ZipFile(file, "w") as archive:
        _add(archive, "data.pkl", np.frombuffer(pickle, np.uint8))
        _add(archive, "byteorder", np.frombuffer(b"little", np.uint8))
        for i, array in enumerate(tensors.values()):
            _add(archive, f"data/{i}", stored_bytes(array))
        _add(archive, "version", np.frombuffer(b"3\n", np.uint8))


def _add(archive: zipfile.ZipFile, name: str, content: np.ndarray) -> None:
    member = zipfile.ZipInfo(f"archive/{name}")
    start = archive.start_dir + _LOCAL_HEADER_BYTES + len(member.filename) + 4
    padding = -start % _ALIGNMENT
    member.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    archive.writestr(member, content.data)


def _pickled_tensor(name: str, index: int, array: np.ndarray) -> bytes:
    storage = _STORAGE_OF.get(dtype_name(name, array))
    if storage is None:
        raise InputError(f"tensor {quoted(name)} of type {array.dtype} has no storage class in a torch file")
    strides = [math.prod(array.shape[i + 1 :]) for i in range(array.ndim)]
    reference = b"(" + _text("storage") + b"ctorch\n%sStorage\n" % storage.encode()
    reference += _text(str(index)) + _text("cpu") + _integer(array.size) + b"tQ"
    arguments = (
        reference
        + _integer(0)
        + _integers(array.shape)
        + _integers(strides)
        + b"\x89ccollections\nOrderedDict\n)R"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _integers(values: Iterable[int]) -> bytes:
    return b"(" + b"".join(map(_integer, values)) + b"t"
