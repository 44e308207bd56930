"""A pruned stage gives the same numbers from fewer nodes and weights."""

from __future__ import annotations

import numpy as np
import pytest

from masklet import testing
from masklet.runtime.cache import load_stage
from masklet.runtime.devices import find_device
from masklet.runtime.prune import prune
from masklet.runtime.session import Session

BLOCK = "image_encoder.trunk.blocks.1"


@pytest.fixture(scope="module")
def stage():
    return load_stage(testing.tiny_config(), "encode_image", 128, "plain")


def run(stage, image):
    weights = testing.lively_weights(stage.tensors)
    made = Session(stage, weights.__getitem__, find_device("cpu"), 1).run({"image": image})
    return {name: value.numpy() for name, value in made.items()}


def test_what_is_left_is_the_same(stage):
    pruned = prune(stage, [BLOCK])
    assert pruned.outputs == pruned.taps == (BLOCK,)
    assert pruned.inputs == stage.inputs
    assert 0 < len(pruned.weights) < len(stage.weights)
    assert {key for weight in pruned.weights for key in weight.keys} == set(pruned.tensors)
    assert not any("blocks.2" in key or "neck" in key for key in pruned.tensors)
    assert len(pruned.onnx) < len(stage.onnx)
    image = np.random.default_rng(0).standard_normal((1, 3, 128, 128)).astype(np.float32)
    np.testing.assert_allclose(run(pruned, image)[BLOCK], run(stage, image)[BLOCK], rtol=1e-5, atol=1e-5)


def test_outputs_keep_the_order_of_the_stage(stage):
    assert prune(stage, [BLOCK, "embedding", "stride4"]).outputs == ("stride4", "embedding", BLOCK)


def test_all_outputs_prune_nothing(stage):
    assert prune(stage, stage.outputs).weights == stage.weights
