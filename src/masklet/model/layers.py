"""The layers that every network shares, and the recorder that they write their ONNX operators to.

`Ops` is what a module's forward gets as `op`: every ONNX operator as a method, plus the few compound ones
whose
form depends on the dialect. The dialect is chosen here and in `attention`, nowhere else:
  fused     ONNX Runtime's own operators (domain com.microsoft), tokens in nested order, exact foldings
  portable  the standard operator set only, otherwise the same
  plain     the standard operator set, the reference's raster order, nothing folded; records named
  intermediates
Knows nothing about checkpoints, files or sessions.

Shape legend, here and in all modules: B images or prompts, T tokens, N points, C channels, M masks, H W grid.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from onnxscript import GraphBuilder, OpBuilder, nn
from onnxscript.nn import ModuleList, Parameter

from masklet.model import derive, precision
from masklet.model.tokens import TokenOrder, gather_index

Dialect = Literal["fused", "portable", "plain"]
LAYER_NORM_EPS = 1e-6  # of Hiera and LayerNorm2d; torch's default 1e-5 elsewhere


@dataclass(frozen=True)
class Recipe:
    """How an initializer comes from checkpoint tensors: `derive.compute(name, [keys...], settings)`."""

    name: str
    keys: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)


class Ops(OpBuilder):
    """Records one stage's graph. Attributes not defined here are ONNX operators: `op.MatMul(a, b)`."""

    def __init__(
        self,
        builder: GraphBuilder,
        dialect: Dialect,
        keys: dict[int, str],
        int8: bool = False,
        exact: Collection[str] = precision.EXACT,
        by_rows: bool = True,
    ) -> None:
        """`keys` maps id(parameter) to its checkpoint key. `int8` computes linear layers in 8 bits, but for
        those whose keys match a pattern of `exact`. `by_rows` is for `attention.attend_by_rows`."""
        super().__init__(builder, "", builder.graph.opset_imports[""])
        self.dialect: Dialect = dialect
        self.recipes: dict[str, Recipe] = {}
        self.left_out: set[str] = set()
        self.taps: dict[str, ir.Value] = {}
        self._keys = keys
        self.int8, self.by_rows, self._exact = int8, by_rows, exact
        self._origins: dict[int, tuple[str, tuple[Parameter, ...], dict[str, Any]]] = {}
        self._quantised: dict[int, tuple[ir.Value, ...]] = {}
        self._constants: dict[Any, ir.Value] = {}

    @property
    def fused(self) -> bool:
        """True when ONNX Runtime's own operators may be used."""
        return self.dialect == "fused"

    @property
    def folds(self) -> bool:
        """True when exact algebra may change the order of the reference's steps."""
        return self.dialect != "plain"

    def contrib(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """An operator of the com.microsoft domain with one output, which is declared float32."""
        value = getattr(self.builder.opset("com.microsoft", 1), op_type)(*inputs, **attributes)
        value.type = ir.TensorType(ir.DataType.FLOAT)
        return value

    def weight(self, recipe: str, *parameters: Parameter, **settings: Any) -> ir.Value:
        """An initializer that a recipe of `derive` makes from checkpoint tensors when weights are bound."""
        keys = tuple(self._keys[id(parameter)] for parameter in parameters)
        arguments = [*keys, *(f"{key}={value}" for key, value in settings.items())]
        name = f"{recipe}({', '.join(arguments)})"
        if name not in self.recipes:
            zeros = [np.zeros(static_shape(parameter), np.float32) for parameter in parameters]
            made = derive.compute(recipe, zeros, settings)
            self.recipes[name] = Recipe(recipe, keys, settings)
            dtype = ir.DataType.from_numpy(made.dtype)
            value = ir.Value(name=name, shape=ir.Shape(made.shape), type=ir.TensorType(dtype))
            self.builder.root.graph.initializers[name] = value
            self._origins[id(value)] = recipe, parameters, settings
        return self.builder.root.graph.initializers[name]

    def leave_out(self, parameter: Parameter) -> None:
        """Count a checkpoint tensor as read that exact algebra makes irrelevant."""
        self.left_out.add(self._keys[id(parameter)])

    def constant(self, array: np.ndarray | float) -> ir.Value:
        """A float32, int64 or int8 constant that lives in the graph."""
        array = np.asarray(array)
        if array.dtype != np.int8:
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            name = f"constant_{len(self._constants)}"
            self._constants[key] = self.builder.initializer(ir.tensor(array, name=name), name, qualify=False)
        return self._constants[key]

    def reshape(self, x: ir.Value, shape: Sequence[int]) -> ir.Value:
        """Reshape; 0 keeps a dimension, -1 infers one."""
        return self.Reshape(x, self.constant(np.array(shape)))

    def linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None = None) -> ir.Value:
        """x (..., in) times the transpose of a checkpoint matrix (out, in), plus a bias (out)."""
        if self._in_int8(weight):
            return self._int8_linear(x, weight, bias)
        if self.fused:
            x = self.contrib("FusedMatMul", x, weight, transB=1)
        else:
            x = self.MatMul(x, self.Transpose(weight, perm=[1, 0]))
        return x if bias is None else self.Add(x, bias)

    def _in_int8(self, weight: ir.Value) -> bool:
        """Whether a linear layer with this matrix is computed in 8 bits."""
        _, parameters, _ = self._origin(weight)
        keys = [self._keys[id(parameter)] for parameter in parameters]
        return self.int8 and not precision.kept_exact(keys, self._exact)

    def _int8_linear(self, x: ir.Value, weight: ir.Value, bias: ir.Value | None) -> ir.Value:
        """`linear` in 8 bits. Layers that look at the same x share its integers, whose scale is of all x."""
        recipe, parameters, settings = self._origin(weight)
        matrix, scale = (
            self.weight(part, *parameters, of=recipe, settings=settings)
            for part in ("int8_matrix", "int8_scale")
        )
        if id(x) not in self._quantised:
            self._quantised[id(x)] = self.DynamicQuantizeLinear(x, _outputs=3)
        integers, step, zero = self._quantised[id(x)]
        return self.contrib("MatMulIntegerToFloat", integers, matrix, step, scale, zero, None, bias)

    def _origin(self, weight: ir.Value) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
        """The recipe, parameters and settings of a weight."""
        return self._origins.get(id(weight), ("same", (weight,), {}))

    def matmul_t(self, x: ir.Value, y: ir.Value) -> ir.Value:
        """x (B, M, C) times the transpose of y (B, N, C)."""
        if self.fused:
            return self.contrib("FusedMatMul", x, y, transB=1)
        return self.MatMul(x, self.Transpose(y, perm=[0, 2, 1]))

    def rotate(self, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
        """Rotary positions: pairs of neighbouring channels of x (B, T, C), turned by angles (T, C / 2)."""
        if self.fused:
            first = self.constant(np.array([0]))
            return self.contrib("RotaryEmbedding", x, first, cos, sin, interleaved=1, num_heads=1)
        pairs = self.reshape(x, (0, 0, -1, 2))
        even, odd = (self.Gather(pairs, self.constant(np.array(side)), axis=3) for side in (0, 1))
        turned = [
            self.Sub(self.Mul(even, cos), self.Mul(odd, sin)),
            self.Add(self.Mul(even, sin), self.Mul(odd, cos)),
        ]
        last = self.constant(np.array([-1]))
        return self.reshape(
            self.Concat(*(self.Unsqueeze(part, last) for part in turned), axis=-1), (0, 0, -1)
        )

    def bias_gelu(self, x: ir.Value, bias: ir.Value) -> ir.Value:
        """Exact (erf) GELU of x + bias."""
        return self.contrib("BiasGelu", x, bias) if self.fused else self.Gelu(self.Add(x, bias))

    def rearrange(self, x: ir.Value, source: TokenOrder, target: TokenOrder) -> ir.Value:
        """Tokens (B, T, C) from one order to another; padding slots become zero rows."""
        index = gather_index(source, target)
        if index is None:
            return x
        if (index == len(source.slots)).any():
            behind = self.constant(np.array([0, 0, 0, 0, 1, 0]))
            x = self.Pad(x, behind, self.constant(0.0))  # one zero row behind the last token
        return self.Gather(x, self.constant(index), axis=1)

    def pool_cells(self, x: ir.Value, channels: int) -> ir.Value:
        """2x2 maximum over tokens (B, T, C) in grouped order: (B, T / 4, C)."""
        return self.ReduceMax(self.reshape(x, (0, -1, 4, channels)), self.constant(np.array([2])), keepdims=0)

    def tap(self, name: str, value: ir.Value, shape: Sequence[int] | None = None, **transpose: Any) -> None:
        """In the plain dialect, record a step under the current module path in the reference's layout."""
        if self.dialect != "plain":
            return
        if shape is not None:
            value = self.reshape(value, shape)
        value = self.Transpose(value, **transpose) if transpose else self.Identity(value)
        path = ".".join([part for part, _ in self.builder._scope_stack if part] + ([name] if name else []))
        self.taps[path] = value


def static_shape(parameter: Parameter) -> tuple[int, ...]:
    """A parameter's shape as integers."""
    return tuple(int(size) for size in parameter.shape)  # type: ignore[union-attr]


@contextmanager
def scope(op: Ops, module: nn.Module) -> Iterator[None]:
    """What a module's `__call__` does, for another method of it: its children get their full names."""
    op.builder.push_module(module.name or "", type(module).__qualname__)
    try:
        yield
    finally:
        op.builder.pop_module()


class Linear(nn.Module):
    """(..., in) -> (..., out). Keys `weight` (out, in) and `bias` (out)."""

    def __init__(self, size_in: int, size_out: int) -> None:
        super().__init__()
        self.weight = Parameter([size_out, size_in])
        self.bias = Parameter([size_out])

    def forward(  # type: ignore[override]
        self, op: Ops, x: ir.Value, *, gelu: bool = False, bias: bool = True
    ) -> ir.Value:
        if gelu:
            return op.bias_gelu(op.linear(x, self.weight), self.bias)
        return op.linear(x, self.weight, self.bias if bias else None)


class Weights(nn.Module):
    """Parameters that enter the graph through recipes only."""

    weight: Parameter
    bias: Parameter

    def __init__(self, **shapes: Sequence[int]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, Parameter(list(shape)))


def pointwise(op: Ops, x: ir.Value, *convolutions: Weights, added_to: Weights | None = None) -> ir.Value:
    """1x1 convolutions in a row on tokens (B, T, in) -> (B, T, out); two fold into one (not in plain).

    Folded, they also carry the bias of the layer whose output they are `added_to`.
    """
    if len(convolutions) == 2 and op.folds:
        first, second = convolutions
        others = [added_to.bias] if added_to is not None else []
        bias = op.weight("folded_bias", first.bias, second.weight, second.bias, *others)
        return op.linear(x, op.weight("folded_weight", first.weight, second.weight), bias)
    for convolution in convolutions:
        bias = op.weight("same", convolution.bias)
        x = op.linear(x, op.weight("pointwise", convolution.weight), bias)
    return x


class LayerNorm(nn.Module):
    """(..., C) -> (..., C) over the last axis. Keys `weight` and `bias` (C)."""

    def __init__(self, channels: int, eps: float = LAYER_NORM_EPS) -> None:
        super().__init__()
        self.weight = Parameter([channels])
        self.bias = Parameter([channels])
        self._eps = eps

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        return op.LayerNormalization(x, self.weight, self.bias, axis=-1, epsilon=self._eps)


class MLP(nn.Module):
    """Linear layers with one activation between them. Keys `layers.{i}.weight`, `layers.{i}.bias`."""

    def __init__(self, sizes: Sequence[int], activation: Literal["gelu", "relu"]) -> None:
        super().__init__()
        self.linears = [Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = ModuleList([*self.linears])
        self._activation = activation

    def forward(self, op: Ops, x: ir.Value) -> ir.Value:  # type: ignore[override]
        last = len(self.linears) - 1
        for index, layer in enumerate(self.linears):
            if index == last:
                x = layer(op, x)
            elif self._activation == "gelu":
                x = layer(op, x, gelu=True)
            else:
                x = op.Relu(layer(op, x))
        return x
