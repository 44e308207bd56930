"""SAM's encoder and decoder: all dialects agree, relative positions against loops, other input sizes."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from masklet import testing
from masklet.families.sam1 import IMAGE_STAGES, PRESETS
from masklet.model import attention, derive
from masklet.runtime.devices import find_device
from masklet.runtime.graph import write_stage
from masklet.runtime.session import Session

RELATIVE = 2e-5  # of the largest value: float32 sums in another order, through a whole network
CONFIG = testing.tiny_sam1_config()


@cache
def sessions(size, dialect):
    stages = {name: write_stage(CONFIG, name, size, dialect) for name in IMAGE_STAGES}
    weights = testing.lively_weights({k: s for stage in stages.values() for k, s in stage.tensors.items()})
    return {
        name: Session(stage, weights.__getitem__, find_device("cpu"), 1) for name, stage in stages.items()
    }


def run(size, dialect, batch, points, with_mask):
    """All outputs of the four stages."""
    rng = np.random.default_rng(1)
    stages = sessions(size, dialect)
    image = rng.standard_normal((1, 3, size, size)).astype(np.float32)
    embedding = stages["encode_image"].run({"image": image})["embedding"]
    coords = rng.uniform(0, size, (batch, points, 2)).astype(np.float32)
    labels = rng.integers(-1, 4, (batch, points))
    mask = rng.normal(0, 5, (batch, 1, size // 4, size // 4)).astype(np.float32)
    embedded = stages["encode_points"].run({"coords": coords, "labels": labels})
    dense = stages["encode_mask"].run({"mask": mask})["dense"] if with_mask else embedded["dense"]
    decoded = stages["decode_masks"].run(
        {"embedding": embedding, "sparse": embedded["sparse"], "dense": dense}
    )
    return {"embedding": embedding.numpy()} | {
        name: value.numpy() for name, value in decoded.items() if name in ("logits", "iou", "tokens")
    }


def assert_close(got, expected, name):
    assert got.shape == expected.shape, name
    np.testing.assert_allclose(got, expected, rtol=0, atol=RELATIVE * np.abs(expected).max(), err_msg=name)


# Grids of 8 (the tables' own), 7, 10 and 2 tokens; windows of 3 pad all of them.
@pytest.mark.parametrize("prompts", [(1, 2, False), (3, 4, True), (2, 0, True)], ids=str)
@pytest.mark.parametrize("size", [128, 112, 160, 32])
def test_all_dialects_agree(size, prompts):
    plain = run(size, "plain", *prompts)
    assert plain["logits"].shape == (prompts[0], 4, size // 4, size // 4)
    for dialect in ("portable", "fused"):
        for name, value in run(size, dialect, *prompts).items():
            assert_close(value, plain[name], f"{dialect} {name}")


def test_every_tensor_has_a_part_in_the_embedding():
    """Each changed alone changes the result: a table that is read and lost would not."""
    stage = write_stage(CONFIG, "encode_image", 128, "fused")
    weights = testing.lively_weights(stage.tensors)
    image = {"image": np.random.default_rng(0).standard_normal((1, 3, 128, 128)).astype(np.float32)}

    def embedding(changed):
        session = Session(stage, {**weights, **changed}.__getitem__, find_device("cpu"), 1)
        return session.run(image)["embedding"].numpy()

    before = embedding({})
    for name in stage.tensors:
        after = embedding({name: weights[name] + 0.3 * np.flip(weights[name])})
        assert np.abs(after - before).max() > 1e-4 * np.abs(before).max(), name


# ----------------------------------------------------------------------------------------- relative positions


def relative_attention(weights, x, heads, window):
    """The reference's attention with loops for the positions; x (windows, side, side, C), float64."""
    count, side, _, channels = x.shape
    dim = channels // heads
    qkv = x.reshape(count, -1, channels) @ weights["qkv.weight"].T + weights["qkv.bias"]
    q, k, v = qkv.reshape(count, side**2, 3, heads, dim).transpose(2, 0, 3, 1, 4)
    scores = np.einsum("bhqc,bhkc->bhqk", q, k) * dim**-0.5
    for query in range(side**2):
        for key in range(side**2):
            rows, columns = query // side - key // side, query % side - key % side
            terms = weights["rel_pos_h"][rows + side - 1] + weights["rel_pos_w"][columns + side - 1]
            scores[:, :, query, key] += q[:, :, query] @ terms
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bhkc->bhqc", shares, v).transpose(0, 2, 1, 3).reshape(count, -1, channels)
    return (mixed @ weights["proj.weight"].T + weights["proj.bias"]).reshape(x.shape)


@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("queries_at_once", [512, 24], ids=["whole", "in pieces"])
def test_attention_against_loops(monkeypatch, queries_at_once, block):
    """A windowed and a global block, from the steps that a plain graph records, and by the fused one."""
    monkeypatch.setattr(attention, "QUERIES_AT_ONCE", queries_at_once)
    plain, fused = (write_stage(CONFIG, "encode_image", 128, dialect) for dialect in ("plain", "fused"))
    weights = testing.lively_weights(plain.tensors)
    image = {"image": np.random.default_rng(3).standard_normal((1, 3, 128, 128)).astype(np.float32)}
    steps = {
        name: value.numpy()
        for name, value in Session(plain, weights.__getitem__, find_device("cpu"), 1).run(image).items()
    }
    embedding = Session(fused, weights.__getitem__, find_device("cpu"), 1).run(image)["embedding"].numpy()
    assert_close(embedding, steps["embedding"], "fused")

    def weight(name):
        return weights[f"image_encoder.blocks.{block}.{name}"].astype(np.float64)

    def norm(x, name):
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
        return x * weight(f"{name}.weight") + weight(f"{name}.bias")

    position = weights["image_encoder.pos_embed"]
    before = steps["image_encoder.patch_embed"] + position if block == 0 else steps["image_encoder.blocks.0"]
    x = norm(before.astype(np.float64)[0], "norm1")  # 8 8 C
    names = ("qkv.weight", "qkv.bias", "proj.weight", "proj.bias", "rel_pos_h", "rel_pos_w")
    parameters = {name: weight(f"attn.{name}") for name in names}
    heads = CONFIG.trunk.num_heads
    if block == 0:  # nine windows of 3 x 3, the last row and column padded
        padded = np.pad(x, ((0, 1), (0, 1), (0, 0))).reshape(3, 3, 3, 3, -1).transpose(0, 2, 1, 3, 4)
        mixed = relative_attention(parameters, padded.reshape(9, 3, 3, -1), heads, 3)
        mixed = mixed.reshape(3, 3, 3, 3, -1).transpose(0, 2, 1, 3, 4).reshape(9, 9, -1)[:8, :8]
    else:
        mixed = relative_attention(parameters, x[None], heads, 0)[0]
    x = before[0] + mixed
    hidden = norm(x, "norm2") @ weight("mlp.layers.0.weight").T + weight("mlp.layers.0.bias")
    hidden *= 0.5 * (1 + np.vectorize(_erf)(hidden / np.sqrt(2)))
    x = x + hidden @ weight("mlp.layers.1.weight").T + weight("mlp.layers.1.bias")
    assert_close(steps[f"image_encoder.blocks.{block}"][0], x, "block")


def _erf(x):
    import math

    return math.erf(x)


def test_no_tensor_is_as_large_as_all_scores():
    """At full size, 12 heads of 4096 x 4096 would be 805 MB."""
    import onnx

    stage = write_stage(PRESETS["sam_vit_b"], "encode_image", 1024, "fused")
    graph = onnx.shape_inference.infer_shapes(onnx.load_from_string(stage.onnx)).graph
    sizes = [
        int(np.prod([side.dim_value for side in value.type.tensor_type.shape.dim]))
        for value in graph.value_info
    ]
    heads, count = 12, 4096
    assert max(sizes) <= heads * attention.QUERIES_AT_ONCE * count
    assert sum(node.op_type == "MultiHeadAttention" for node in graph.node) == 8 + 4 * count // 512


@pytest.mark.parametrize(("length", "side"), [(9, 5), (5, 3), (27, 14)])
def test_relative_positions_by_hand(length, side):
    table = np.random.default_rng(0).standard_normal((length, 4)).astype(np.float32)
    got = derive.compute("relative_position", [table], {"side": side})
    assert got.shape == (side, 4, side)
    for query in range(side):
        for key in range(side):
            np.testing.assert_array_equal(got[query, :, key], table[query - key + side - 1])


@pytest.mark.parametrize(("length", "side"), [(9, 8), (15, 4), (3, 7)])
def test_relative_positions_of_another_size_are_resized_linearly(length, side):
    table = np.random.default_rng(0).standard_normal((length, 4))
    count = 2 * side - 1
    places = np.clip((np.arange(count) + 0.5) * length / count - 0.5, 0, length - 1)
    resized = np.stack([np.interp(places, np.arange(length), table[:, channel]) for channel in range(4)], -1)
    got = derive.compute("relative_position", [table.astype(np.float32)], {"side": side})
    np.testing.assert_allclose(got[side - 1, :, 0], resized[-1], atol=1e-6)
    np.testing.assert_allclose(got[0, :, side - 1], resized[0], atol=1e-6)
    np.testing.assert_allclose(got[1, :, 0], resized[side], atol=1e-6)


def test_a_position_table_of_its_own_size_is_taken_as_it_is():
    table = np.random.default_rng(0).standard_normal((1, 3, 5, 2)).astype(np.float32)
    np.testing.assert_array_equal(
        derive.compute("resized_position", [table], {"grid": [3, 5]}), table.reshape(15, 2)
    )


def test_a_position_table_is_resized_as_a_picture():
    """Bicubic, not antialiased; columns and rows are not exchanged; a constant stays one."""
    rows = np.linspace(0, 1, 8, dtype=np.float32)[:, None] * np.ones(8, np.float32)
    table = np.stack([rows, rows.T, np.ones((8, 8), np.float32)], -1)[None]
    got = derive.compute("resized_position", [table], {"grid": [16, 4]}).reshape(16, 4, 3)
    assert (np.diff(got[..., 0], axis=0) > 0).all()
    assert (np.diff(got[..., 1], axis=1) > 0).all()
    np.testing.assert_allclose(got[..., 0], got[:, :1, 0] * np.ones(4), atol=1e-6)
    np.testing.assert_allclose(got[..., 2], 1, atol=1e-6)
