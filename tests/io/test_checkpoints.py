from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from masklet.errors import (
    CheckpointError,
    CorruptFileError,
    InputError,
    ModelNotFoundError,
    TensorMismatchError,
    UnknownFormatError,
)
from masklet.io.checkpoints import Checkpoint, TensorInfo, open_checkpoint
from masklet.io.safetensors import write_safetensors
from masklet.io.torch_file import write_torch_file

WEIGHTS = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "a.bias": np.array([1, 2], np.float16)}


@pytest.fixture(params=["torch", "safetensors"])
def path(request, tmp_path):
    path = tmp_path / "model.bin"
    (write_torch_file if request.param == "torch" else write_safetensors)(path, WEIGHTS)
    return path


# What a checkpoint offers


def test_format_is_told_by_content_alone(tmp_path):
    write_torch_file(tmp_path / "weights.safetensors", WEIGHTS)
    write_safetensors(tmp_path / "weights.pt", WEIGHTS)
    assert open_checkpoint(tmp_path / "weights.safetensors").format == "torch"
    assert open_checkpoint(tmp_path / "weights.pt").format == "safetensors"


def test_tables_and_arrays_of_both_formats_agree(path):
    checkpoint = open_checkpoint(str(path))
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.path == path
    assert set(checkpoint.tensors) == set(WEIGHTS)
    assert checkpoint.extra == ()
    assert checkpoint.metadata == {}
    info = checkpoint.tensors["a.weight"]
    assert info == TensorInfo("a.weight", "f32", (2, 3), info.offset, 24)
    assert path.read_bytes()[info.offset : info.offset + info.nbytes] == WEIGHTS["a.weight"].tobytes()
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(checkpoint.array(name), array)
        assert checkpoint.array(name).dtype == np.float32
        np.testing.assert_array_equal(checkpoint.raw(name), array)
        assert checkpoint.raw(name).dtype == array.dtype


def test_nothing_can_be_changed(path):
    checkpoint = open_checkpoint(path)
    with pytest.raises(AttributeError):
        checkpoint.format = "other"
    for mapping in (checkpoint.tensors, checkpoint.metadata):
        with pytest.raises(TypeError):
            mapping["x"] = None
    for array in (checkpoint.array("a.weight"), checkpoint.array("a.bias"), checkpoint.raw("a.bias")):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_f32_is_not_copied(path):
    checkpoint = open_checkpoint(path)
    assert np.shares_memory(checkpoint.array("a.weight"), checkpoint.array("a.weight"))
    assert np.shares_memory(checkpoint.raw("a.bias"), checkpoint.raw("a.bias"))
    assert not np.shares_memory(checkpoint.array("a.bias"), checkpoint.array("a.bias"))


def test_arrays_outlive_their_checkpoint(path):
    with open_checkpoint(path) as checkpoint:
        array = checkpoint.array("a.weight")
    checkpoint.close()  # once more is allowed
    del checkpoint
    np.testing.assert_array_equal(array, WEIGHTS["a.weight"])


def test_a_closed_checkpoint_says_so(path):
    with open_checkpoint(path) as checkpoint:
        pass
    for use in (lambda: checkpoint.array("a.weight"), lambda: checkpoint.raw("a.bias")):
        with pytest.raises(InputError, match="is closed"):
            use()
    assert checkpoint.tensors["a.bias"].dtype == "f16"  # the table stays
    assert repr(checkpoint).endswith("2 tensors)")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files through /proc")
def test_no_file_stays_open(path, write):
    before = len(os.listdir("/proc/self/fd"))
    bad = write(path.read_bytes()[:-1], "bad")
    kept = []  # the errors, whose tracebacks keep what they were raised over
    for _ in range(5):
        open_checkpoint(path).close()
        with pytest.raises(CorruptFileError) as caught:
            open_checkpoint(bad)
        kept.append(caught)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_missing_tensor_names_close_ones(path):
    with pytest.raises(TensorMismatchError, match=r"no tensor 'a\.wieght' among 2; close: 'a\.weight'"):
        open_checkpoint(path).array("a.wieght")
    with pytest.raises(TensorMismatchError, match=r"no tensor 'zzz' among 2$"):
        open_checkpoint(path).raw("zzz")


def test_fingerprint_is_of_the_layout(path, tmp_path):
    write = write_torch_file if open_checkpoint(path).format == "torch" else write_safetensors
    first = open_checkpoint(path).fingerprint()
    assert len(first) == 64
    write(tmp_path / "copy", WEIGHTS)
    assert open_checkpoint(tmp_path / "copy").fingerprint() == first
    write(tmp_path / "trained", WEIGHTS | {"a.bias": np.array([3, 4], np.float16)})
    assert open_checkpoint(tmp_path / "trained").fingerprint() == first  # documented: not over the data
    others = (
        {"a.weight": WEIGHTS["a.weight"], "b.bias": WEIGHTS["a.bias"]},
        WEIGHTS | {"a.weight": WEIGHTS["a.weight"].reshape(3, 2)},
        WEIGHTS | {"a.weight": WEIGHTS["a.weight"].astype(np.int32)},
        WEIGHTS | {"c": np.zeros(0, np.float32)},
    )
    prints = {first}
    for i, tensors in enumerate(others):
        write(tmp_path / f"{i}", tensors)
        prints.add(open_checkpoint(tmp_path / f"{i}").fingerprint())
    assert len(prints) == 5


def test_reading_from_several_threads(path):
    checkpoint, wrong = open_checkpoint(path), []

    def read():
        for _ in range(200):
            for name, array in WEIGHTS.items():
                if not np.array_equal(checkpoint.array(name), array):
                    wrong.append(name)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Files that are no checkpoints


def archive_of(text):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("pickle"), io.BytesIO(text))
    return buffer.getvalue()


def zip_of(name):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"content")
    return buffer.getvalue()


LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, this is no model\n", "a text file, which begins 'hello, this"),
        ("schöner Text".encode(), "a text file, which begins 'schöner Text'"),
        (b'{"a": {"b": 1}}', "a text file"),
        (b'{"a": 1,{"', "a text file"),
        (b"<!DOCTYPE html><html><title>404</title>", "a web page .* download again"),
        (b"\xef\xbb\xbf\n\n <HTML lang=en>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
        (gzip.compress(b"x" * 100), "gzip; unpack"),
        (b"BZh91AY", "bzip2; unpack"),
        (b"\xfd7zXZ\x00\x00", "xz; unpack"),
        (b"\x28\xb5\x2f\xfd\x00", "zstd; unpack"),
        (archive_of(b""), "a tar archive; unpack"),
        (zip_of("word/document.xml"), "zip archive, but not one that torch.save wrote"),
        (b"PK\x05\x06" + bytes(18), "an empty zip archive"),
        (b"3mas\x03\x00\x00\x00", r"a ggml file with SAM 3 of sam3\.cpp"),
        (b"lmgg\x01\x00\x00\x00", "a ggml file from before GGUF"),
        (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0", "an ONNX graph"),
        (b"\x08\x0a:\xff\x05\n\x03abc", "an ONNX graph"),
        (b"\x89HDF\r\n\x1a\n\x00", "an HDF5 file"),
        (b"\x89PNG\r\n\x1a\n\x00", r"a picture \(PNG\)"),
        (b"\xff\xd8\xff\xe0\x00", r"a picture \(JPEG\)"),
        (LEGACY, r"legacy format, from before PyTorch 1\.6; convert it .*torch\.save\(torch\.load"),
        (pickle.dumps({"weights": [1.5]}, 4), "a bare Python pickle"),
        (bytes(4096), "begins with zeros"),
        (b"\x01\x02\x03\x04\xff\xfe", "first bytes are 01 02 03 04 ff fe"),
        (b"\x00", "begins with zeros"),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_other_files_are_named(write, content, words):
    path = write(content, "model.pt")
    with pytest.raises(UnknownFormatError, match=words) as caught:
        open_checkpoint(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "masklet reads PyTorch files" in message or content.startswith(b"PK\x03")


def test_a_damaged_first_byte_is_called_damage(path, write):
    content = path.read_bytes()
    for at in (0, 1) if content[:2] == b"PK" else (7, 8):
        damaged = content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]
        with pytest.raises(CorruptFileError):
            open_checkpoint(write(damaged, "damaged"))


def test_errors_name_the_file(write):
    path = write(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert str(caught.value).startswith(f"{path}: ")


# Paths that cannot be opened


def test_paths_that_lead_nowhere(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    for name in ("missing.pt", "file/model.pt", "broken"):
        with pytest.raises(ModelNotFoundError, match="there is no file"):
            open_checkpoint(tmp_path / name)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(InputError, match="is a folder; give the path of a model file"):
        open_checkpoint(tmp_path)
    for name in ("x" * 5000, "null\0"):
        with pytest.raises(InputError, match="name is not possible"):
            open_checkpoint(tmp_path / name)
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(InputError, match="name is not possible"):
        open_checkpoint(loop)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not an ordinary file"):
        open_checkpoint(tmp_path / "pipe")


def test_a_file_that_may_not_be_read(path, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match="no permission to read"):
        open_checkpoint(path)


def test_a_file_system_without_maps(path, monkeypatch):
    def refuse(*arguments, **settings):
        raise OSError(19, "No such device")

    monkeypatch.setattr("masklet.io.checkpoints.mmap.mmap", refuse)
    with pytest.raises(InputError, match="cannot be mapped into memory"):
        open_checkpoint(path)
