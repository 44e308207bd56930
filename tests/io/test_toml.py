"""TOML files: what is written is read back, and what is none is an error that says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from masklet.errors import InputError
from masklet.io.toml import MAX_BYTES, read_toml, toml_text


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    values = {"threads": 4, "cache": False, "device": 'a "quoted" \\ é \n\x7f\x01'}
    text = toml_text(values, ["measured", "", "a line"])
    assert text.startswith("# measured\n#\n# a line\nthreads = 4\ncache = false\n")
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    assert read_toml(tmp_path / "a.toml") == values


@pytest.mark.parametrize(
    "content",
    [b"threads: 4", b"threads = 4\nthreads = 5", b"a = \xff", b"\x00", b"a = " + b"[" * 5000, b"PK\x03\x04"],
    ids=["yaml", "twice", "no text", "null", "deep", "zip"],
)
def test_what_is_no_toml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.toml is not a TOML file: .*A line looks like: threads = 4"):
        read_toml(path)


def test_what_cannot_be_read(tmp_path: Path) -> None:
    for name in (tmp_path / "missing.toml", tmp_path, "a\0b"):
        with pytest.raises(InputError, match="cannot read "):
            read_toml(name)
    (tmp_path / "large.toml").write_bytes(b"#" * (MAX_BYTES + 1))
    with pytest.raises(InputError, match="not a file of settings"):
        read_toml(tmp_path / "large.toml")
