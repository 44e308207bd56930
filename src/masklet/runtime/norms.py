"""Which norms of a stage feed linear layers and nothing else, and a stage that tells how large they get.

In: a `Stage` of the fused dialect in f32. Out: `NormedLinears`, read off the graph, so that no list of a
network's norms can be out of date; and a `Stage` whose outputs are the largest absolute value of each channel
behind norms. Knows nothing about pictures or about what the values are for. Imports onnx and onnx_ir when it
is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from masklet.quant.smooth import NormedLinears
from masklet.runtime.graph import Stage
from masklet.runtime.prune import prune

NORM, LINEAR = "LayerNormalization", "FusedMatMul"
PASSING = ("Gather", "Pad")  # choose tokens, or set zeros beside them: channels stay channels
TOKENS = (0, 1)  # the axes of (B, T, C) that are no channels


def normed_linears(stage: Stage) -> tuple[NormedLinears, ...]:
    """The norms whose channels can be scaled because linear layers undo it, in the order of the data.

    All that is made of the norm's tensors and of the layers' matrices must lie on the way, or something else
    would see the change.
    """
    graph = _model(stage).graph
    readers: dict[str, set[Any]] = {}  # of each tensor of the checkpoint
    for weight in stage.weights:
        for key in weight.keys:
            readers.setdefault(key, set()).update(use.node for use in graph.initializers[weight.name].uses())

    keys = {weight.name: weight.keys for weight in stage.weights}
    found = []
    for norm, nodes in _norms(graph).items():
        ways = [_linears(node.outputs[0]) for node in nodes]
        if not all(ways):
            continue
        layers = {layer for way in ways for layer in way or ()}
        matrices = sorted({key for layer in layers for key in keys[layer.inputs[1].name]})
        changed = (f"{norm}.weight", f"{norm}.bias", *matrices)
        if all(readers[key] <= layers.union(nodes) for key in changed):
            found.append(NormedLinears(norm, tuple(matrices)))
    return tuple(found)


def watched(stage: Stage, norms: Iterable[str]) -> Stage:
    """The stage with one output for each norm, under its name: the largest absolute value of each channel
    (C). Nothing else is computed.

    ONNX Runtime first runs what leads to the last node of a graph, so the first norm's comes last: what is
    behind a norm is then freed before the next one runs (SAM 2.1 tiny: 576 MiB peak instead of 715).
    """
    import numpy as np
    import onnx_ir as ir

    model, wanted = _model(stage), tuple(norms)
    axes = ir.Value(name="tokens", const_value=ir.tensor(np.array(TOKENS)))
    model.graph.initializers["tokens"] = axes
    for norm, nodes in reversed(_norms(model.graph).items()):
        if norm not in wanted:
            continue
        parts = []
        for node in nodes:
            size = ir.Node("", "Abs", [node.outputs[0]])
            part = ir.Node("", "ReduceMax", [size.outputs[0], axes], [ir.AttrInt64("keepdims", 0)])
            model.graph.insert_after(node, [size, part])
            parts.append(part.outputs[0])
        whole = ir.Node("", "Max", parts)
        model.graph.append(whole)
        whole.outputs[0].name = norm
        whole.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
        model.graph.outputs.append(whole.outputs[0])
    extended = replace(stage, onnx=ir.to_proto(model).SerializeToString(), outputs=(*stage.outputs, *wanted))
    return prune(extended, wanted)


def _model(stage: Stage) -> Any:
    import onnx_ir as ir
    from onnx import ModelProto

    return ir.from_proto(ModelProto.FromString(stage.onnx))


def _norms(graph: Any) -> dict[str, list[Any]]:
    """The nodes of each norm by the prefix of its keys: several where a stage computes in pieces."""
    found: dict[str, list[Any]] = {}
    for node in graph:
        if node.op_type == NORM:
            found.setdefault(node.inputs[1].name.removesuffix(".weight"), []).append(node)
    return found


def _linears(value: Any) -> set[Any] | None:
    """The nodes of the linear layers that a value goes to; None where it goes anywhere else."""
    if value.is_graph_output():
        return None
    found: set[Any] = set()
    for node, place in value.uses():
        if node.op_type in PASSING and place == 0:
            way = _linears(node.outputs[0])
            if way is None:
                return None
            found |= way
        elif node.op_type == LINEAR and place == 0 and node.inputs[1].is_initializer():
            found.add(node)
        else:
            return None
    return found
