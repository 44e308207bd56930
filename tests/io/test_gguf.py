from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize, quantize

from masklet.errors import CorruptFileError, UnknownFormatError
from masklet.io.checkpoints import Checkpoint, open_checkpoint
from masklet.io.tensor_table import BLOCKS

WEIGHTS = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
ARCHITECTURE = ("general.architecture", 8, "masklet")


def text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(kind: int, value: Any) -> bytes:
    return text(value) if kind == 8 else value if isinstance(value, bytes) else struct.pack("<I", value)


def gguf(
    fields: Sequence[tuple[str, int, Any]] = (ARCHITECTURE,),
    tensors: Sequence[tuple[str, Sequence[int], int, int]] = (("w", (3, 2), 0, 0),),
    data: bytes = bytes(24),
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file, byte by byte. Dimensions are in the file's order; the fields' values as numbers are uint32."""
    content = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(tensors), len(fields))))
    for name, kind, given in fields:
        content += text(name) + struct.pack("<I", kind) + value(kind, given)
    for name, dimensions, kind, offset in tensors:
        content += text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        content += struct.pack("<IQ", kind, offset)
    return content + bytes(-len(content) % alignment) + data


@pytest.fixture
def opened(write: Callable[..., Path]) -> Callable[..., Checkpoint]:
    return lambda *arguments, **settings: open_checkpoint(write(gguf(*arguments, **settings)))


@pytest.fixture
def package_file(tmp_path: Path) -> Path:
    """A file that the package wrote, with fields of every kind and tensors of every type that we read."""
    writer = GGUFWriter(tmp_path / "file", "masklet")
    writer.add_string("note", "é \n")
    writer.add_uint8("u8", 1)
    writer.add_int64("i64", -1)
    writer.add_float64("f64", 0.5)
    writer.add_bool("bool", True)
    writer.add_array("texts", ["a", "", "ccc"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_tensor("f32", WEIGHTS)
    writer.add_tensor("f16", WEIGHTS.astype(np.float16)[:, :3])
    writer.add_tensor("4d", np.arange(24, dtype=np.float32).reshape(2, 1, 3, 4))
    for dtype in ("bf16", *BLOCKS):
        kind = GGMLQuantizationType[dtype.upper()]
        writer.add_tensor(dtype, quantize(WEIGHTS, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "file"


def test_the_package_s_files_are_read(package_file: Path) -> None:
    with open_checkpoint(package_file) as checkpoint:
        assert checkpoint.format == "gguf"
        assert checkpoint.metadata == {"general.architecture": "masklet", "note": "é \n"}
        np.testing.assert_array_equal(checkpoint.array("f32"), WEIGHTS)
        np.testing.assert_array_equal(checkpoint.array("f16"), WEIGHTS.astype(np.float16)[:, :3])
        assert checkpoint.array("4d")[1, 0].tolist() == np.arange(12, 24).reshape(3, 4).tolist()
        for dtype in ("bf16", *BLOCKS):
            kind = GGMLQuantizationType[dtype.upper()]
            rows = quantize(WEIGHTS, kind)
            info, read = checkpoint.tensors[dtype], checkpoint.array(dtype)
            assert (info.dtype, info.shape, info.nbytes) == (dtype, WEIGHTS.shape, rows.nbytes)
            assert read.tobytes() == dequantize(rows, kind).tobytes()
            assert not read.flags.writeable
            assert checkpoint.raw(dtype).tobytes() == rows.tobytes()
        assert checkpoint.raw("q4_1").shape == (6, 2, 20)
        assert not checkpoint.raw("q4_1").flags.writeable
        assert checkpoint.verify() is False


def test_the_bytes_of_the_format(opened: Callable[..., Checkpoint]) -> None:
    data = np.arange(6, dtype=np.float32).tobytes() + bytes(8) + np.array([7, 8], np.float32).tobytes()
    tensors = [("w", (3, 2), 0, 0), ("b", (2,), 0, 32)]
    for version in (2, 3):
        checkpoint = opened(tensors=tensors, data=data, version=version)
        assert checkpoint.array("w").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert checkpoint.array("b").tolist() == [7, 8]
    assert opened(tensors=tensors, data=data + bytes(24)).array("b").tolist() == [7, 8]  # padded at the end
    scalar = opened(tensors=[("s", (), 0, 0)], data=np.float32(5).tobytes())
    assert scalar.array("s").tolist() == 5
    assert opened(tensors=[], data=b"").tensors == {}
    wide = [ARCHITECTURE, ("general.alignment", 4, 256)]
    tensors = [("w", (3, 2), 0, 0), ("b", (2,), 0, 256)]
    data = data[:24] + bytes(232) + data[32:]
    assert opened(wide, tensors, data, alignment=256).array("b").tolist() == [7, 8]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            [("general.architecture", 8, "llama")],
            r"another architecture \('llama'\); masklet reads 'masklet'",
        ),
        ([("general.name", 8, "masklet")], r"another architecture \(without one\)"),
        ([("general.architecture", 4, 7)], r"another architecture \(without one\)"),
        ([], r"another architecture \(without one\)"),
        # The rest of such a file is not looked at.
        ([("general.architecture", 8, "llama"), ("broken", 77, b"")], "another architecture"),
    ],
)
def test_other_architectures(opened: Callable[..., Checkpoint], fields: Any, message: str) -> None:
    with pytest.raises(UnknownFormatError, match=message):
        opened(fields)


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1, "of version 1; masklet reads versions 2 and 3"),
        (4, "of version 4;"),
        (0, "of version 0;"),
        (3 << 24, "or of big-endian numbers"),
    ],
)
def test_other_versions(opened: Callable[..., Checkpoint], version: int, message: str) -> None:
    with pytest.raises(UnknownFormatError, match=message):
        opened(version=version)


@pytest.mark.parametrize(
    ("kind", "name"), [(12, "q4_k"), (24, "i8"), (28, "f64"), (1 << 30, "number 1073741824")]
)
def test_other_types(opened: Callable[..., Checkpoint], kind: int, name: str) -> None:
    with pytest.raises(
        UnknownFormatError, match=f"'w' is stored as ggml's type {name}; masklet reads f32, f16"
    ):
        opened(tensors=[("w", (32,), kind, 0)])


HUGE = 1 << 62


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"counts": (1 << 63, 1)}, "claims 9,223,372,036,854,775,808 tensors"),
        ({"counts": (1, 1 << 63)}, "claims 9,223,372,036,854,775,808 fields"),
        ({"counts": (2, 1)}, "at byte"),
        ({"fields": [ARCHITECTURE, ARCHITECTURE]}, "states 'general.architecture' twice"),
        ({"fields": [ARCHITECTURE, ("x", 13, b"")]}, "'x' has a value of the type 13"),
        ({"fields": [ARCHITECTURE, ("x", 9, struct.pack("<IQ", 9, 1))]}, "'x' has a value of the type 9"),
        ({"fields": [ARCHITECTURE, ("x", 9, struct.pack("<IQ", 4, HUGE))]}, "it announces"),
        ({"fields": [ARCHITECTURE, ("x", 9, struct.pack("<IQ", 8, HUGE))]}, "texts; at most 1,000,000"),
        ({"fields": [ARCHITECTURE, ("x", 9, struct.pack("<IQQ", 8, 1, HUGE))]}, "it announces"),
        ({"fields": [ARCHITECTURE, ("x" * 600, 4, 1)]}, "a text of 600 bytes; at most 512"),
        ({"fields": [ARCHITECTURE, ("general.alignment", 4, 0)]}, "is no power of two"),
        ({"fields": [ARCHITECTURE, ("general.alignment", 4, 48)]}, "is no power of two"),
        ({"fields": [ARCHITECTURE, ("general.alignment", 4, 1 << 31)]}, "is no power of two"),
        ({"fields": [ARCHITECTURE, ("general.alignment", 5, 32)]}, "is no power of two"),
        ({"tensors": [("w", (3, 2), 0, 0), ("w", (3, 2), 0, 32)], "data": bytes(56)}, "tensor 'w' twice"),
        ({"tensors": [("w", (1,) * 5, 0, 0)]}, "'w' claims 5 dimensions; at most 4"),
        ({"tensors": [("w", (1 << 40, 1 << 40), 0, 0)]}, "more elements than any file"),
        ({"tensors": [("w", (0, 1 << 62), 0, 0)]}, "more elements than any file"),
        ({"tensors": [("w", (48,), 8, 0)]}, r"'w' has the shape \(48,\), whose rows cannot be blocks of 32"),
        ({"tensors": [("w", (7,), 0, 0)]}, "at byte .* announces 28 more"),
        ({"tensors": [("w", (5,), 0, 0)]}, None),  # 4 bytes of padding
        ({"tensors": [("w", (6,), 0, 4)]}, "begin at byte"),
        ({"tensors": [("w", (6,), 0, HUGE)]}, "begin at byte"),
        ({"tensors": [("a", (2,), 0, 32), ("w", (2,), 0, 0)], "data": bytes(40)}, "'a' is said to begin"),
        ({"tensors": [("a", (2,), 0, 0), ("w", (2,), 0, 64)], "data": bytes(72)}, "'w' is said to begin"),
        ({"tensors": [("a", (2,), 0, 0), ("w", (2,), 0, 0)], "data": bytes(40)}, "'w' is said to begin"),
        ({"data": bytes(40)}, "8 bytes follow its last tensor"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_headers_that_are_not_valid(
    opened: Callable[..., Checkpoint], settings: dict[str, Any], message: str | None
) -> None:
    if message is None:
        assert opened(**settings).tensors
        return
    with pytest.raises(CorruptFileError, match=message):
        opened(**settings)


def test_texts_of_all_arrays_count(
    opened: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is passed over in turn: what one array may not have, many may not have together."""
    monkeypatch.setattr("masklet.io.gguf._MAX_TEXTS", 10)
    arrays = [(f"x{index}", 9, struct.pack("<IQ", 8, 4) + bytes(32)) for index in range(3)]
    assert opened([ARCHITECTURE, *arrays[:2]]).tensors
    with pytest.raises(CorruptFileError, match="'x2' claims 4 texts; at most 10 are allowed in a header"):
        opened([ARCHITECTURE, *arrays])


def test_a_name_that_is_no_text(write: Callable[..., Path]) -> None:
    with pytest.raises(CorruptFileError, match="is not UTF-8"):
        open_checkpoint(write(gguf().replace(b"\x01" + bytes(7) + b"w", b"\x01" + bytes(7) + b"\xff")))


def test_every_truncation_is_an_error_of_ours(package_file: Path, write: Callable[..., Path]) -> None:
    content = package_file.read_bytes()
    end = len(content) - 12  # padding that may be missing
    for length in [*range(4, 800, 3), *range(800, end, 37)]:
        with pytest.raises((CorruptFileError, UnknownFormatError)):
            open_checkpoint(write(content[:length]))
