"""Mutated files: whatever the bytes, a reader succeeds or raises an error of ours, in little memory."""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from masklet.errors import CheckpointError
from masklet.io.checkpoints import open_checkpoint
from masklet.io.safetensors import write_safetensors
from masklet.io.tensor_table import stored_shape
from masklet.io.torch_file import write_torch_file

HEADROOM_BYTES = 64 << 20
WEIGHTS = {
    "encoder.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "encoder.bias": np.arange(4, dtype=np.float16),
    "steps": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.float32),
    "mask": np.array([True, False, True]),
}
VALUES_64 = np.arange(128, dtype=np.float32).reshape(2, 64)
BLOCKED = {
    name: quantize(VALUES_64, GGMLQuantizationType[name.upper()])
    for name in ("f32", "f16", "bf16", "q8_0", "q4_1", "q4_0")
}
KINDS = {"f": "FloatStorage", "e": "HalfStorage", "l": "LongStorage", "?": "BoolStorage"}


@pytest.fixture(scope="module")
def pickled(ops):
    tensors = {
        name: ops.tensor(
            str(i),
            KINDS[array.dtype.char],
            array.size,
            array.shape,
            [s // array.itemsize for s in array.strides],
        )
        for i, (name, array) in enumerate(WEIGHTS.items())
    }
    beside = {"epoch": b"K\x03", "args": ops.name("argparse", "Namespace") + b")\x81}b", "list": b"](K\x01Ne"}
    return ops.whole(ops.mapping({"model": ops.mapping(tensors, ordered=True)} | beside))


@pytest.fixture(scope="module")
def storages():
    return {str(i): array.tobytes() for i, array in enumerate(WEIGHTS.values())}


@pytest.fixture(scope="module")
def torch_content(pickled, storages, torch_zip):
    return torch_zip(pickled, storages)


@pytest.fixture(scope="module")
def safetensors_content(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    write_safetensors(path, WEIGHTS, {"format": "pt"})
    return path.read_bytes()


@pytest.fixture(scope="module")
def gguf_content(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "file"
    writer = GGUFWriter(path, "masklet")
    writer.add_string("masklet.config", "{}")
    writer.add_uint32("general.alignment", 32)
    writer.add_array("texts", ["a", "bc"])
    for name, array in BLOCKED.items():
        writer.add_tensor(name, array, raw_dtype=GGMLQuantizationType[name.upper()])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def ggml_content(ggml_file):
    stored = {name: array for name, array in BLOCKED.items() if name != "bf16"}
    return ggml_file(
        {
            name: ((2, 64), int(GGMLQuantizationType[name.upper()]), array.tobytes())
            for name, array in stored.items()
        }
    )


INTERESTING = (
    b"\x00",
    b"\xff",
    b"\xff" * 4,
    b"\xff" * 8,
    b"\x00" * 8,
    b"\x7f" + b"\xff" * 3,
    b"\x80",
    b"\xff\xff\xff\x7f",
)


def mutate(content: bytes, rng: random.Random) -> bytes:
    """One to four random edits: bits, bytes, cuts, insertions, copies within the file, extreme numbers."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        length = rng.choice((1, 1, 2, 4, 8, 32, 200))
        match rng.randrange(7):
            case 0 | 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(data):
                data[at] = rng.randrange(256)
            case 3:
                del data[at : at + length]
            case 4:
                data[at:at] = rng.randbytes(length)
            case 5:
                source = rng.randrange(len(data) + 1)
                data[at : at + length] = data[source : source + length]
            case 6:
                value = rng.choice(INTERESTING)
                data[at : at + len(value)] = value
    if rng.random() < 0.05:
        del data[rng.randrange(len(data) + 1) :]
    return bytes(data)


@pytest.fixture
def survives(tmp_path):
    """A function that reads everything in a file of the given bytes.

    Anything but success (True) and an error of ours (False) fails the test.
    """
    with open(tmp_path / "file", "wb") as file:

        def survives(content: bytes) -> bool:
            fill(file, content)
            try:
                with open_checkpoint(file.name) as checkpoint:
                    for name, info in checkpoint.tensors.items():
                        assert checkpoint.raw(name).shape == stored_shape(name, info.dtype, info.shape)
                        assert checkpoint.array(name).shape == info.shape
                    assert len(checkpoint.fingerprint()) == 64
                    checkpoint.verify()
            except CheckpointError as error:
                if len(str(error)) > 2000:
                    pytest.fail(f"a message of {len(str(error))} characters")
                return False
            return True

        yield survives


def fill(file: BinaryIO, content: bytes) -> None:
    """Replace what an open file holds: several times as fast as a new file on some file systems."""
    file.seek(0)
    file.write(content)
    file.truncate()
    file.flush()


@pytest.fixture(autouse=True)
def bounded_memory():
    """Files of a few kilobytes: whoever believes a size in one of them asks for more than is left here."""
    resource = pytest.importorskip("resource")
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("needs /proc to know what the process has")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + HEADROOM_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_mutated_torch_files(survives, torch_content):
    rng = random.Random(1)
    assert survives(torch_content)
    outcomes = [survives(mutate(torch_content, rng)) for _ in range(3000)]
    assert 0 < sum(outcomes) < 1500  # padding and weights are most of so small a file


def test_mutated_pickles_with_correct_checksums(survives, pickled, storages, torch_zip):
    """The checksum stops damage, not malice: here the pickle itself is what is read."""
    rng = random.Random(2)
    assert survives(torch_zip(pickled, storages))
    outcomes = [survives(torch_zip(mutate(pickled, rng), storages)) for _ in range(4000)]
    assert 0 < sum(outcomes) < 2000


def test_random_instructions(survives, pickled, storages, torch_zip):
    """Pickles of instructions drawn at random from those of a real one, in any order."""
    rng = random.Random(3)
    pieces = [
        b"\x80\x02",
        *(bytes([code]) for code in b"()}]\x85\x86\x87tsueaRb\x81Q0NK\x88\x89.hq\x94\x93\x92"),
    ]
    pieces += [
        b"X\x01\x00\x00\x00a",
        b"K\x01",
        b"h\x00",
        b"h\x01",
        b"q\x00",
        b"q\x01",
        b"ccollections\nOrderedDict\n",
    ]
    pieces += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch\nFloatStorage\n", b"cargparse\nNamespace\n"]
    pieces += [b"X\x07\x00\x00\x00storage", pickled[2:-1]]
    for _ in range(3000):
        content = b"".join(rng.choices(pieces, k=rng.randrange(1, 40))) + b"."
        survives(torch_zip(content, storages))


def test_mutated_safetensors_files(survives, safetensors_content):
    rng = random.Random(4)
    assert survives(safetensors_content)
    outcomes = [survives(mutate(safetensors_content, rng)) for _ in range(3000)]
    assert 0 < sum(outcomes) < 1500


def test_mutated_gguf_files(survives, gguf_content):
    rng = random.Random(6)
    assert survives(gguf_content)
    outcomes = [survives(mutate(gguf_content, rng)) for _ in range(1500)]
    assert 0 < sum(outcomes) < 1000


def test_mutated_gguf_headers(survives, gguf_content):
    """Nothing but the header is hit."""
    rng = random.Random(7)
    start = gguf_content.index(BLOCKED["f32"].tobytes())
    header, data = gguf_content[:start], gguf_content[start:]
    outcomes = [survives(mutate(header, rng) + data) for _ in range(1500)]
    assert 0 < sum(outcomes) < 700


def test_mutated_ggml_files(survives, ggml_content):
    rng = random.Random(8)
    assert survives(ggml_content)
    outcomes = [survives(mutate(ggml_content, rng)) for _ in range(1500)]
    assert 0 < sum(outcomes) < 1250  # the settings are passed over, and most of the rest is weights


VALUES = (
    0,
    1,
    -1,
    24,
    25,
    True,
    None,
    1.5,
    1 << 62,
    1 << 63,
    1 << 64,
    1 << 200,
    "",
    "F32",
    "BOOL",
    "F4",
    [],
    [0],
    [1 << 40] * 3,
    {},
)


def edit(value, rng: random.Random):
    """A JSON value with one place replaced, removed or doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        match rng.randrange(6):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {rng.choice(["__metadata__", "", "shape", "x" * 5000]): value[key]}
            case _:
                return value | {key: edit(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        at = rng.randrange(len(value))
        return rng.choice(
            [value[:at], value + value[at:], [*value[:at], edit(value[at], rng), *value[at + 1 :]]]
        )
    return rng.choice(VALUES)


def test_edited_safetensors_headers(survives, safetensors_content):
    rng = random.Random(5)
    (length,) = struct.unpack("<Q", safetensors_content[:8])
    header, data = json.loads(safetensors_content[8 : 8 + length]), safetensors_content[8 + length :]
    outcomes = []
    for _ in range(3000):
        edited = header
        for _ in range(rng.choice((1, 1, 2, 3))):
            edited = edit(edited, rng)
        text = json.dumps(edited).encode()
        outcomes.append(survives(struct.pack("<Q", len(text)) + text + data))
    assert 0 < sum(outcomes) < 1500


def indifferent(content: bytes) -> set[int]:
    """Positions in an archive that say nothing about its tensors.

    Versions, times, attributes, padding, and the members that are not read.
    """
    found: set[int] = set()
    starts = [at for at in range(len(content)) if content[at : at + 2] == b"PK"]
    for start, end in zip(starts, [*starts[1:], len(content)], strict=True):
        match content[start + 2 : start + 4]:
            case b"\x03\x04":
                name_length, extra_length = struct.unpack_from("<2H", content, start + 26)
                name_end = start + 30 + name_length
                data = name_end + extra_length
                found |= {
                    *range(start + 4, start + 6),
                    *range(start + 10, start + 14),
                    *range(name_end, data),
                }
                if not re.search(rb"/(data\.pkl|byteorder|data/\d+)$", content[start + 30 : name_end]):
                    found |= set(range(data, end))
                if (end - data).bit_count() == 1:  # one flip turns the zeros for the sizes into the sizes
                    at = ((end - data).bit_length() - 1) // 8
                    found |= {start + 18 + at, start + 22 + at}
            case b"\x01\x02":
                found |= {start + i for i in (*range(4, 8), *range(12, 16), *range(36, 42))}
                name_length, extra_length = struct.unpack_from("<2H", content, start + 28)
                found |= set(range(start + 46 + name_length, start + 46 + name_length + extra_length))
            case b"\x06\x06":
                found |= set(range(start + 12, start + 16))
    return found


@pytest.mark.parametrize("writer", ["PyTorch", "zipfile"])
def test_every_single_flipped_bit_of_a_torch_file(tmp_path, ops, torch_zip, writer):
    """An error, unless the position says nothing about the tensors; in the weights, `verify` finds it.

    PyTorch's archives state sizes in descriptors behind the data, those of zipfile in front of them.
    """
    weights = np.arange(6, dtype=np.float32).reshape(2, 3)
    if writer == "PyTorch":
        tensor = ops.tensor("0", "FloatStorage", 6, [2, 3], [3, 1])
        content = torch_zip(ops.whole(ops.mapping({"w": tensor})), {"0": weights.tobytes()}, root="r")
    else:
        write_torch_file(tmp_path / "whole", {"w": weights}, wrap=None)
        content = (tmp_path / "whole").read_bytes()
    start, passed = content.index(weights.tobytes()), indifferent(content)
    data = range(start, start + weights.nbytes)
    with open(tmp_path / "file", "wb") as file:
        for at in range(len(content)):
            for bit in range(8) if content[at] != ord("Z") else (0,):  # Zs are padding
                fill(file, content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
                try:
                    checkpoint = open_checkpoint(file.name)
                except CheckpointError:
                    continue
                with checkpoint:
                    assert {name: info.shape for name, info in checkpoint.tensors.items()} == {"w": (2, 3)}
                    assert (checkpoint.array("w").tobytes() != weights.tobytes()) == (at in data)
                    assert at in data or at in passed, f"bit {bit} of byte {at} is not noticed"
                    if at in data:
                        with pytest.raises(CheckpointError, match="do not match"):
                            checkpoint.verify()


def test_checksums_in_this_file_are_meant(pickled, storages, torch_zip):
    """The builder's checksums are real, so that the fuzzers above reach the pickle."""
    assert struct.pack("<L", zlib.crc32(pickled)) in torch_zip(pickled, storages)
