"""A model file with its weights in fewer bits.

In: a checkpoint of any known format and a type. Out: a GGUF or safetensors file, and a `Report` of what each
tensor became and how far its values moved. Knows nothing about how weights are computed with.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masklet.errors import CorruptFileError, InputError, OutputError, UnknownFormatError
from masklet.families import table
from masklet.families.family import CONFIG_KEY
from masklet.families.keymaps import Tensors, canonical
from masklet.io.checkpoints import open_checkpoint
from masklet.io.ggml_types import dequantised
from masklet.io.safetensors import write_safetensors
from masklet.io.tensor_table import BLOCKS, quoted, stored_shape, tensor_nbytes
from masklet.quant.exact import Choice, choose
from masklet.quant.gguf_file import Line, write_gguf
from masklet.quant.smooth import CALIBRATED_KEY, Smoothing

SOURCE_KEY = "masklet.source_sha256"  # metadata: which file a file was made of
_F16_MAX = float(np.finfo(np.float16).max)
_HASH_BYTES = 1 << 24

OnTensor = Callable[[int, int], None]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of the new file. `error` is the root mean square of what its values moved by, relative to
    that of the values; `largest` the farthest that one moved."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    reason: str  # why it is not of the type that was asked for
    error: float
    largest: float


@dataclass(frozen=True)
class Report:
    """What became of a file."""

    source_bytes: int
    target_bytes: int
    tensors: tuple[StoredTensor, ...]
    left_out: tuple[str, ...]  # tensors that no network reads

    def worst(self, count: int = 10) -> list[StoredTensor]:
        """The tensors with the largest errors."""
        return sorted(self.tensors, key=lambda tensor: -tensor.error)[:count]


def quantize(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    dtype: str,
    *,
    keep: Sequence[str] = (),
    smoothing: Smoothing | None = None,
    on_tensor: OnTensor | None = None,
) -> Report:
    """Write the model of the file `source` to `target` (.gguf, or .safetensors for f16 and bf16), its
    matrices as `dtype` (see `exact.TYPES`), but for those of `exact.EXACT` and those that `keep` fits;
    `smoothing` (see `pipeline.calibrate`) makes it lose less in int8.

    The same input gives the same bytes. `on_tensor` is called with the tensors done and in all. Raises
    `InputError` for arguments that cannot be meant, `OutputError` where the disk refuses, and what
    `open_checkpoint` raises.
    """
    source, target = Path(source), Path(target)
    check_target(source, target, dtype)
    with open_checkpoint(source) as checkpoint:
        tensors = _Weights(canonical(checkpoint), smoothing)
        try:
            config = table.recognise(tensors.shapes, checkpoint.metadata)
        except UnknownFormatError as error:
            raise UnknownFormatError(f"{source}: {error}") from error
        unused = tuple(table.family_of(config).unused_tensors)
        shapes = {key: shape for key, shape in sorted(tensors.shapes.items()) if not key.endswith(unused)}
        choices = choose(shapes, dtype, keep)
        for key in shapes:
            choices[key] = _in_range(tensors, key, choices[key], source)
        metadata = {CONFIG_KEY: config.to_json(), SOURCE_KEY: _sha256(source)}
        if smoothing is not None:
            metadata[CALIBRATED_KEY] = smoothing.to_json()
        elif CALIBRATED_KEY in checkpoint.metadata:
            metadata[CALIBRATED_KEY] = checkpoint.metadata[CALIBRATED_KEY]
        job = _Job(tensors, choices, on_tensor)
        if target.suffix == ".gguf":
            write_gguf(target, job.lines, job.arrays(), mostly=dtype, metadata=metadata)
        else:
            write_safetensors(target, dict(zip(choices, job.arrays(), strict=True)), metadata)
        left_out = tuple(sorted(tensors.shapes.keys() - shapes.keys()))
        return Report(source.stat().st_size, target.stat().st_size, tuple(job.done), left_out)


class _Weights:
    """A checkpoint's tensors, smoothed."""

    def __init__(self, tensors: Tensors, smoothing: Smoothing | None) -> None:
        self.shapes, self.release_pages = tensors.shapes, tensors.release_pages
        self._tensors, self._smoothing = tensors, smoothing

    def array(self, key: str) -> np.ndarray:
        values = self._tensors.array(key)
        return values if self._smoothing is None else self._smoothing.of(key, values)


class _Job:
    """The stored tensors, made one after the other, and what is said of each that was."""

    def __init__(self, tensors: _Weights, choices: Mapping[str, Choice], on_tensor: OnTensor | None) -> None:
        self.done: list[StoredTensor] = []
        self._tensors, self._choices, self._on_tensor = tensors, choices, on_tensor

    @property
    def lines(self) -> list[Line]:
        shapes = self._tensors.shapes
        return [
            Line(key, choice.dtype, shapes[key], tensor_nbytes(key, choice.dtype, shapes[key]))
            for key, choice in self._choices.items()
        ]

    def arrays(self) -> Iterator[np.ndarray]:
        for line, choice in zip(self.lines, self._choices.values(), strict=True):
            values = self._tensors.array(line.key)
            stored = _stored(values, line)
            error, largest = _errors(values, _restored(stored, line))
            yield stored
            self.done.append(
                StoredTensor(line.key, line.shape, line.dtype, line.nbytes, choice.reason, error, largest)
            )
            self._tensors.release_pages()
            if self._on_tensor is not None:
                self._on_tensor(len(self.done), len(self._choices))


def _stored(values: np.ndarray, line: Line) -> np.ndarray:
    """Float32 values as a file has them."""
    if line.dtype in BLOCKS:
        from gguf import GGMLQuantizationType
        from gguf.quants import quantize as to_blocks

        with np.errstate(all="ignore"):  # values too small for a scale: they become zero
            blocks = to_blocks(np.ascontiguousarray(values), GGMLQuantizationType[line.dtype.upper()])
        return blocks.reshape(stored_shape(*line[:3]))
    if line.dtype == "bf16":
        from ml_dtypes import bfloat16

        return values.astype(bfloat16)
    return values.astype({"f32": np.float32, "f16": np.float16}[line.dtype])


def _restored(stored: np.ndarray, line: Line) -> np.ndarray:
    """What will be read of a stored tensor."""
    return dequantised(line.dtype, stored) if line.dtype in BLOCKS else stored.astype(np.float32)


def _errors(values: np.ndarray, restored: np.ndarray) -> tuple[float, float]:
    """The relative root mean square and the largest of the differences; 0 for none."""
    moved = values - restored
    largest = _largest(moved)
    return (_norm(moved) / _norm(values) if largest else 0.0), largest


def _norm(values: np.ndarray) -> float:
    return float(np.sqrt(np.sum(np.square(values, dtype=np.float64))))


def _largest(values: np.ndarray) -> float:
    """The largest absolute value; 0 of none, not a number where one is not."""
    return float(max(values.max(initial=0.0), -values.min(initial=0.0)))


def check_target(source: Path, target: Path, dtype: str) -> None:
    """Find out before the work what would fail after it. Raises `InputError` or `OutputError`."""
    if target.suffix not in (".gguf", ".safetensors"):
        raise InputError(f"cannot write {str(target)!r}: give a name that ends in .gguf or .safetensors")
    if target.suffix == ".safetensors" and dtype in BLOCKS:
        raise InputError(
            f"a safetensors file cannot hold {dtype}; give {str(target.with_suffix('.gguf'))!r} as the output"
        )
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"{str(target)!r} is the input itself; give another name for the output")
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {str(target)!r}: the folder {str(target.parent)!r} does not exist; create it first"
        )


def _in_range(tensors: _Weights, key: str, choice: Choice, source: Path) -> Choice:
    """The choice, or f32 where values are beyond what it can hold. `CorruptFileError` for values that are not
    finite."""
    largest = _largest(tensors.array(key))
    if not np.isfinite(largest):
        raise CorruptFileError(
            f"{source}: tensor {quoted(key)} has values that are not finite; the file is damaged, or its"
            " training went wrong"
        )
    if largest > _F16_MAX and choice.dtype not in ("f32", "bf16"):  # scales of blocks are f16, too
        return Choice("f32", f"values up to {largest:.3g}, beyond those of f16")
    return choice


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
