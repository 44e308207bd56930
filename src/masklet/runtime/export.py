"""A stage as an ONNX file that stands alone: standard operators, its weights inside.

In: a `Stage` of the portable or plain dialect, a source of checkpoint tensors. Out: the file in pieces, and
what goes in and out of it. Knows nothing about what the numbers mean. Imports onnx when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from masklet.errors import EngineError
from masklet.runtime.graph import Stage, WeightSource
from masklet.runtime.session import resolve

if TYPE_CHECKING:
    from onnx import ValueInfoProto

FILE_LIMIT = 2**31 - 1  # bytes that a protobuf message may have

# Field numbers of onnx.proto, which are fixed for good.
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9


@dataclass(frozen=True)
class Port:
    """One input or output. `shape` has numbers, and names for sizes that may differ from call to call."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def standalone(
    stage: Stage, tensor: Callable[[str], np.ndarray], properties: Mapping[str, str]
) -> Iterator[bytes | memoryview]:
    """The bytes of a stage's file with its weights inside; `properties` become the file's metadata.

    Weights go through one by one: memory for the largest is enough, where building and serialising the whole
    message takes three times the file. Raises EngineError for a stage with operators of one engine, and for
    more than 2 GiB, the most that one ONNX file holds.
    """
    from onnx import ModelProto, helper

    model = ModelProto.FromString(stage.onnx)
    if any(imported.domain not in ("", "ai.onnx") for imported in model.opset_import):
        raise EngineError(
            f"Stage {stage.name!r} uses operators beyond the ONNX standard; export its portable dialect."
        )
    bound = {weight.name for weight in stage.weights}
    constants = [value for value in model.graph.initializer if value.name not in bound]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    helper.set_model_props(model, dict(properties))

    heads = [_tensor_head(weight) for weight in stage.weights]
    graph = model.graph.SerializeToString()
    model.ClearField("graph")
    size = len(graph) + sum(len(head) + _nbytes(w) for head, w in zip(heads, stage.weights, strict=True))
    if size > FILE_LIMIT:
        raise EngineError(
            f"Stage {stage.name!r} takes {size} bytes with its weights; an ONNX file holds {FILE_LIMIT}."
        )
    yield model.SerializeToString() + _field(_MODEL_GRAPH, size) + graph
    for head, weight in zip(heads, stage.weights, strict=True):
        yield head
        yield np.ascontiguousarray(resolve(weight, tensor), "<f4").reshape(-1).view(np.uint8).data


def ports(stage: Stage) -> tuple[tuple[Port, ...], tuple[Port, ...]]:
    """What goes in and out of a stage."""
    from onnx import ModelProto

    graph = ModelProto.FromString(stage.onnx).graph
    return tuple(_ports(graph.input)), tuple(_ports(graph.output))


def _ports(values: Iterable[ValueInfoProto]) -> Iterator[Port]:
    from onnx import helper

    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
        yield Port(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)


def _tensor_head(weight: WeightSource) -> bytes:
    """Everything of a graph's initializer up to its numbers."""
    from onnx import TensorProto

    tensor = TensorProto(name=weight.name, data_type=TensorProto.FLOAT, dims=weight.shape).SerializeToString()
    tensor += _field(_TENSOR_RAW_DATA, _nbytes(weight))
    return _field(_GRAPH_INITIALIZER, len(tensor) + _nbytes(weight)) + tensor


def _nbytes(weight: WeightSource) -> int:
    return 4 * math.prod(weight.shape)


def _field(number: int, size: int) -> bytes:
    """The start of a protobuf field that holds `size` bytes: its key and the size as a varint."""
    encoded = bytearray([number << 3 | 2])
    while size > 0x7F:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*encoded, size])
