"""The fused and the portable graph equal the plain one, which the golden set ties to the reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from masklet import testing
from masklet.families.sam2 import IMAGE_STAGES
from masklet.model.tokens import stage_orders
from masklet.runtime.devices import find_device
from masklet.runtime.graph import write_stage
from masklet.runtime.session import Session

RELATIVE = 2e-5  # of the largest value: float32 sums in another order, through a whole network


def sessions(config, dialect):
    stages = {name: write_stage(config, name, config.image_size, dialect) for name in IMAGE_STAGES}
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
