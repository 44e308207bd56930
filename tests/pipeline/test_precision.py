"""The setting `precision`: what it allows, what "auto" means, and graphs of their own in the cache."""

from __future__ import annotations

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.errors import InputError
from masklet.families.family import CONFIG_KEY
from masklet.io.safetensors import write_safetensors
from masklet.runtime import cache, session

CONFIG = testing.tiny_config(image_size=64)


def written(path, change):
    """A checkpoint whose matrices went through `change`."""
    weights = testing.stand_in_weights(CONFIG)
    tensors = {key: change(value) if value.ndim > 1 else value for key, value in weights.items()}
    write_safetensors(path, tensors, {CONFIG_KEY: CONFIG.to_json()})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return written(tmp_path_factory.mktemp("model") / "f32.safetensors", lambda value: value)


def clicked(path, precision):
    predictor = masklet.ImagePredictor(masklet.load(path, precision=precision, threads=1))
    predictor.set_image(testing.synthetic_scene(3, (60, 90)).image)
    masks, *_ = predictor.predict([[45, 30]], [1])
    return masks


def test_unknown_words_are_refused_with_what_is_allowed(checkpoint):
    with pytest.raises(InputError, match="'f8'; allowed is f32, f16, int8, auto"):
        masklet.load(checkpoint, precision="f8")


@pytest.mark.parametrize("setting", [{"device": "cuda"}, {"dialect": "portable"}])
def test_8_bits_are_for_the_cpu_and_the_engines_own_operators(checkpoint, setting):
    with pytest.raises(InputError, match=f"'{next(iter(setting.values()))}'.*use precision 'f32'"):
        masklet.load(checkpoint, precision="int8", **setting)


@pytest.mark.parametrize("precision", ["f16", "int8"])
def test_masks_are_nearly_those_of_f32(checkpoint, precision):
    plain, got = clicked(checkpoint, "f32"), clicked(checkpoint, precision)
    assert (plain & got).sum() / (plain | got).sum() > 0.9


def test_auto_keeps_16_bits_where_the_file_has_no_more(checkpoint, tmp_path):
    half = written(tmp_path / "f16.safetensors", lambda value: value.astype(np.float16))
    assert masklet.load(half).precision == "f16"
    assert masklet.load(checkpoint).precision == "f32"
    assert masklet.load(half, precision="f32").precision == "f32"
    np.testing.assert_array_equal(clicked(half, "auto"), clicked(half, "f32"))


def test_the_engine_keeps_16_bit_weights_as_they_are(checkpoint, monkeypatch, tmp_path):
    """Its optimizers would widen them for good, and f16 would need more memory than f32."""
    onnx = pytest.importorskip("onnx")
    plain, path = session.session_options, tmp_path / "optimised.onnx"

    def options(threads):
        made = plain(threads)
        made.optimized_model_filepath = str(path)
        return made

    monkeypatch.setattr(session, "session_options", options)
    masklet.load(checkpoint, precision="f16", threads=1).session("encode_image")
    graph = onnx.load(path, load_external_data=False).graph
    count = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for tensor in graph.initializer:
        if tensor.data_type in count:
            count[tensor.data_type] += int(np.prod(tensor.dims))
    assert count[onnx.TensorProto.FLOAT] < 0.1 * count[onnx.TensorProto.FLOAT16]


def test_each_precision_has_graphs_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("MASKLET_CACHE", str(tmp_path))
    made = {
        kind: cache.load_stage(CONFIG, "encode_image", 64, "fused", kind) for kind in ("f32", "f16", "int8")
    }
    assert len(cache.entries()) == len({stage.onnx for stage in made.values()}) == 3
    for kind, stage in made.items():
        assert cache.load_stage(CONFIG, "encode_image", 64, "fused", kind) == stage


def test_exports_are_f32_whatever_the_precision(checkpoint):
    model = masklet.load(checkpoint, precision="int8")
    assert model.make_stage("encode_image", "portable") == masklet.load(checkpoint).make_stage(
        "encode_image", "portable"
    )
