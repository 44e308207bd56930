from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from masklet.errors import CheckpointError, CorruptFileError, UnknownFormatError
from masklet.io.checkpoints import Checkpoint, open_checkpoint

WEIGHTS = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
W = ((2, 3), 0, np.arange(6, dtype=np.float32).tobytes())
HEADER_BYTES = 16 + 4 * 57


@pytest.fixture
def opened(write: Callable[..., Path], ggml_file: Callable[..., bytes]) -> Callable[..., Checkpoint]:
    return lambda *arguments, **settings: open_checkpoint(write(ggml_file(*arguments, **settings)))


@pytest.mark.parametrize("trunk", [1, 2])
def test_every_stored_type(opened: Callable[..., Checkpoint], trunk: int) -> None:
    tensors: dict[str, Any] = {
        "f32": ((6, 64), 0, WEIGHTS.tobytes()),
        "f16": ((3, 64, 2), 1, WEIGHTS.astype(np.float16).tobytes()),
    }
    for dtype in ("q8_0", "q4_1", "q4_0"):
        kind = GGMLQuantizationType[dtype.upper()]
        tensors[dtype] = ((6, 64), int(kind), quantize(WEIGHTS, kind).tobytes())
    checkpoint = opened(tensors, trunk=trunk)
    assert checkpoint.format == "ggml"
    assert checkpoint.metadata == {}
    np.testing.assert_array_equal(checkpoint.array("f32"), WEIGHTS)
    np.testing.assert_array_equal(checkpoint.array("f16").ravel(), WEIGHTS.astype(np.float16).ravel())
    assert checkpoint.tensors["f16"].shape == (3, 64, 2)
    for dtype in ("q8_0", "q4_1", "q4_0"):
        kind = GGMLQuantizationType[dtype.upper()]
        assert checkpoint.tensors[dtype].dtype == dtype
        assert checkpoint.array(dtype).tobytes() == dequantize(quantize(WEIGHTS, kind), kind).tobytes()
    assert all(info.offset % 32 == 0 for info in checkpoint.tensors.values())


def test_no_tensors(opened: Callable[..., Checkpoint]) -> None:
    assert opened({}).tensors == {}
    assert opened({"s": ((), 0, bytes(4))}).array("s").shape == ()


@pytest.mark.parametrize(
    ("tensors", "settings", "message"),
    [
        ({}, {"version": 3}, "of version 3; masklet reads version 1"),
        ({}, {"trunk": 0}, "trunk is of the kind 0; masklet reads 1"),
        ({"w": ((2, 3), 30, bytes(12))}, {}, "ggml's type bf16; masklet reads f32, f16, q8_0"),
        ({"w": ((2, 3), -7, bytes(12))}, {}, "ggml's type number -7"),
    ],
)
def test_what_is_not_known(
    opened: Callable[..., Checkpoint], tensors: Any, settings: Any, message: str
) -> None:
    with pytest.raises(UnknownFormatError, match=message):
        opened(tensors, **settings)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"w": ((2, 4), *W[1:])}, "at byte .* announces 32 more"),
        ({"w": ((1, 3), *W[1:])}, "12 bytes follow its last tensor"),
        ({"w": ((0, 3), 0, b"")}, r"'w' has the shape \(0, 3\); all sides must be 1 or more"),
        ({"w": ((2, -3), *W[1:])}, "all sides must be 1 or more"),
        ({"w": ((1,) * 5, *W[1:])}, "claims 5 dimensions; at most 4"),
        ({"w": ((1 << 30,) * 4, *W[1:])}, "more elements than any file"),
        ({"w": ((2, 3), 8, bytes(24))}, "rows cannot be blocks of 32"),
        ({"w" * 600: W}, "a text of 600 bytes; at most 512"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_tensors_that_are_not_valid(opened: Callable[..., Checkpoint], tensors: Any, message: str) -> None:
    with pytest.raises(CorruptFileError, match=message):
        opened(tensors)


def test_numbers_that_are_not_possible(write: Callable[..., Path], ggml_file: Callable[..., bytes]) -> None:
    content = ggml_file({"w": W})
    for at, number, message in (
        (12, -1, "claims -1 tensors"),
        (12, 1 << 30, "claims 1,073,741,824 tensors"),
        (12, 2, "at byte"),
        (HEADER_BYTES, -1, "claims -1 dimensions"),
        (HEADER_BYTES + 4, -1, "a text of -1 bytes"),
    ):
        changed = content[:at] + struct.pack("<i", number) + content[at + 4 :]
        with pytest.raises(CorruptFileError, match=message):
            open_checkpoint(write(changed))


def test_a_tensor_stated_twice(write: Callable[..., Path], ggml_file: Callable[..., bytes]) -> None:
    content = ggml_file({"a": W, "b": W})
    with pytest.raises(CorruptFileError, match="states the tensor 'a' twice"):
        open_checkpoint(write(content.replace(b"b" + bytes(7), b"a" + bytes(7))))


def test_every_truncation_is_an_error_of_ours(
    write: Callable[..., Path], ggml_file: Callable[..., bytes]
) -> None:
    content = ggml_file({"w": W, "b": ((3,), 0, bytes(12))})
    for length in range(4, len(content)):
        with pytest.raises(CheckpointError):
            open_checkpoint(write(content[:length]))
