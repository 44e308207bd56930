"""A stage reduced to some of its outputs: what only the others need is neither computed nor loaded.

In: a `Stage` and names of its outputs. Out: a `Stage` with these outputs, the nodes that lead to them and the
weights that those read. Imports onnx and onnx_ir when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from masklet.runtime.graph import Stage


def prune(stage: Stage, outputs: Sequence[str]) -> Stage:
    """The same stage with these outputs only, in the order of the stage; its inputs stay all."""
    import onnx_ir as ir
    from onnx import ModelProto
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    model = ir.from_proto(ModelProto.FromString(stage.onnx))
    kept = tuple(name for name in stage.outputs if name in outputs)
    by_name = {value.name: value for value in model.graph.outputs}
    model.graph.outputs[:] = [by_name[name] for name in kept]
    RemoveUnusedNodesPass()(model)

    weights = tuple(weight for weight in stage.weights if weight.name in model.graph.initializers)
    used = {key for weight in weights for key in weight.keys}
    return replace(
        stage,
        onnx=ir.to_proto(model).SerializeToString(),
        outputs=kept,
        taps=tuple(name for name in stage.taps if name in kept),
        weights=weights,
        tensors={key: shape for key, shape in stage.tensors.items() if key in used},
    )
