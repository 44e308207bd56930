"""Norms that feed linear layers only, read off the graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from masklet import testing
from masklet.families.table import family_of
from masklet.quant.smooth import NormedLinears
from masklet.runtime.cache import load_stage
from masklet.runtime.devices import find_device
from masklet.runtime.norms import normed_linears, watched
from masklet.runtime.session import Session

SAM2, SAM1, EDGETAM = testing.tiny_config(), testing.tiny_sam1_config(), testing.tiny_edgetam_config(256)
TRUNK = "image_encoder.trunk.blocks"


def stage_of(config: Any, name: str = "encode_image") -> Any:
    return load_stage(config, name, config.image_size, "fused")


def test_norms_of_hiera() -> None:
    """Every norm of every block, and behind the first norm of a stage also the way around its attention."""
    found = {group.norm: group.matrices for group in normed_linears(stage_of(SAM2))}
    assert list(found) == [f"{TRUNK}.{block}.norm{norm}" for block in range(7) for norm in (1, 2)]
    for block in range(7):
        around = (f"{TRUNK}.{block}.proj.weight",) if block in (1, 3, 6) else ()
        assert found[f"{TRUNK}.{block}.norm1"] == (f"{TRUNK}.{block}.attn.qkv.weight", *around)
        assert found[f"{TRUNK}.{block}.norm2"] == (f"{TRUNK}.{block}.mlp.layers.0.weight",)


def test_norms_of_vit() -> None:
    """Those of the blocks; the neck's are followed by a convolution, or by the features themselves."""
    found = normed_linears(stage_of(SAM1))
    assert len(found) == 2 * SAM1.trunk.depth
    assert found[0] == NormedLinears(
        "image_encoder.blocks.0.norm1", ("image_encoder.blocks.0.attn.qkv.weight",)
    )


def test_edgetams_encoder_has_none() -> None:
    assert normed_linears(stage_of(EDGETAM)) == ()


@pytest.mark.parametrize("config", [SAM2, SAM1], ids=["sam2", "sam1"])
def test_no_other_stage_reads_what_would_change(config: Any) -> None:
    groups = normed_linears(stage_of(config))
    changed = {key for group in groups for key in (f"{group.norm}.weight", *group.matrices)}
    family = family_of(config)
    for name in {*family.image_stages, *family.video_stages} - {"encode_image"}:
        assert changed.isdisjoint(stage_of(config, name).tensors), name


def test_a_norm_that_also_goes_elsewhere_is_left_alone() -> None:
    """What memory attention's first norm makes is also what attention mixes."""
    stage = stage_of(SAM2, "begin_frame")
    assert any("norm1.weight" in key for key in stage.tensors)
    assert not any(group.norm.endswith("norm1") for group in normed_linears(stage))


@pytest.mark.parametrize("key", ["norm2.weight", "norm2.bias", "mlp.layers.0.weight"])
def test_a_tensor_that_is_read_elsewhere_is_left_alone(key: str) -> None:
    """Another weight of the graph is made of it."""
    stage, norm = stage_of(SAM2), f"{TRUNK}.3.norm2"
    last = stage.weights[-1]
    shared = replace(last, keys=(*last.keys, f"{TRUNK}.3.{key}"))
    changed = replace(stage, weights=(*stage.weights[:-1], shared))
    before, after = ([group.norm for group in normed_linears(each)] for each in (stage, changed))
    assert after == [other for other in before if other != norm]


@pytest.mark.parametrize("config", [SAM2, SAM1], ids=["sam2", "sam1"])
def test_largest_values_are_those_of_the_norm(config: Any) -> None:
    """Against the norm written out on the block's input, which the plain graph records."""
    plain = load_stage(config, "encode_image", config.image_size, "plain")
    weights = testing.lively_weights(plain.tensors)
    image = np.random.default_rng(0).standard_normal((1, 3, config.image_size, config.image_size))
    feeds = {"image": image.astype(np.float32)}

    def run(stage: Any) -> dict[str, np.ndarray]:
        session = Session(stage, weights.__getitem__, find_device("cpu"), 1)
        return {name: value.numpy() for name, value in session.run(feeds).items()}

    blocks = TRUNK if config is SAM2 else "image_encoder.blocks"
    norms = [f"{blocks}.{block}.norm1" for block in (1, 2)]
    made = watched(stage_of(config), norms)
    assert made.outputs == tuple(norms)
    assert not any(f"{blocks}.3." in key for key in made.tensors)  # behind the last of them
    found, steps = run(made), run(plain)
    for block, norm in zip((1, 2), norms, strict=True):
        x = steps[f"{blocks}.{block - 1}"].reshape(-1, len(found[norm])).astype(np.float64)
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-6)
        expected = np.abs(x * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]).max(axis=0)
        np.testing.assert_allclose(found[norm], expected, rtol=1e-3)
