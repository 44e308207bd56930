"""Writes one stage of a network as an ONNX graph without weights.

In: a family's configuration, a stage's name, an input size, a dialect. Out: a `Stage`: the serialised graph
and, for every weight in it, where it comes from. Importing this module is light; writing a graph imports
onnxscript.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from masklet.errors import EngineError
from masklet.families.family import Config
from masklet.families.table import family_of
from masklet.model.precision import EXACT
from masklet.runtime.devices import small_cache

OPSET = 20
IR_VERSION = 10
HALVED = 4096  # numbers that a weight must have to be kept in 16 bits


@dataclass(frozen=True)
class WeightSource:
    """Where an initializer's numbers come from: checkpoint tensors `keys`, through a recipe or (None) as they
    are.
    """

    name: str
    shape: tuple[int, ...]
    keys: tuple[str, ...]
    recipe: str | None
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Stage:
    """A compiled stage. `tensors` are the checkpoint tensors that it reads, with their shapes."""

    name: str
    onnx: bytes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    taps: tuple[str, ...]
    weights: tuple[WeightSource, ...]
    tensors: Mapping[str, tuple[int, ...]]

    def manifest(self) -> str:
        """Everything but the graph as JSON; `from_manifest` reads it back."""
        values = asdict(self)
        del values["onnx"]
        return json.dumps(values, sort_keys=True)

    @classmethod
    def from_manifest(cls, text: str, onnx: bytes) -> Stage:
        """Inverse of `manifest`. Raises ValueError, KeyError or TypeError for anything else."""
        values = json.loads(text)
        weights = tuple(
            WeightSource(w["name"], tuple(w["shape"]), tuple(w["keys"]), w["recipe"], w["settings"])
            for w in values["weights"]
        )
        return cls(
            name=values["name"],
            onnx=onnx,
            inputs=tuple(values["inputs"]),
            outputs=tuple(values["outputs"]),
            taps=tuple(values["taps"]),
            weights=weights,
            tensors={key: tuple(shape) for key, shape in values["tensors"].items()},
        )


def write_stage(
    config: Config,
    name: str,
    image_size: int,
    dialect: str,
    precision: str = "f32",
    exact: Collection[str] = EXACT,
    by_rows: bool | None = None,
) -> Stage:
    """Record a stage; `dialect` is "fused", "portable" or "plain" (see `model.layers`), `precision` one of
    `model.precision`, where `exact` lists the layers that int8 leaves as they are. `by_rows` says how wide
    heads attend [what suits this machine, see `devices.small_cache`]."""
    import onnx_ir as ir
    from onnxscript import GraphBuilder

    from masklet.model.layers import Ops, static_shape

    graph = ir.Graph([], [], nodes=[], opset_imports={"": OPSET, "com.microsoft": 1}, name=name)
    assembly = family_of(config).network()
    network = assembly.NETWORK(config)
    parameters = dict(network.named_parameters())
    keys = {id(value): key for key, value in parameters.items()}
    rows = small_cache() if by_rows is None else by_rows
    op = Ops(GraphBuilder(graph), dialect, keys, precision == "int8", exact, rows)  # type: ignore[arg-type]
    outputs = {**assembly.STAGES[name](op, network, config, image_size), **op.taps}
    for output_name, value in outputs.items():
        value.name = output_name
        graph.outputs.append(value)

    weights = _declare_weights(graph, op.recipes, keys)
    if precision == "f16":
        weights = _halve(graph, weights)
    used = sorted(op.left_out.union(*(weight.keys for weight in weights)))
    for node in graph:
        node.metadata_props.clear()
    if dialect != "fused":
        del graph.opset_imports["com.microsoft"]
    model = ir.Model(graph, ir_version=IR_VERSION, producer_name="masklet")
    return Stage(
        name=name,
        onnx=ir.to_proto(model).SerializeToString(),
        inputs=tuple(value.name or "" for value in graph.inputs),
        outputs=tuple(outputs),
        taps=tuple(op.taps),
        weights=tuple(weights),
        tensors={key: static_shape(parameters[key]) for key in used},
    )


def _declare_weights(graph: Any, recipes: Mapping[str, Any], keys: Mapping[int, str]) -> list[WeightSource]:
    """Mark every initializer without numbers as external and say where its numbers come from."""
    weights = []
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[
                name
            ]  # a module registers all its parameters, also those used by recipe only
            continue
        if value.const_value is not None:
            continue
        shape = tuple(int(size) for size in value.shape)
        recipe = recipes.get(name)
        if recipe is None and keys.get(id(value)) != name:
            raise EngineError(
                f"The parameter {keys.get(id(value))!r} was recorded as {name!r}; this is a bug."
            )
        if recipe is None:
            weights.append(WeightSource(name, shape, (name,), None, {}))
        else:
            weights.append(WeightSource(name, shape, recipe.keys, recipe.name, recipe.settings))
        _make_external(value)
    return weights


def halvable(shape: Sequence[int]) -> bool:
    """True for what precision f16 keeps in 16 bits: matrices, kernels and tables, but for the smallest."""
    return len(shape) > 1 and math.prod(shape) >= HALVED


def _halve(graph: Any, weights: list[WeightSource]) -> list[WeightSource]:
    """Matrices, kernels and tables made of checkpoint tensors become 16-bit floats, widened where they are
    first used, so that one at a time is there in 32 bits."""
    import onnx_ir as ir

    order = {node: index for index, node in enumerate(graph)}
    halved = []
    for weight in weights:
        value = graph.initializers[weight.name]
        if not weight.keys or not halvable(weight.shape):
            halved.append(weight)
            continue
        recipe = {"of": weight.recipe or "same", "settings": dict(weight.settings)}
        name = f"half({weight.name})"
        half = ir.Value(name=name, shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT16))
        widen = ir.Node(
            "", "Cast", [half], [ir.AttrInt64("to", ir.DataType.FLOAT)], name=f"widen({weight.name})"
        )
        widen.outputs[0].name = f"wide({weight.name})"
        graph.insert_before(min((use.node for use in value.uses()), key=order.__getitem__), widen)
        ir.convenience.replace_all_uses_with(value, widen.outputs[0])
        del graph.initializers[weight.name]
        graph.initializers[name] = half
        _make_external(half)
        halved.append(WeightSource(name, weight.shape, weight.keys, "half", recipe))
    return halved


def _make_external(value: Any) -> None:
    """Say that an initializer's numbers come from elsewhere."""
    import onnx_ir as ir

    size = math.prod(value.shape) * value.dtype.itemsize
    value.const_value = ir.ExternalTensor(
        "weights", 0, int(size), value.dtype, shape=value.shape, name=value.name
    )
