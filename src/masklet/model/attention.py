"""Scaled dot-product attention: one function, the kernel chosen below it, and the module with four
projections.

In: queries, keys and values as tokens (B, T, C), heads side by side in C. Out: tokens (B, T, C).
Knows nothing about windows, positions or where the tokens come from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnxscript import nn

from masklet.model.layers import Linear, Ops, Weights, scope, static_shape

ROWS_AT_ONCE = 256  # their scores take 29 MB at full memory; twice as many are not faster
KEY_STEPS = 64
QUERIES_AT_ONCE = 512  # with relative positions: 100 MB of scores for ViT-B at 1024; fewer are slower


@dataclass(frozen=True)
class SquareShape:
    """`side` x `side` tokens, and how their channels are divided."""

    side: int
    heads: int
    head_dim: int


def attend(
    op: Ops,
    q: ir.Value,
    k: ir.Value,
    v: ir.Value,
    heads: int,
    head_dim: int,
    added: ir.Value | None = None,
) -> ir.Value:
    """softmax(q k' / sqrt(head_dim)) v per head; `added` (B, heads, Tq, Tk) joins the scaled scores."""
    if op.fused:
        return op.contrib("MultiHeadAttention", q, k, v, None, None, added, num_heads=heads)

    def split(x: ir.Value, perm: tuple[int, ...]) -> ir.Value:
        return op.Transpose(op.reshape(x, (0, 0, heads, -1)), perm=perm)

    q = op.Mul(q, op.constant(float(head_dim) ** -0.5))
    scores = op.MatMul(split(q, (0, 2, 1, 3)), split(k, (0, 2, 3, 1)))  # B heads Tq Tk
    scores = scores if added is None else op.Add(scores, added)
    mixed = op.MatMul(op.Softmax(scores, axis=-1), split(v, (0, 2, 1, 3)))
    return op.reshape(op.Transpose(mixed, perm=(0, 2, 1, 3)), (0, 0, -1))


def attend_in_squares(
    op: Ops, q: ir.Value, k: ir.Value, v: ir.Value, rows: ir.Value, columns: ir.Value, shape: SquareShape
) -> ir.Value:
    """`attend` within squares of tokens (B, side * side, C), each row by row, with relative positions.

    `rows` and `columns` (B, heads, side * side, side) are what a query adds to its score with a key, by the
    key's row and by its column. Only some queries at a time have these terms added up for all keys: written
    out as a whole they would take 805 MB for ViT-B (benchmarks/LOG.md has the other exact forms).
    """
    heads, side, count = shape.heads, shape.side, shape.side**2
    mixed = []
    for start in range(0, count, QUERIES_AT_ONCE):
        part = start, min(start + QUERIES_AT_ONCE, count)
        by_row = op.Unsqueeze(_some(op, rows, 2, part, count), op.constant(np.array([4])))
        by_column = op.Unsqueeze(_some(op, columns, 2, part, count), op.constant(np.array([3])))
        added = op.reshape(op.Add(by_row, by_column), (0, 0, 0, side * side))
        queries = _some(op, q, 1, part, count)
        mixed.append(attend(op, queries, k, v, heads, shape.head_dim, added))
    return mixed[0] if len(mixed) == 1 else op.Concat(*mixed, axis=1)


def _some(op: Ops, x: ir.Value, axis: int, part: tuple[int, int], count: int) -> ir.Value:
    """The entries [start, stop) of `count` along an axis."""
    if part == (0, count):
        return x
    bounds = (op.constant(np.array([bound])) for bound in part)
    return op.Slice(x, *bounds, op.constant(np.array([axis])))


def attend_by_rows(op: Ops, q: ir.Value, k: ir.Value, v: ir.Value, head_dim: int, count: int) -> ir.Value:
    """`attend` with one wide head: a few of the `count` queries at a time look at all keys.

    With 256 channels plain products and a softmax over whole rows are a fifth faster than the fused kernel
    where its blocks are small because they have to fit beside each other into a small second-level cache
    (`op.by_rows`); with a larger one the kernel is half as fast again (benchmarks/LOG.md). In int8 queries
    and keys are multiplied in 8 bits, keys with a scale each; the mixing stays in f32.
    """
    if not op.fused or not (op.by_rows or op.int8):
        return attend(op, q, k, v, 1, head_dim)
    multiply = _int8_scores if op.int8 else _scores
    scores_of = multiply(op, q, k, float(head_dim) ** -0.5)
    mixed = []
    for start in range(0, count, ROWS_AT_ONCE):
        scores = scores_of((start, min(start + ROWS_AT_ONCE, count)), count)
        mixed.append(op.MatMul(op.Softmax(scores, axis=-1), v))
    return mixed[0] if len(mixed) == 1 else op.Concat(*mixed, axis=1)


def _scores(op: Ops, q: ir.Value, k: ir.Value, scale: float) -> Callable[[tuple[int, int], int], ir.Value]:
    """A function of the queries [start, stop) of `count`: their scores with all keys."""

    def scores(part: tuple[int, int], count: int) -> ir.Value:
        return op.contrib("FusedMatMul", _some(op, q, 1, part, count), k, transB=1, alpha=scale)

    return scores


def _int8_scores(
    op: Ops, q: ir.Value, k: ir.Value, scale: float
) -> Callable[[tuple[int, int], int], ir.Value]:
    """`_scores` as products of 8-bit integers."""
    queries, step, zero = op.DynamicQuantizeLinear(q, _outputs=3)
    step = op.Mul(step, op.constant(scale))
    keys, key_steps = _int8_keys(op, k)

    def scores(part: tuple[int, int], count: int) -> ir.Value:
        rows = _some(op, queries, 1, part, count)
        return op.contrib("MatMulIntegerToFloat", rows, keys, step, key_steps, zero)

    return scores


def _int8_keys(op: Ops, k: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Keys (B, K, C) as 8-bit integers (B, C, K), and what a step of each key is worth (B, 1, K).

    Their 64 steps to each side add up in 16 bits, see `derive.int8_matrix`.
    """
    last = op.constant(np.array([-1]))
    largest = op.Max(op.ReduceMax(k, last), op.Neg(op.ReduceMin(k, last)), op.constant(1e-20))
    steps = op.Mul(largest, op.constant(1 / KEY_STEPS))
    whole = op.QuantizeLinear(op.Div(k, steps), op.constant(1.0), op.constant(np.array(0, np.int8)))
    return op.Transpose(whole, perm=[0, 2, 1]), op.Transpose(steps, perm=[0, 2, 1])


def project_in(op: Ops, x: ir.Value, qkv: Weights) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Queries, keys and values (B, T, C) from one fused projection `qkv`; keys and values without their bias
    where `project_out` carries it."""
    channels = static_shape(qkv.bias)[0] // 3

    def part(index: int) -> ir.Value:
        rows = {"start": index * channels, "stop": (index + 1) * channels}
        bias = op.weight("rows", qkv.bias, **rows) if index == 0 or not op.folds else None
        return op.linear(x, op.weight("rows", qkv.weight, **rows), bias)

    return part(0), part(1), part(2)


def project_out(op: Ops, x: ir.Value, projection: Linear, values: Linear | Weights) -> ir.Value:
    """The projection behind attention whose keys and values came without their bias.

    A constant added to all keys adds the same to all scores of a query, which softmax ignores; a constant
    added to all values comes out as it is, so its projection joins the projection's bias. `values` is the
    layer whose last bias entries are the values'.
    """
    channels = static_shape(projection.weight)[1]
    start = static_shape(values.bias)[0] - channels
    bias = op.weight("carried_bias", projection.weight, projection.bias, values.bias, start=start)
    return op.linear(x, op.weight("same", projection.weight), bias)


class Attention(nn.Module):
    """Attention with separate projections, inside at `inner` channels.

    (B, Tq, C), (B, Tk, C), (B, Tk, C) -> (B, Tq, C). Keys `q_proj`, `k_proj`, `v_proj`, `out_proj`.
    """

    def __init__(self, channels: int, heads: int, inner: int) -> None:
        super().__init__()
        self.q_proj = Linear(channels, inner)
        self.k_proj = Linear(channels, inner)
        self.v_proj = Linear(channels, inner)
        self.out_proj = Linear(inner, channels)
        self._channels, self._heads, self._head_dim = channels, heads, inner // heads

    def forward(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:  # type: ignore[override]
        q = self.q_proj(op, q)
        k, v = self.k_proj(op, k, bias=not op.folds), self.v_proj(op, v, bias=not op.folds)
        x = attend(op, q, k, v, self._heads, self._head_dim)
        if not op.folds:
            return self.out_proj(op, x)
        op.leave_out(self.k_proj.bias)
        return project_out(op, x, self.out_proj, self.v_proj)


class CrossAttention(Attention):
    """`Attention` between a few prompt tokens and many image tokens, without projecting the image.

    A head's scores q' (Wk x) are (Wk' q)' x, and its result Wv (X p) is a product behind the mixing: with N
    tokens and h heads the image meets h * N rows instead of the `inner` rows of two projections, which is
    less work for up to `inner` / h tokens. An image that many prompts share is projected after all, once
    (`share_*`). Exact; the plain graph does it the reference's way.
    """

    def to_image(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """Tokens (B, N, C) look at the image's keys and values (1 or B, T, C) -> (B, N, C)."""
        if not op.folds:
            return self(op, q, k, v)
        with scope(op, self):
            op.leave_out(self.k_proj.bias)
            q = self._heads_of(op, op.Mul(self.q_proj(op, q), self._scale(op)))  # B h N d
            rows = op.MatMul(q, op.weight("head_rows", self.k_proj.weight, heads=self._heads))  # B h N C
            weights = op.Softmax(
                op.matmul_t(self._side_by_side(op, rows, self._channels), k), axis=-1
            )  # B hN T
            mixed = self._stacked(op, op.MatMul(weights, v), self._channels)  # B h N C
            mixed = op.MatMul(mixed, op.weight("head_columns", self.v_proj.weight, heads=self._heads))
            return project_out(op, self._joined(op, mixed), self.out_proj, self.v_proj)

    def from_image(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """The image (1 or B, T, C) looks at the tokens' keys and values (B, N, C) -> (B, T, C)."""
        if not op.folds:
            return self(op, q, k, v)
        with scope(op, self):
            op.leave_out(self.k_proj.bias)
            k = self._heads_of(op, op.Mul(self.k_proj(op, k, bias=False), self._scale(op)))  # B h N d
            rows = op.MatMul(k, op.weight("head_rows", self.q_proj.weight, heads=self._heads))  # B h N C
            constant = op.MatMul(k, op.weight("head_rows", self.q_proj.bias, heads=self._heads))  # B h N 1
            scores = op.matmul_t(q, self._side_by_side(op, rows, self._channels))  # B T hN
            scores = op.Add(scores, op.Transpose(self._side_by_side(op, constant, 1), perm=(0, 2, 1)))
            return self._mix_tokens(op, scores, v)

    def share_keys(self, op: Ops, k: ir.Value, v: ir.Value) -> tuple[ir.Value, ir.Value]:
        """An image's keys and values (1, T, C), projected and parted for `to_shared` -> (1, h, d, T) and (1,
        h, T, d)."""
        with scope(op, self):
            op.leave_out(self.k_proj.bias)
            keys = op.Transpose(self._heads_of(op, self.k_proj(op, k, bias=False)), perm=(0, 1, 3, 2))
            return keys, self._heads_of(op, self.v_proj(op, v, bias=False))

    def share_queries(self, op: Ops, q: ir.Value) -> ir.Value:
        """An image's queries (1, T, C), projected for `from_shared` -> (1, T, inner)."""
        with scope(op, self):
            return self.q_proj(op, q)

    def to_shared(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """`to_image` on what `share_keys` made: the tokens of all prompts look as one long sequence."""
        with scope(op, self):
            x = op.reshape(op.Mul(self.q_proj(op, q), self._scale(op)), (1, -1, self._heads * self._head_dim))
            weights = op.Softmax(op.MatMul(self._heads_of(op, x), k), axis=-1)  # 1 h BN T
            x = self._joined(op, op.MatMul(weights, v))
            per_prompt = op.Concat(op.Shape(q, start=0, end=2), op.constant(np.array([-1])), axis=0)
            return project_out(op, op.Reshape(x, per_prompt), self.out_proj, self.v_proj)

    def from_shared(self, op: Ops, q: ir.Value, k: ir.Value, v: ir.Value) -> ir.Value:
        """`from_image` on what `share_queries` made: one product for all heads, each token's row once for
        each head and zero in the others' channels."""
        with scope(op, self):
            op.leave_out(self.k_proj.bias)
            k = op.Mul(self.k_proj(op, k, bias=False), self._scale(op))  # B N inner
            inner = self._heads * self._head_dim
            own = np.repeat(np.eye(self._heads), self._head_dim, axis=1)[:, None]  # h 1 inner
            rows = op.Mul(op.Unsqueeze(k, op.constant(np.array([1]))), op.constant(own))  # B h N inner
            return self._mix_tokens(op, op.matmul_t(q, self._side_by_side(op, rows, inner)), v)

    def _mix_tokens(self, op: Ops, scores: ir.Value, v: ir.Value) -> ir.Value:
        """Scores (B, T, hN) and values (B, N, C) of tokens -> what the image gets of them (B, T, C)."""
        parted = op.reshape(scores, (0, 0, self._heads, -1))
        weights = op.reshape(op.Softmax(parted, axis=-1), (0, 0, -1))  # B T hN

        v = self._heads_of(op, self.v_proj(op, v, bias=False))
        rows = op.MatMul(v, op.weight("head_inputs", self.out_proj.weight, heads=self._heads))  # B h N C
        bias = op.weight("carried_bias", self.out_proj.weight, self.out_proj.bias, self.v_proj.bias, start=0)
        # A head's weights sum to one: the bias on the rows of one head spares a pass over the image.
        first = (np.arange(self._heads) == 0).astype(np.float32)[:, None, None]
        rows = op.Add(rows, op.Mul(op.constant(first), bias))
        return op.MatMul(weights, self._side_by_side(op, rows, self._channels))

    def _scale(self, op: Ops) -> ir.Value:
        return op.constant(float(self._head_dim) ** -0.5)

    def _heads_of(self, op: Ops, x: ir.Value) -> ir.Value:
        """(B, N, h * d) -> (B, h, N, d)."""
        return op.Transpose(op.reshape(x, (0, 0, self._heads, self._head_dim)), perm=(0, 2, 1, 3))

    def _joined(self, op: Ops, x: ir.Value) -> ir.Value:
        """(B, h, N, d) -> (B, N, h * d)."""
        return op.reshape(op.Transpose(x, perm=(0, 2, 1, 3)), (0, 0, self._heads * self._head_dim))

    def _side_by_side(self, op: Ops, x: ir.Value, channels: int) -> ir.Value:
        """(B, h, N, C) -> (B, h * N, C)."""
        return op.reshape(x, (0, -1, channels))

    def _stacked(self, op: Ops, x: ir.Value, channels: int) -> ir.Value:
        """(B, h * N, C) -> (B, h, N, C)."""
        return op.reshape(x, (0, self._heads, -1, channels))
