"""The fused and the portable graph equal the plain one, which the golden set ties to the reference."""

from __future__ import annotations

import dataclasses
from functools import cache

import numpy as np
import pytest

from masklet import testing
from masklet.families.sam2 import IMAGE_STAGES, VIDEO_STAGES
from masklet.model.tokens import stage_orders
from masklet.runtime.devices import find_device
from masklet.runtime.graph import write_stage
from masklet.runtime.session import Session

RELATIVE = 2e-5  # of the largest value: float32 sums in another order, through a whole network


@cache
def sessions(config, dialect, names=IMAGE_STAGES):
    stages = {name: write_stage(config, name, config.image_size, dialect) for name in names}
    weights = testing.lively_weights({k: s for stage in stages.values() for k, s in stage.tensors.items()})
    return {
        name: Session(stage, weights.__getitem__, find_device("cpu"), 1) for name, stage in stages.items()
    }


def run(config, dialect, prompts):
    """All outputs of the four stages, features in raster order."""
    rng = np.random.default_rng(1)
    size, stages = config.image_size, sessions(config, dialect)
    image = rng.standard_normal((1, 3, size, size)).astype(np.float32)
    orders, _ = stage_orders(config.trunk, size, nested=dialect != "plain")
    features = stages["encode_image"].run({"image": image})
    results = {}
    for name, order in zip(
        ("stride4", "stride8", "stride16", "embedding"), (*orders[:3], orders[2]), strict=True
    ):
        tokens = features[name].numpy()[0]
        results[name] = np.empty_like(tokens)
        results[name][order.slots] = tokens
    if dialect != "plain":
        for name, layer in (("stride4", "3"), ("stride8", "0")):  # they carry the upscaling's bias
            key, channels = f"sam_mask_decoder.output_upscaling.{layer}.bias", results[name].shape[-1]
            results[name] -= testing.lively_weights({key: (channels,)})[key]

    batch, points, with_mask = prompts
    coords = rng.uniform(0, size, (batch, points, 2)).astype(np.float32)
    labels = rng.integers(-1, 4, (batch, points))
    mask = rng.normal(0, 5, (batch, 1, size // 4, size // 4)).astype(np.float32)
    embedded = stages["encode_points"].run({"coords": coords, "labels": labels})
    dense = stages["encode_mask"].run({"mask": mask})["dense"] if with_mask else embedded["dense"]
    feeds = {name: features[name] for name in ("stride4", "stride8", "embedding")}
    decoded = stages["decode_masks"].run({**feeds, "sparse": embedded["sparse"], "dense": dense})
    return results | {name: value.numpy() for name, value in decoded.items()}


@pytest.mark.parametrize("prompts", [(1, 2, False), (3, 4, True), (2, 0, True)], ids=str)
@pytest.mark.parametrize("size", [128, 160, 256])
def test_all_dialects_agree(size, prompts):
    config = testing.tiny_config(image_size=size)
    plain = run(config, "plain", prompts)
    for dialect in ("portable", "fused"):
        for name, value in run(config, dialect, prompts).items():
            assert value.shape == plain[name].shape, (dialect, name)
            limit = RELATIVE * np.abs(plain[name]).max()
            np.testing.assert_allclose(value, plain[name], rtol=0, atol=limit, err_msg=f"{dialect} {name}")


# ------------------------------------------------------------------------------------------------------ video


def video_sessions(version, size, dialect):
    return sessions(testing.tiny_config(version, size), dialect, VIDEO_STAGES)


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(got, expected, name):
    assert got.shape == expected.shape, name
    np.testing.assert_allclose(got, expected, rtol=0, atol=RELATIVE * np.abs(expected).max(), err_msg=name)


def begun(version, size, dialect):
    """What `begin_frame` makes of random features, and the order of its tokens."""
    config = testing.tiny_config(version, size)
    order = stage_orders(config.trunk, size, nested=dialect != "plain")[0][2]
    features = normal(1, len(order.slots), config.d_model, seed=0)
    return video_sessions(version, size, dialect)["begin_frame"].run(
        {"stride16": features[:, order.slots]}
    ), order.slots


def in_raster(tokens, slots):
    result = np.empty_like(tokens)
    result[:, slots] = tokens
    return result


def attended(version, size, dialect, counts, session=None):
    """The embedding, in raster order, of a frame for B objects with F memories and P pointers each; `session`
    takes the place of the dialect's own."""
    batch, memories, pointers = counts
    config = testing.tiny_config(version, size)
    frame, slots = begun(version, size, dialect)
    feeds = {
        "frame_tokens": frame["frame_tokens"],
        "frame_queries": frame["frame_queries"],
        "memories": normal(batch, memories, len(slots), config.memory_dim, seed=1),
        "slots": np.random.default_rng(2).integers(0, 7, (batch, memories)),
        "pointers": normal(batch, pointers, config.d_model, seed=3),
        "distances": np.random.default_rng(4).uniform(0, 3, (batch, pointers)).astype(np.float32),
    }
    if version == "2.0":
        del feeds["distances"]
    session = session or video_sessions(version, size, dialect)["attend_memory"]
    embedding = session.run(feeds)["embedding"].numpy()
    return in_raster(embedding, slots)


# Sizes: 64 tokens; 400, more than the rows that attention handles at once, in a nested order of its own.
@pytest.mark.parametrize("size", [128, 320])
@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_what_a_frame_needs_for_tracking(version, size):
    plain, _ = begun(version, size, "plain")
    for dialect in ("portable", "fused"):
        frame, slots = begun(version, size, dialect)
        for name in ("frame_tokens", "frame_queries"):
            assert_close(in_raster(frame[name].numpy(), slots), plain[name].numpy(), f"{dialect} {name}")
        assert_close(frame["frame_pixels"].numpy(), plain["frame_pixels"].numpy(), f"{dialect} frame_pixels")


# Objects, memories, pointers: none, one, and as many as there can be with one conditioning frame.
@pytest.mark.parametrize(
    "counts", [(1, 1, 0), (2, 2, 0), (1, 1, 1), (2, 3, 2), (3, 7, 16), (1, 9, 3)], ids=str
)
@pytest.mark.parametrize(("version", "size"), [("2.0", 128), ("2.1", 128), ("2.1", 320)])
def test_memory_attention_agrees(version, size, counts):
    plain = attended(version, size, "plain", counts)
    for dialect in ("portable", "fused"):
        assert_close(attended(version, size, dialect, counts), plain, f"{dialect} {counts}")


@pytest.mark.parametrize("by_rows", [True, False])
def test_wide_heads_agree_whatever_the_cache(by_rows):
    """The default follows this machine's cache, so each way is asked for."""
    config, counts = testing.tiny_config("2.1", 320), (2, 3, 2)
    stage = write_stage(config, "attend_memory", 320, "fused", by_rows=by_rows)
    assert (b"MultiHeadAttention" in stage.onnx) != by_rows
    weights = testing.lively_weights(stage.tensors)
    session = Session(stage, weights.__getitem__, find_device("cpu"), 1)
    plain = attended("2.1", 320, "plain", counts)
    assert_close(attended("2.1", 320, "fused", counts, session), plain, f"by rows: {by_rows}")


def test_memory_attention_looks_at_all_that_it_is_given():
    """Exchanging two memories or pointers, or their ages or distances, changes the result; and an object does
    not see what another one remembers."""
    config, size = testing.tiny_config("2.1", 128), 128
    frame, slots = begun("2.1", size, "fused")
    run = video_sessions("2.1", size, "fused")["attend_memory"].run
    feeds = {
        "memories": normal(2, 3, len(slots), config.memory_dim, seed=1),
        "slots": np.array([[6, 1, 0], [6, 3, 2]]),
        "pointers": normal(2, 3, config.d_model, seed=2),
        "distances": np.array([[1.2, 0.2, 0.1], [1.0, 0.5, 0.4]], np.float32),
    }
    shared = {name: frame[name] for name in ("frame_tokens", "frame_queries")}
    before = run({**shared, **feeds})["embedding"].numpy()
    for name, value in feeds.items():
        changed = value.copy()
        changed[0, [0, 2]] = value[0, [2, 0]]
        after = run({**shared, **feeds, name: changed})["embedding"].numpy()
        assert np.abs(after[0] - before[0]).max() > 1e-3, name
        np.testing.assert_array_equal(after[1], before[1])
    # What is remembered is a set: exchanging whole memories, with their ages, changes nothing.
    order = [2, 0, 1]
    moved = {name: value[:, order] for name, value in feeds.items()}
    assert_close(run({**shared, **moved})["embedding"].numpy(), before, "another order")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_the_memory_encoder_agrees(version, binary, batch):
    size, made = 128, {}
    for dialect in ("plain", "portable", "fused"):
        feeds = {
            "frame_pixels": begun(version, size, dialect)[0]["frame_pixels"],
            "mask_logits": 5 * normal(batch, 1, size // 4, size // 4, seed=5),
            "binary": np.array([binary]),
            "object_score": np.array([[1.0], [0.0], [-2.0]], np.float32)[:batch],
        }
        made[dialect] = video_sessions(version, size, dialect)["encode_memory"].run(feeds)["memories"].numpy()
        assert_close(made[dialect], made["plain"], dialect)
        feeds["object_score"] = np.ones((batch, 1), np.float32)
        there = video_sessions(version, size, dialect)["encode_memory"].run(feeds)["memories"].numpy()
        marked = np.abs(there - made[dialect]).max(axis=(1, 2)) > 0
        assert (
            marked.tolist() == [False, version == "2.1", version == "2.1"][:batch]
        )  # absent: a score of 0 too


@pytest.mark.parametrize("version", ["2.0", "2.1"])
def test_pointers_and_mask_prompts_agree(version):
    size = 128
    feeds = {"mask_token": normal(3, 64, seed=6), "object_score": np.array([[1], [0], [-1]], np.float32)}
    mask = (normal(2, 1, size, size, seed=7) > 0).astype(np.float32)
    runs = []
    for dialect in ("plain", "portable", "fused"):
        stages = video_sessions(version, size, dialect)
        pointers = stages["point_to_object"].run(feeds)["pointers"].numpy()
        shrunk = stages["shrink_mask"].run({"mask_prompt": mask})["mask"].numpy()
        runs.append((pointers, shrunk))
        assert_close(pointers, runs[0][0], dialect)
        assert_close(shrunk, runs[0][1], dialect)
        assert np.array_equal(pointers[1], pointers[2])  # one pointer for all that is absent
        assert not np.array_equal(pointers[0], pointers[1])
    assert runs[0][1].shape == (2, 1, 32, 32)


# ----------------------------------------------------------------------------------------------------- layout


def test_wide_windows_without_padding_stay_contiguous():
    config = testing.tiny_config(image_size=128)
    trunk = dataclasses.replace(config.trunk, window_spec=(8, 4, 8, 4), num_heads=2)
    config = dataclasses.replace(config, trunk=trunk)
    plain, fused = run(config, "plain", (1, 2, False)), run(config, "fused", (1, 2, False))
    np.testing.assert_allclose(
        fused["logits"], plain["logits"], atol=RELATIVE * np.abs(plain["logits"]).max()
    )


def test_the_fused_trunk_moves_tokens_only_where_windows_pad():
    """At large's own size every window is already a run: the one gather is the one behind the patch
    embedding.
    """
    import onnx

    from masklet.families.sam2 import PRESETS

    model = onnx.load_from_string(
        write_stage(PRESETS["sam2.1_hiera_large"], "encode_image", 1024, "fused").onnx
    )
    assert sum(node.op_type == "Gather" for node in model.graph.node) == 1
