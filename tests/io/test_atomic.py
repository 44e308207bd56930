from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

import pytest

from masklet.errors import InputError, OutputError
from masklet.io import atomic
from masklet.io.atomic import fill_folder, open_atomic


def test_the_file_appears_whole_and_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    with open_atomic(path) as file:
        file.write(b"one")
        file.flush()
        assert not path.exists()
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["out.bin"]


def test_an_existing_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"something longer")
    with open_atomic(str(path)) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def _fail_half_way(file: BinaryIO, error: type[BaseException]) -> None:
    file.write(b"half")
    raise error("stop")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, InputError, SystemExit])
def test_any_exception_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), open_atomic(path) as file:
        _fail_half_way(file, error)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.bin"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "word"),
    [(errno.ENOSPC, "full"), (errno.EACCES, "permission"), (errno.EROFS, "permission"), (errno.EIO, "error")],
)
def test_the_file_system_may_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, word: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(atomic.os, step, refuse)
    with pytest.raises(OutputError, match=word) as caught, open_atomic(tmp_path / "out.bin") as file:
        file.write(b"x")
    assert "out.bin" in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_interrupted_while_renaming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(atomic.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt), open_atomic(tmp_path / "out.bin") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == []


def test_a_missing_folder_is_to_be_created(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="does not exist; create it"),
        open_atomic(tmp_path / "no" / "out.bin"),
    ):
        pytest.fail("the block must not run: its work would be lost")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError), open_atomic(tmp_path / "file" / "out.bin"):
        pass


def test_the_target_is_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    with pytest.raises(OutputError, match="it is a folder"), open_atomic(target) as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(target) == []


def test_a_name_with_a_null_character() -> None:
    with pytest.raises(OutputError, match="null character"), open_atomic("a\0b"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither umask nor unprivileged links")
def test_permissions_and_links_are_as_with_open(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with open_atomic(tmp_path / "real.bin"):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "real.bin").stat().st_mode) == 0o640
    (tmp_path / "link.bin").symlink_to("real.bin")
    with open_atomic(tmp_path / "link.bin") as file:
        file.write(b"through")
    assert (tmp_path / "link.bin").is_symlink()
    assert (tmp_path / "real.bin").read_bytes() == b"through"


def test_a_folder_is_filled_with_the_named_file_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    replace = os.replace
    monkeypatch.setattr(atomic.os, "replace", lambda source, to: moved.append(to.name) or replace(source, to))
    with fill_folder(tmp_path / "out", last="b") as folder:
        for name in "abc":
            (folder / name).write_text(name)
        assert not any((tmp_path / "out" / name).exists() for name in "abc")
    assert sorted(moved) == ["a", "b", "c"]
    assert moved[-1] == "b"
    assert sorted(os.listdir(tmp_path / "out")) == ["a", "b", "c"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_is_left_as_it_was(tmp_path: Path, error: type[BaseException], exists: bool) -> None:
    target = tmp_path / "out"
    if exists:
        target.mkdir()
        (target / "a").write_text("old")
    with pytest.raises(error), fill_folder(target, last="a") as folder:
        _write_and_fail(folder, error)
    assert target.exists() == exists
    if exists:
        assert os.listdir(target) == ["a"]
        assert (target / "a").read_text() == "old"


def _write_and_fail(folder: Path, error: type[BaseException]) -> None:
    (folder / "a").write_text("new")
    raise error("stop")


def test_a_folder_below_one_that_is_missing(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="does not exist; create it"),
        fill_folder(tmp_path / "no" / "out", last="a"),
    ):
        pytest.fail("the block must not run: its work would be lost")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path):
    """With the rights to do so, `-o /dev/null` once replaced the device by a regular file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with open_atomic(pipe) as file:
        file.write(b"content")
    assert os.read(reader, 100) == b"content"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert list(tmp_path.iterdir()) == [pipe]
