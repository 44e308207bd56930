"""Blocks of integers against the gguf package, bit for bit."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

from masklet.errors import CorruptFileError, UnknownFormatError
from masklet.io.ggml_types import GGML_TYPES, dequantised, ggml_dtype
from masklet.io.tensor_table import BLOCKS, stored_shape, tensor_nbytes


def blocks_of(rows: np.ndarray, dtype: str) -> np.ndarray:
    return rows.reshape(len(rows), -1, BLOCKS[dtype].nbytes)


@pytest.mark.parametrize("dtype", BLOCKS)
def test_weights_come_back_as_from_the_package(dtype: str) -> None:
    kind = GGMLQuantizationType[dtype.upper()]
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((48, 96)).astype(np.float32) * 10.0 ** rng.integers(-4, 4, (48, 1))
    weights = weights.astype(np.float32)
    weights[0], weights[1] = 0, 1  # blocks without a scale
    rows = quantize(weights, kind)
    found = dequantised(dtype, blocks_of(rows, dtype))
    assert found.dtype == np.float32
    assert found.tobytes() == dequantize(rows, kind).tobytes()
    assert np.abs(found - weights)[2:].max() < 0.2 * np.abs(weights).max()


@pytest.mark.parametrize("dtype", BLOCKS)
def test_any_bytes_mean_what_they_mean_to_the_package(dtype: str) -> None:
    """Infinite and missing numbers in the scales too, without a warning."""
    rows = np.random.default_rng(1).integers(0, 256, (4096, 2 * BLOCKS[dtype].nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = dequantize(rows, GGMLQuantizationType[dtype.upper()])
    np.testing.assert_array_equal(dequantised(dtype, blocks_of(rows, dtype)), expected)
    assert np.isnan(expected).any()


def test_where_the_codes_of_a_block_lie() -> None:
    """From the format: scale 2, codes by place; the high halves of bytes are the second sixteen."""
    scale, minimum = np.float16(2).tobytes(), np.float16(-5).tobytes()
    halves = bytes(low | (15 - low) << 4 for low in range(16))
    codes = np.array([*range(16), *range(15, -1, -1)], np.float32)
    stored = np.frombuffer(scale + halves, np.uint8).reshape(1, 1, -1)
    assert dequantised("q4_0", stored).tolist() == [(2 * (codes - 8)).tolist()]
    stored = np.frombuffer(scale + minimum + halves, np.uint8).reshape(1, 1, -1)
    assert dequantised("q4_1", stored).tolist() == [(2 * codes - 5).tolist()]
    signed = np.arange(-16, 16, dtype=np.int8)
    stored = np.frombuffer(scale + signed.tobytes(), np.uint8).reshape(1, 1, -1)
    assert dequantised("q8_0", stored).tolist() == [(2.0 * signed).tolist()]


@pytest.mark.parametrize("dtype", BLOCKS)
def test_dequantising_takes_little_beside_the_weights(dtype: str) -> None:
    stored = np.zeros((256, 64, BLOCKS[dtype].nbytes), np.uint8)
    tracemalloc.start()
    try:
        nbytes = dequantised(dtype, stored).nbytes
        assert tracemalloc.get_traced_memory()[1] < 1.5 * nbytes
    finally:
        tracemalloc.stop()


def test_numbers_and_sizes_are_those_of_ggml() -> None:
    theirs = {kind.value: kind.name.lower() for kind in GGMLQuantizationType}
    assert {**GGML_TYPES, **theirs}.items() >= GGML_TYPES.items()
    assert set(theirs.values()) >= {"f32", "f16", "bf16", *BLOCKS}
    for dtype, block in BLOCKS.items():
        assert GGML_QUANT_SIZES[GGMLQuantizationType[dtype.upper()]] == block


def test_shapes_of_what_is_stored() -> None:
    assert stored_shape("w", "f32", (2, 3)) == (2, 3)
    assert stored_shape("w", "q4_1", (5, 2, 96)) == (5, 2, 3, 20)
    assert tensor_nbytes("w", "q8_0", (5, 64)) == 5 * 2 * 34
    assert dequantised("q8_0", np.zeros((0, 2, 34), np.uint8)).shape == (0, 64)
    for shape in ((), (33,), (2, 3, 31)):
        with pytest.raises(CorruptFileError, match="rows cannot be blocks of 32"):
            tensor_nbytes("w", "q8_0", shape)


@pytest.mark.parametrize(("number", "name"), [(12, "q4_k"), (99, "number 99"), (-1, "number -1")])
def test_other_types_are_named(number: int, name: str) -> None:
    with pytest.raises(
        UnknownFormatError, match=f"'w' is stored as ggml's type {name}; masklet reads f32, q8_0"
    ):
        ggml_dtype("w", number, ("f32", "q8_0"))
