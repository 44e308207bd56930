"""A stage with its weights inside: valid, standard, and the same numbers in every engine."""

from __future__ import annotations

import numpy as np
import pytest

from masklet import testing
from masklet.errors import EngineError
from masklet.families.sam2 import IMAGE_STAGES
from masklet.runtime import export
from masklet.runtime.cache import load_stage
from masklet.runtime.devices import find_device
from masklet.runtime.export import Port, ports, standalone
from masklet.runtime.session import Session, resolve

SIZE = 128
RELATIVE = 2e-5  # of the largest value: engines sum in their own order


@pytest.fixture(scope="module")
def stages():
    return {name: load_stage(testing.tiny_config(), name, SIZE, "portable") for name in IMAGE_STAGES}


@pytest.fixture(scope="module")
def weights(stages):
    return testing.lively_weights({key: s for stage in stages.values() for key, s in stage.tensors.items()})


@pytest.fixture(scope="module")
def files(stages, weights):
    properties = {"made.by": "a test"}
    return {name: content(stage, weights, properties) for name, stage in stages.items()}


def content(stage, weights, properties) -> bytes:
    return b"".join(standalone(stage, weights.__getitem__, properties))


def answers(run) -> dict[str, np.ndarray]:
    """All stages in a row for two objects of three points and a mask; `run` takes a stage and its inputs."""
    rng = np.random.default_rng(0)
    features = run("encode_image", {"image": rng.standard_normal((1, 3, SIZE, SIZE)).astype(np.float32)})
    coords = rng.uniform(0, SIZE, (2, 3, 2)).astype(np.float32)
    points = run("encode_points", {"coords": coords, "labels": np.array([[2, 3, -1], [1, 0, -1]])})
    masked = run("encode_mask", {"mask": rng.normal(0, 5, (1, 1, SIZE // 4, SIZE // 4)).astype(np.float32)})
    feeds = {name: features[name] for name in ("stride4", "stride8", "embedding")} | {
        "sparse": points["sparse"]
    }
    without = run("decode_masks", {**feeds, "dense": points["dense"]})
    with_mask = run("decode_masks", {**feeds, "dense": masked["dense"]})
    with_mask = {f"{name} with mask": value for name, value in with_mask.items()}
    return {**features, **points, "dense of mask": masked["dense"], **without, **with_mask}


def check(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name].shape == value.shape, name
        limit = RELATIVE * np.abs(value).max()
        np.testing.assert_allclose(got[name], value, rtol=0, atol=limit, err_msg=name)


@pytest.fixture(scope="module")
def expected(stages, weights):
    sessions = {
        name: Session(stage, weights.__getitem__, find_device("cpu"), 1) for name, stage in stages.items()
    }
    return answers(lambda name, feeds: {k: v.numpy() for k, v in sessions[name].run(feeds).items()})


@pytest.mark.parametrize("name", IMAGE_STAGES)
def test_files_are_valid_and_standard(files, name):
    import onnx

    model = onnx.ModelProto.FromString(files[name])
    onnx.checker.check_model(model, full_check=True)
    assert {imported.domain for imported in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    assert {entry.key: entry.value for entry in model.metadata_props} == {"made.by": "a test"}


def test_plain_onnxruntime_gives_our_numbers(files, expected):
    import onnxruntime

    sessions = {name: onnxruntime.InferenceSession(content) for name, content in files.items()}

    def run(name, feeds):
        names = [output.name for output in sessions[name].get_outputs()]
        return dict(zip(names, sessions[name].run(None, feeds), strict=True))

    check(answers(run), expected)


def test_openvino_gives_our_numbers(files, expected):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = {
        name: core.compile_model(core.read_model(content), "CPU", settings) for name, content in files.items()
    }

    def run(name, feeds):
        return {output.get_any_name(): np.array(value) for output, value in compiled[name](feeds).items()}

    check(answers(run), expected)


def test_ports_have_numbers_and_named_sizes(stages):
    inputs, outputs = ports(stages["decode_masks"])
    assert inputs == (
        Port("stride4", "float32", (1, 1024, 8)),
        Port("stride8", "float32", (1, 256, 16)),
        Port("embedding", "float32", ("E", 64, 64)),
        Port("sparse", "float32", ("B", "N", 64)),
        Port("dense", "float32", ("D", "P", 64)),
    )
    assert outputs == (
        Port("logits", "float32", ("B", 4, 32, 32)),
        Port("iou", "float32", ("B", 4)),
        Port("object_score", "float32", ("B", 1)),
        Port("tokens", "float32", ("B", 4, 64)),
    )
    inputs, _ = ports(stages["encode_points"])
    assert inputs[1] == Port("labels", "int64", ("B", "N"))


def test_equal_models_make_equal_files(stages, weights, files):
    assert content(stages["decode_masks"], weights, {"made.by": "a test"}) == files["decode_masks"]


def test_operators_of_one_engine_are_refused(weights):
    fused = load_stage(testing.tiny_config(), "encode_image", SIZE, "fused")
    with pytest.raises(EngineError, match="'encode_image' uses operators beyond the ONNX standard"):
        content(fused, weights, {})


def test_more_than_one_file_can_hold_is_refused(stages, weights, monkeypatch):
    monkeypatch.setattr(export, "FILE_LIMIT", 100_000)
    with pytest.raises(EngineError, match=r"'decode_masks' takes \d+ bytes with its weights"):
        content(stages["decode_masks"], weights, {})


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 2**14, 2**31 - 1])
def test_pieces_are_what_protobuf_would_write(size):
    from onnx import TensorProto

    if size <= 2**14:
        assert export._field(9, size) + bytes(size) == TensorProto(raw_data=bytes(size)).SerializeToString()
    else:
        assert export._field(9, size) == bytes([9 << 3 | 2, 0xFF, 0xFF, 0xFF, 0xFF, 0x07])


def test_a_file_is_what_protobuf_would_write(stages, weights, files):
    """The same message, built as a whole."""
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto.FromString(files["decode_masks"])
    assert len(model.SerializeToString()) == len(files["decode_masks"])
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for weight in stages["decode_masks"].weights:
        np.testing.assert_array_equal(values[weight.name], resolve(weight, weights.__getitem__))
