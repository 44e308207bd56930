from __future__ import annotations

import errno
import json
import os
import resource
import stat
import struct
import tracemalloc

import ml_dtypes
import numpy as np
import pytest

from masklet.errors import CorruptFileError, InputError, OutputError, UnknownFormatError
from masklet.io import atomic
from masklet.io.checkpoints import open_checkpoint
from masklet.io.safetensors import write_safetensors

GOOD = {"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}


@pytest.fixture
def opened(write):
    """Opens a file with this header (an object, or its text) and this many bytes of data."""

    def opened(header, nbytes=24):
        text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "surrogatepass")
        return open_checkpoint(write(struct.pack("<Q", len(text)) + text + bytes(nbytes)))

    return opened


def entry(dtype="F32", shape=(2, 3), begin=0, end=24, **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


# Reading


def test_every_stored_type(write):
    values = {
        "F64": np.array([1.5, -2, np.nan]),
        "F32": np.array([1.5, -2, np.nan], np.float32),
        "F16": np.array([1.5, -2, np.nan], np.float16),
        "BF16": np.array([1.5, -2, np.nan], ml_dtypes.bfloat16),
        "I64": np.array([1, -2, 3]),
        "I32": np.array([1, -2, 3], np.int32),
        "I16": np.array([1, -2, 3], np.int16),
        "I8": np.array([1, -2, 3], np.int8),
        "U64": np.array([1, 2, 1 << 63], np.uint64),
        "U32": np.array([1, 2, 3], np.uint32),
        "U16": np.array([1, 2, 3], np.uint16),
        "U8": np.array([1, 2, 3], np.uint8),
        "C64": np.array([1, 2j, 3], np.complex64),
        "BOOL": np.array([True, False, True]),
    }
    header, data = {}, b""
    for name, array in values.items():
        header[name] = entry(name, [3], len(data), len(data) + array.nbytes)
        data += array.tobytes()
    text = json.dumps(header).encode()
    checkpoint = open_checkpoint(write(struct.pack("<Q", len(text)) + text + data))
    assert checkpoint.format == "safetensors"
    for name, array in values.items():
        read = checkpoint.array(name)
        assert checkpoint.tensors[name].dtype == name.lower()
        expected = array.astype(np.float32) if name in ("F16", "BF16") else array
        assert read.dtype == expected.dtype
        np.testing.assert_array_equal(read, expected)
        assert read.flags.aligned
        assert not read.flags.writeable
        assert checkpoint.raw(name).tobytes() == array.tobytes()


def test_conversion_of_every_16_bit_pattern(tmp_path):
    bits = np.arange(1 << 16, dtype=np.uint16)
    path = tmp_path / "all"
    write_safetensors(path, {"f16": bits.view(np.float16), "bf16": bits.view(ml_dtypes.bfloat16)})
    with np.errstate(invalid="ignore"):
        f16, bf16 = bits.view(np.float16).astype(np.float32), bits.view(ml_dtypes.bfloat16).astype(np.float32)
    with open_checkpoint(path) as checkpoint:
        np.testing.assert_array_equal(checkpoint.array("f16"), f16)
        np.testing.assert_array_equal(checkpoint.array("bf16"), bf16)
        np.testing.assert_array_equal(checkpoint.raw("bf16"), bits)


def test_headers_that_are_valid(opened):
    assert opened(GOOD).tensors["w"].shape == (2, 3)
    assert opened(json.dumps(GOOD) + "      ").tensors["w"].nbytes == 24
    assert opened({"w": entry(future_key=1)}).tensors["w"].nbytes == 24
    checkpoint = opened({"__metadata__": {"a": "b", "é": "\n"}, **GOOD})
    assert checkpoint.metadata == {"a": "b", "é": "\n"}
    assert list(checkpoint.tensors) == ["w"]
    assert opened({}, 0).tensors == {}
    assert opened({"e": entry(shape=[0, 7], end=0), "w": entry()}).array("e").shape == (0, 7)
    assert opened({"s": entry(shape=[], end=4)}, 4).array("s").shape == ()
    assert list(opened({"b": entry(shape=[1], begin=4, end=8), "a": entry(shape=[1], end=4)}, 8).tensors) == [
        "a",
        "b",
    ]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("{ ", "not valid JSON"),
        ('{"w": nope}', "not valid JSON"),
        ('{"w\ud800', "not valid JSON"),
        ('{"a":' + "[" * 100_000, "not valid JSON"),
        ('{"a":' * 100_000, "not valid JSON"),
        ('{"w": NaN}', "number 'NaN'"),
        ('{"w": 1e999}', "number '1e999'"),
        ('{"w": ' + "9" * 100_000 + "}", "no size or offset can reach"),
        ('{"w": 1, "w": 2}', "states 'w' twice"),
        ('{"w": {"dtype": "F32", "dtype": "F16"}}', "states 'dtype' twice"),
        ({"w": 1}, "'w' lacks"),
        ({"w": [1]}, "'w' lacks"),
        ({"w": {"dtype": "F32", "shape": [6]}}, "'w' lacks"),
        ({"w": {"dtype": "F32", "data_offsets": [0, 24]}}, "'w' lacks"),
        ({"w": {"shape": [6], "data_offsets": [0, 24]}}, "'w' lacks"),
        ({"w": entry(dtype=5)}, "'w' lacks"),
        ({"w": {"dtype": "F32", "shape": 6, "data_offsets": [0, 24]}}, "'w' lacks"),
        ({"w": {"dtype": "F32", "shape": [6], "data_offsets": [0, 12, 24]}}, "'w' lacks"),
        ({"w": entry(shape=[-6])}, "not whole numbers"),
        ({"w": entry(shape=[True, 6])}, "not whole numbers"),
        ({"w": entry(shape=["6"])}, "not whole numbers"),
        ({"w": entry(shape=[None, 6])}, "not whole numbers"),
        ('{"w": {"dtype": "F32", "shape": [6.0], "data_offsets": [0, 24]}}', "number '6.0'"),
        ({"w": entry(begin=-24, end=0)}, "not whole numbers"),
        ({"w": entry(begin=False)}, "not whole numbers"),
        ({"w": entry(begin=24, end=0)}, "span -24"),
        ({"w": entry(shape=[7])}, "needs 28 bytes, but its offsets span 24"),
        ({"w": entry(dtype="F16")}, "needs 12 bytes, but its offsets span 24"),
        ({"w": entry(shape=[1 << 63, 1 << 63])}, "more elements than any file"),
        ({"w": entry(shape=[0, 1 << 63, 1 << 63], end=0)}, "more elements than any file"),
        ({"w": entry(shape=[1] * 40)}, "40 dimensions"),
        ({"w": entry(shape=[12], end=48)}, "end at byte"),
        ({"w": entry(shape=[3], end=12)}, "end at byte"),
        ({}, "end at byte"),
        ({"w": entry(shape=[3], begin=12, end=24)}, "leaves a gap"),
        ({"a": entry(), "b": entry()}, "overlaps"),
        ({"a": entry(shape=[3], end=12), "b": entry(shape=[4], begin=8, end=24)}, "overlaps"),
        ({"a": entry(shape=[2], end=8), "b": entry(shape=[3], begin=12, end=24)}, "leaves a gap"),
        ({"__metadata__": 1, **GOOD}, "not a map from text to text"),
        ({"__metadata__": {"a": 1}, **GOOD}, "not a map from text to text"),
        ({"__metadata__": {"a": {"b": "c"}}, **GOOD}, "not a map from text to text"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_headers_that_are_not_valid(opened, header, message):
    with pytest.raises(CorruptFileError, match=message):
        opened(header)


@pytest.mark.parametrize("dtype", ["F128", "f32", "F4", "F6_E2M3", "float32", ""])
def test_unknown_types(opened, dtype):
    with pytest.raises(UnknownFormatError, match=f"'w' has the dtype '{dtype}'; masklet reads F64, F32"):
        opened({"w": entry(dtype)})


@pytest.mark.parametrize("length", [0, 1, 10_000, 100_000_001, 1 << 63, (1 << 64) - 1])
def test_header_lengths_that_are_not_possible(write, length):
    with pytest.raises(CorruptFileError, match=f"claims {length:,} bytes"):
        open_checkpoint(write(struct.pack("<Q", length) + json.dumps(GOOD).encode() + bytes(24)))


def test_a_header_longer_than_the_format_allows(tmp_path):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 100_000_001) + b"{}")
        file.truncate(100_000_200)  # sparse: takes no room on the disk
    with pytest.raises(CorruptFileError, match="at most 100,000,000 are allowed"):
        open_checkpoint(path)


@pytest.mark.parametrize("item", ["[],", "{},", "1,"])
def test_a_header_that_would_take_gigabytes(opened, item):
    """A few bytes of text become an object of 60: the items are counted before they are made."""
    text = '{"w": [' + item * 4_100_000 + "1]}"
    tracemalloc.start()
    try:
        with pytest.raises(CorruptFileError, match="more than 4,000,000 items"):
            opened(text)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(text)
    finally:
        tracemalloc.stop()


def test_every_truncation_is_corrupt(tmp_path, write):
    write_safetensors(tmp_path / "whole", {"w": np.arange(6, dtype=np.float32)})
    content = (tmp_path / "whole").read_bytes()
    for length in range(10, len(content)):
        with pytest.raises(CorruptFileError):
            open_checkpoint(write(content[:length]))
    with pytest.raises(CorruptFileError):
        open_checkpoint(write(content + b"x"))


def test_unaligned_data_are_copied(write):
    header = {"a": entry("U8", [1], 0, 1), "b": entry("F32", [2], 1, 9)}
    text = json.dumps(header).encode()
    data = b"\x05" + np.array([1.5, 2.5], np.float32).tobytes()
    checkpoint = open_checkpoint(write(struct.pack("<Q", len(text)) + text + data))
    read = checkpoint.array("b")
    assert read.tolist() == [1.5, 2.5]
    assert read.flags.aligned
    assert checkpoint.verify() is False


# Writing


def test_what_is_written_is_read_back(tmp_path):
    tensors = {
        "z.first": np.array([5], np.uint8),
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "half": np.array([1.5, 2.5, 3.5], np.float16),
        "brain": np.array([1.5, -3.0], ml_dtypes.bfloat16),
        "tiny": np.array([1.5, -3.0], ml_dtypes.float8_e4m3fn),
        "scalar": np.array(7, np.int64),
        "empty": np.zeros((0, 4), np.float32),
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "swapped": np.array([1, 2], ">f8"),
        "mask": np.array([True, False]),
        "é": np.array([1j], np.complex64),
    }
    path = tmp_path / "model.safetensors"
    write_safetensors(path, tensors, {"format": "masklet", "note": "é \n"})
    with open_checkpoint(path) as checkpoint:
        assert set(checkpoint.tensors) == set(tensors)
        assert checkpoint.metadata == {"format": "masklet", "note": "é \n"}
        assert min(info.offset for info in checkpoint.tensors.values()) % 64 == 0
        for name, array in tensors.items():
            info = checkpoint.tensors[name]
            assert info.shape == array.shape
            assert info.offset % array.itemsize == 0
            if name != "tiny":
                read = checkpoint.array(name)
                np.testing.assert_array_equal(read, array.astype(read.dtype))
        assert np.array_equal(checkpoint.raw("tiny"), tensors["tiny"].view(np.uint8))


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    one = {"a": np.ones(3, np.float32), "b": np.zeros(2, np.float16), "c": np.arange(2, dtype=np.float32)}
    write_safetensors(tmp_path / "1", one, {"x": "1", "y": "2"})
    write_safetensors(tmp_path / "2", dict(reversed(one.items())), {"y": "2", "x": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"w": np.array(["text"])}, None, "'w' has the type <U4; files can store float64"),
        ({"w": np.array([None])}, None, "'w' has the type object"),
        ({"w": np.zeros(1, np.complex128)}, None, "complex128, which safetensors files cannot store"),
        ({"w": [1.0]}, None, "'w' is a list; give a numpy array"),
        ({"__metadata__": np.zeros(1)}, None, "'__metadata__' cannot be the name"),
        ({1: np.zeros(1)}, None, "1 cannot be the name"),
        ({}, {"a": 1}, "must be text by text"),
    ],
)
def test_what_cannot_be_stored(tmp_path, tensors, metadata, message):
    with pytest.raises(InputError, match=message):
        write_safetensors(tmp_path / "w", tensors, metadata)
    assert list(tmp_path.iterdir()) == []


def test_a_header_that_would_be_too_long(tmp_path):
    with pytest.raises(InputError, match="names and metadata take 1"):
        write_safetensors(tmp_path / "w", {}, {"a": "x" * 100_000_000})
    assert list(tmp_path.iterdir()) == []


WEIGHTS = {"w": np.ones(1000, np.float32)}


def test_folders_and_names_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("kept")
    for path, message in (
        (tmp_path / "nowhere" / "w", "nowhere' does not exist; create it first"),
        (tmp_path / "file" / "w", "file' does not exist; create it first"),
        (tmp_path / "folder", "it is a folder"),
        (tmp_path / "null\0", "null character"),
    ):
        with pytest.raises(OutputError, match=message):
            write_safetensors(path, WEIGHTS)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere"
)
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission"):
            write_safetensors(tmp_path / "w", WEIGHTS)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EIO])
def test_a_disk_that_refuses(tmp_path, monkeypatch, code):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    path = tmp_path / "w"
    path.write_bytes(b"kept")
    monkeypatch.setattr(atomic.os, "fsync", refuse)
    full = code in (errno.ENOSPC, errno.EDQUOT)
    words = "disk .* is full" if full else "no permission" if code == errno.EACCES else os.strerror(code)
    with pytest.raises(OutputError, match=words):
        write_safetensors(path, WEIGHTS)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    assert path.read_bytes() == b"kept"


def test_a_file_that_grows_beyond_its_limit(tmp_path):
    """A real refusal by the operating system in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OutputError, match="does not allow a file of that size"):
            write_safetensors(tmp_path / "w", {"w": np.ones(100_000, np.float32)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_what_was_there(tmp_path, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    path = tmp_path / "w"
    path.write_bytes(b"kept")
    monkeypatch.setattr(atomic.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(path, WEIGHTS)
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    assert path.read_bytes() == b"kept"


def test_the_result_is_like_any_other_file(tmp_path):
    mask = os.umask(0o022)
    try:
        write_safetensors(tmp_path / "w", WEIGHTS)
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o644


def test_a_link_is_written_through(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real" / "w")
    write_safetensors(tmp_path / "link", WEIGHTS)
    assert (tmp_path / "link").is_symlink()
    assert open_checkpoint(tmp_path / "real" / "w").array("w").shape == (1000,)
