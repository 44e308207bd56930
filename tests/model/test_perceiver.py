"""EdgeTAM's memory: the perceiver against its sums written out, and its tokens' places in attention."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from masklet import testing
from masklet.errors import InputError
from masklet.families.edgetam import FAMILY
from masklet.model import derive
from masklet.model.tokens import MemoryPlaces
from masklet.runtime.devices import find_device
from masklet.runtime.graph import write_stage
from masklet.runtime.session import Session

RELATIVE = 2e-5  # of the largest value: float32 sums in another order, through a whole network
SIZE = 128
CONFIG = testing.tiny_edgetam_config(SIZE)
GRID, SIDE = SIZE // 16, math.isqrt(CONFIG.latents_2d)


@cache
def session(config, name, dialect="fused"):
    stage = write_stage(config, name, config.image_size, dialect)
    weights = testing.lively_weights(stage.tensors)
    return Session(stage, weights.__getitem__, find_device("cpu"), 1)


def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(got, expected, name):
    assert got.shape == expected.shape, name
    np.testing.assert_allclose(got, expected, rtol=0, atol=RELATIVE * np.abs(expected).max(), err_msg=name)


def masked(batch):
    return {
        "frame_pixels": normal(1, GRID**2, CONFIG.d_model, seed=0),
        "mask_logits": 5 * normal(batch, 1, SIZE // 4, SIZE // 4, seed=1),
        "binary": np.array([False]),
        "object_score": np.ones((batch, 1), np.float32),
    }


# ---------------------------------------------------------------------------------------------- the perceiver


class Written:
    """The reference's perceiver for one memory (T, M), in float64: tokens in the picture, then windows."""

    def __init__(self, config):
        stage = write_stage(config, "encode_memory", config.image_size, "plain")
        weights = testing.lively_weights(stage.tensors)
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.config = config

    def get(self, name):
        return self.weights[f"spatial_perceiver.{name}"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
        return x * self.get(f"{name}.weight") + self.get(f"{name}.bias")

    def attended(self, name, latents, x, position=0.0):
        q = latents @ self.get(f"{name}.to_q.weight").T
        k, v = np.split(x @ self.get(f"{name}.to_kv.weight").T, 2, axis=-1)
        scores = q @ (k + position).T / math.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares = shares / shares.sum(-1, keepdims=True)
        return shares @ (v + position) @ self.get(f"{name}.to_out.weight").T

    def fed(self, x, name):
        y = self.norm(x, f"{name}.0") @ self.get(f"{name}.1.weight").T
        y = 0.5 * y * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        return x + y @ self.get(f"{name}.3.weight").T

    def through(self, latents, x, position=0.0):
        for layer in range(self.config.perceiver_layers):
            name = f"layers.{layer}"
            queries, tokens = (
                self.norm(latents, f"{name}.attn.norm_latents"),
                self.norm(x, f"{name}.attn.norm_x"),
            )
            latents = latents + self.attended(f"{name}.attn", queries, tokens, position)
            latents = self.fed(latents, f"{name}.ff")
            itself = self.norm(latents, f"{name}.self_attn.norm")
            latents = latents + self.attended(f"{name}.self_attn", itself, itself)
            latents = self.fed(latents, f"{name}.self_ff")
        return self.norm(latents, "norm")

    def __call__(self, memory):
        channels = memory.shape[-1]
        settings = {"grid": [GRID, GRID], "block": 0, "channels": channels, "scale": 1.0}
        everywhere = self.through(self.get("latents"), memory, derive.sine_position(**settings))
        picture, step, inside = memory.reshape(GRID, GRID, channels), GRID // SIDE, []
        for index, latent in enumerate(self.get("latents_2d")):
            row, column = (step * place for place in divmod(index, SIDE))
            window = picture[row : row + step, column : column + step].reshape(-1, channels)
            inside.append(self.through(latent[None], window)[0])
        return np.concatenate([everywhere, np.stack(inside)])


@pytest.mark.parametrize("batch", [1, 3])
def test_the_perceiver_equals_its_sums_written_out(batch):
    """On what SAM 2's memory encoder makes of the same weights."""
    features = (
        session(testing.tiny_config("2.0", SIZE), "encode_memory").run(masked(batch))["memories"].numpy()
    )
    assert features.shape == (batch, GRID**2, CONFIG.memory_dim)
    written = Written(CONFIG)
    expected = np.stack([written(memory.astype(np.float64)) for memory in features])
    for dialect in ("plain", "portable", "fused"):
        got = session(CONFIG, "encode_memory", dialect).run(masked(batch))["memories"].numpy()
        assert got.shape == (batch, CONFIG.latents + CONFIG.latents_2d, CONFIG.memory_dim)
        assert_close(got, expected, dialect)


def test_a_size_that_windows_do_not_divide():
    with pytest.raises(InputError, match=r"image_size is 96.*multiple of 64 pixels"):
        write_stage(CONFIG, "encode_memory", 96, "fused")


# ------------------------------------------------------------------------------------------- in the attention


def test_tokens_without_a_place_have_no_position():
    places = MemoryPlaces((3, 2), placeless=4)
    assert places.count == 10
    settings = {"grid": [3, 2], "block": 0, "channels": 8}
    for recipe, still, more in (
        ("sine_position", 0.0, {"scale": 1.0}),
        ("rotary_cos", 1.0, {}),
        ("rotary_sin", 0.0, {}),
    ):
        table = derive.compute(recipe, [], {**settings, **more, "placeless": 4})
        assert (table[:4] == still).all()
        np.testing.assert_array_equal(table[4:], derive.compute(recipe, [], {**settings, **more}))


def attended(dialect, batch=2, count=3, pointers=2, **changed):
    stride16 = normal(1, GRID**2, CONFIG.d_model, seed=0)
    frame = session(CONFIG, "begin_frame", dialect).run({"stride16": stride16})
    feeds = {
        "frame_tokens": frame["frame_tokens"],
        "frame_queries": frame["frame_queries"],
        "memories": normal(batch, count, CONFIG.memory_places(SIZE).count, CONFIG.memory_dim, seed=1),
        "slots": np.random.default_rng(2).integers(0, 7, (batch, count)),
        "pointers": normal(batch, pointers, CONFIG.d_model, seed=3),
        **changed,
    }
    return session(CONFIG, "attend_memory", dialect).run(feeds)["embedding"].numpy()


@pytest.mark.parametrize("counts", [(1, 1, 0), (2, 3, 2), (3, 7, 16)], ids=str)
def test_memory_attention_agrees(counts):
    plain = attended("plain", *counts)
    assert plain.shape == (counts[0], GRID**2, CONFIG.d_model)
    for dialect in ("portable", "fused"):
        assert_close(attended(dialect, *counts), plain, dialect)


def test_only_places_tell_tokens_apart():
    """Of one memory's tokens those without a place may change places, the others not."""
    memories = normal(2, 3, CONFIG.memory_places(SIZE).count, CONFIG.memory_dim, seed=1)
    before = attended("fused")
    for tokens, matters in ((slice(None, CONFIG.latents), False), (slice(CONFIG.latents, None), True)):
        turned = memories.copy()
        turned[:, 0, tokens] = memories[:, 0, tokens][:, ::-1]
        change = np.abs(attended("fused", memories=turned) - before).max() / np.abs(before).max()
        assert (change > 1e-3) if matters else (change < RELATIVE)


def test_the_family_has_all_stages_of_tracking():
    for name in (*FAMILY.image_stages, *FAMILY.video_stages):
        assert write_stage(CONFIG, name, SIZE, "portable").outputs
