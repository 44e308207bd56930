"""Small networks and a short clip, shared by the tests of tracking and of automatic masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import masklet
from masklet import testing
from masklet.families.family import CONFIG_KEY
from masklet.io.safetensors import write_safetensors


@pytest.fixture(scope="session")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Files of stand-ins for tracking, 64 pixels, by version and bias of the object score."""
    folder, made = tmp_path_factory.mktemp("stand-ins"), {}

    def write(version: str = "2.1", object_score_bias: float = 2.0) -> Path:
        key = version, object_score_bias
        if key not in made:
            made[key] = folder / f"{version}_{object_score_bias}.safetensors"
            config = testing.tiny_config(version, image_size=64)
            testing.write_stand_in(made[key], config, object_score_bias=object_score_bias)
        return made[key]

    return write


@pytest.fixture(scope="session")
def tracking_model(stand_in: Callable[..., Path]) -> masklet.Model:
    """A model in which every object is there in every frame."""
    return masklet.load(stand_in(), threads=1)


@pytest.fixture(scope="session")
def wavering_model(stand_in: Callable[..., Path]) -> masklet.Model:
    """A model whose objects come and go: scores on both sides of zero."""
    return masklet.load(stand_in(object_score_bias=1.1), threads=1)


@pytest.fixture(scope="session")
def clip() -> testing.Clip:
    """30 frames of 48 x 64 pixels with four moving shapes."""
    return testing.synthetic_clip(0, 30, (48, 64))


@pytest.fixture(scope="session")
def searching_model(tmp_path_factory: pytest.TempPathFactory) -> masklet.Model:
    """A model whose masks depend on where the point is: with unit gains they are nearly the same for all."""
    config = testing.tiny_config(image_size=128)
    weights = testing.stand_in_weights(config, 5)
    for name, array in weights.items():
        if "mask_decoder.transformer" in name and name.endswith("q_proj.weight") and "self_attn" not in name:
            weights[name] = 8 * array
    path = tmp_path_factory.mktemp("searching") / "tiny.safetensors"
    write_safetensors(path, weights, {CONFIG_KEY: config.to_json()})
    return masklet.load(path, threads=1)
