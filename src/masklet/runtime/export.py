"""A stage as an ONNX file that stands alone: standard operators, its weights inside.

In: a `Stage` of the portable or plain dialect, a source of checkpoint tensors. Out: the file's bytes, and
what goes in and out of it. Knows nothing about what the numbers mean. Imports onnx when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from masklet.errors import EngineError
from masklet.runtime.graph import Stage
from masklet.runtime.session import resolve

if TYPE_CHECKING:
    import numpy as np
    from onnx import ValueInfoProto

FILE_LIMIT = 2**31 - 1  # bytes that a protobuf message may have


@dataclass(frozen=True)
class Port:
    """One input or output. `shape` has numbers, and names for sizes that may differ from call to call."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, eq=False)
class StandaloneStage:
    """A stage's ONNX file and what goes in and out of it."""

    onnx: bytes
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def standalone(
    stage: Stage, tensor: Callable[[str], np.ndarray], properties: Mapping[str, str]
) -> StandaloneStage:
    """Put a stage's weights into its graph; `properties` become the file's metadata.

    Raises EngineError when that makes more than 2 GiB, the most that one ONNX file holds.
    """
    from onnx import ModelProto, helper, numpy_helper

    model = ModelProto.FromString(stage.onnx)
    if any(imported.domain not in ("", "ai.onnx") for imported in model.opset_import):
        raise EngineError(
            f"Stage {stage.name!r} uses operators beyond the ONNX standard; export its portable dialect."
        )
    size = len(stage.onnx) + 4 * sum(math.prod(weight.shape) for weight in stage.weights)
    if size > FILE_LIMIT:
        raise EngineError(
            f"Stage {stage.name!r} takes {size} bytes with its weights; an ONNX file holds {FILE_LIMIT}."
        )
    sources = {weight.name: weight for weight in stage.weights}
    for initializer in model.graph.initializer:
        if initializer.name in sources:
            array = resolve(sources[initializer.name], tensor)
            initializer.CopyFrom(numpy_helper.from_array(array, initializer.name))
    helper.set_model_props(model, dict(properties))
    return StandaloneStage(
        onnx=model.SerializeToString(),
        inputs=tuple(_ports(model.graph.input)),
        outputs=tuple(_ports(model.graph.output)),
    )


def _ports(values: Iterable[ValueInfoProto]) -> Iterable[Port]:
    from onnx import helper

    for value in values:
        tensor = value.type.tensor_type
        shape = tuple(size.dim_param or size.dim_value for size in tensor.shape.dim)
        yield Port(value.name, helper.tensor_dtype_to_np_dtype(tensor.elem_type).name, shape)
