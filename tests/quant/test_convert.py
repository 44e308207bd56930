"""Files in fewer bits: the same as the gguf package would write and read, and whole or not there at all."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader
from gguf.quants import dequantize, quantize

import masklet
from masklet import testing
from masklet.errors import CorruptFileError, InputError, OutputError, UnknownFormatError
from masklet.families.family import CONFIG_KEY
from masklet.families.keymaps import Tensors, canonical
from masklet.families.short_names import lengthened
from masklet.io.checkpoints import open_checkpoint
from masklet.io.safetensors import write_safetensors
from masklet.io.tensor_table import BLOCKS
from masklet.io.torch_file import write_torch_file
from masklet.quant import convert
from masklet.quant.convert import SOURCE_KEY
from masklet.quant.exact import TYPES, choose

CONFIG = testing.tiny_config()
SIZE = 64


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return testing.stand_in_weights(CONFIG)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, np.ndarray]) -> Path:
    path = tmp_path_factory.mktemp("source") / "tiny.safetensors"
    unread = {"no_mem_pos_enc": np.ones((1, 1, 64), np.float32)}
    write_safetensors(path, {**weights, **unread}, {CONFIG_KEY: CONFIG.to_json()})
    return path


def tensors_of(path: Path) -> Tensors:
    return canonical(open_checkpoint(path))


def masks(path: Path) -> np.ndarray:
    predictor = masklet.ImagePredictor(masklet.load(path, threads=1, image_size=SIZE))
    scene = testing.synthetic_scene(seed=3, size_hw=(48, 64))
    predictor.set_image(scene.image)
    found = [predictor.predict(point_coords=[xy], point_labels=[1])[0] for xy in scene.points_xy]
    return np.concatenate(found)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one & other).sum() + 1) / ((one | other).sum() + 1))


# --------------------------------------------------------------------------------------- what is in the files


@pytest.mark.parametrize("dtype", TYPES)
def test_files_are_those_of_the_package(
    source: Path, tmp_path: Path, weights: dict[str, np.ndarray], dtype: str
) -> None:
    """Its reader finds what its quantiser makes; ours finds what its dequantiser makes, bit for bit."""
    report = convert.quantize(source, tmp_path / "out.gguf", dtype)
    choices = choose({key: array.shape for key, array in weights.items()}, dtype)
    reader = GGUFReader(tmp_path / "out.gguf")
    tensors = tensors_of(tmp_path / "out.gguf")
    assert tensors.shapes.keys() == weights.keys() == {tensor.key for tensor in report.tensors}
    assert len(reader.tensors) == len(weights)
    for told in reader.tensors:
        key, kind = lengthened(told.name), told.tensor_type
        assert kind.name.lower() == choices[key].dtype == tensors.stored(key)
        expected = quantize(weights[key], kind)
        assert told.data.tobytes() == expected.tobytes()
        assert tuple(reversed(told.shape.tolist())) == weights[key].shape
        restored = dequantize(np.frombuffer(told.data.tobytes(), np.uint8), kind)
        assert tensors.array(key).tobytes() == restored.tobytes()
    assert sum(choice.dtype == dtype for choice in choices.values()) > 80


def test_what_a_file_says_of_itself(source: Path, tmp_path: Path) -> None:
    convert.quantize(source, tmp_path / "out.gguf", "q8_0")
    fields = {name: field.contents() for name, field in GGUFReader(tmp_path / "out.gguf").fields.items()}
    assert fields["general.architecture"] == "masklet"
    assert fields["general.file_type"] == 7
    assert fields["general.quantization_version"] == 2
    assert fields[CONFIG_KEY] == CONFIG.to_json()
    assert fields[SOURCE_KEY] == hashlib.sha256(source.read_bytes()).hexdigest()
    with open_checkpoint(tmp_path / "out.gguf") as checkpoint:
        assert checkpoint.metadata[CONFIG_KEY] == CONFIG.to_json()
        assert canonical(checkpoint).layout == "short"


def test_the_same_input_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    contents = []
    for name in ("1.gguf", "2.gguf"):
        convert.quantize(source, tmp_path / name, "q4_1")
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_safetensors_files(source: Path, tmp_path: Path, weights: dict[str, np.ndarray], dtype: str) -> None:
    convert.quantize(source, tmp_path / "a.safetensors", dtype)
    convert.quantize(source, tmp_path / "a.gguf", dtype)
    ours, same = tensors_of(tmp_path / "a.safetensors"), tensors_of(tmp_path / "a.gguf")
    assert ours.shapes == same.shapes
    assert all(np.array_equal(ours.array(key), same.array(key)) for key in weights)
    assert all(ours.stored(key) == same.stored(key) for key in weights)
    with open_checkpoint(tmp_path / "a.safetensors") as checkpoint:
        assert checkpoint.metadata.keys() == {CONFIG_KEY, SOURCE_KEY}


def test_any_input_gives_the_same_weights(
    source: Path, tmp_path: Path, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(masklet.families.sam2.PRESETS, "small", CONFIG)  # a torch file does not say
    write_torch_file(tmp_path / "in.pt", weights)
    convert.quantize(tmp_path / "in.pt", tmp_path / "1.gguf", "q8_0")
    convert.quantize(source, tmp_path / "2.gguf", "q8_0")
    convert.quantize(source, tmp_path / "exact.gguf", "f16", keep=["*"])
    convert.quantize(tmp_path / "exact.gguf", tmp_path / "3.gguf", "q8_0")
    first, *others = (tensors_of(tmp_path / name) for name in ("1.gguf", "2.gguf", "3.gguf"))
    for other in others:
        assert all(np.array_equal(first.array(key), other.array(key)) for key in weights)


@pytest.mark.parametrize(
    "config",
    [testing.tiny_config("2.0"), testing.tiny_sam1_config(), testing.tiny_edgetam_config()],
    ids=lambda config: config.family,
)
def test_every_family(tmp_path: Path, config: Any) -> None:
    testing.write_stand_in(tmp_path / "in", config)
    convert.quantize(tmp_path / "in", tmp_path / "out.gguf", "q8_0")
    assert iou(masks(tmp_path / "out.gguf"), masks(tmp_path / "in")) > 0.9
    assert masklet.load(tmp_path / "out.gguf").config == config


def test_masks_change_with_the_type(source: Path, tmp_path: Path) -> None:
    expected = masks(source)
    assert 0.05 < expected.mean() < 0.95
    for dtype, least in (("f16", 0.995), ("q8_0", 0.95), ("q4_0", 0.5)):
        convert.quantize(source, tmp_path / "out.gguf", dtype)
        assert iou(masks(tmp_path / "out.gguf"), expected) > least


# ------------------------------------------------------------------------------------------------- the report


def test_errors_are_those_of_the_file(source: Path, tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    steps = []
    report = convert.quantize(
        source, tmp_path / "out.gguf", "q4_0", on_tensor=lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, len(weights)) for done in range(1, len(weights) + 1)]
    assert report.left_out == ("no_mem_pos_enc",)
    assert (report.source_bytes, report.target_bytes) == (
        source.stat().st_size,
        (tmp_path / "out.gguf").stat().st_size,
    )
    tensors = tensors_of(tmp_path / "out.gguf")
    for told in report.tensors:
        moved = weights[told.key].astype(np.float64) - tensors.array(told.key)
        expected = np.linalg.norm(moved) / np.linalg.norm(weights[told.key].astype(np.float64))
        assert told.error == pytest.approx(expected, rel=1e-4)
        assert told.largest == pytest.approx(np.abs(moved).max(), rel=1e-4)
    assert sum(told.nbytes for told in report.tensors) < report.target_bytes
    worst = report.worst()
    assert len(worst) == 10
    assert worst[0].error == max(told.error for told in report.tensors)
    assert {told.dtype for told in worst} == {"q4_0"}


def test_values_that_f16_cannot_hold(source: Path, tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    key = "memory_attention.layers.0.linear1.weight"
    large = weights[key].copy()
    large[0, 0] = 70_000
    path = tmp_path / "in"
    write_safetensors(path, {**weights, key: large}, {CONFIG_KEY: CONFIG.to_json()})
    for dtype, stored in (("q8_0", "f32"), ("f16", "f32"), ("bf16", "bf16")):
        report = convert.quantize(path, tmp_path / "out.gguf", dtype)
        [told] = [told for told in report.tensors if told.key == key]
        assert told.dtype == stored
        assert ("beyond those of f16" in told.reason) == (stored == "f32")


def test_weights_that_vanish(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    """Values too small for any scale become zero, without a warning."""
    key = "memory_attention.layers.0.linear1.weight"
    small = {
        **weights,
        key: np.full_like(weights[key], 1e-40),
        f"{key[:-7]}.bias": 0 * weights[f"{key[:-7]}.bias"],
    }
    write_safetensors(tmp_path / "in", small, {CONFIG_KEY: CONFIG.to_json()})
    for dtype in BLOCKS:
        report = convert.quantize(tmp_path / "in", tmp_path / "out.gguf", dtype)
        assert not tensors_of(tmp_path / "out.gguf").array(key).any()
        assert next(told.error for told in report.tensors if told.key == key.replace("weight", "bias")) == 0


# -------------------------------------------------------------------------------------------------- bad input


def refused(folder: Path, kind: type[Exception], message: str, *arguments: Any, **settings: Any) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(kind, match=message):
        convert.quantize(*arguments, **settings)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_arguments_that_cannot_be_meant(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    refused(tmp_path, InputError, "allowed are f16", source, out, "q2_k")
    refused(tmp_path, InputError, "'nothing' fits none of", source, out, "q8_0", keep=["nothing"])
    refused(tmp_path, InputError, r"ends in \.gguf or \.safetensors", source, tmp_path / "out.pt", "f16")
    refused(
        tmp_path, InputError, r"cannot hold q8_0; give .*a\.gguf'", source, tmp_path / "a.safetensors", "q8_0"
    )
    refused(tmp_path, OutputError, "no' does not exist", source, tmp_path / "no" / "out.gguf", "f16")
    (tmp_path / "folder.gguf").mkdir()
    refused(tmp_path, OutputError, "it is a folder", source, tmp_path / "folder.gguf", "f16")


def test_the_input_is_not_overwritten(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    path.write_bytes(source.read_bytes())
    (tmp_path / "link.safetensors").symlink_to(path)
    os.link(path, tmp_path / "same.gguf")
    for target in ("in.safetensors", "link.safetensors", "same.gguf"):
        refused(tmp_path, InputError, "is the input itself", path, tmp_path / target, "f16")


def test_weights_that_are_not_finite(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    for value in (np.nan, np.inf, -np.inf):
        broken = {**weights, "no_obj_ptr": np.full_like(weights["no_obj_ptr"], value)}
        write_safetensors(tmp_path / "in", broken, {CONFIG_KEY: CONFIG.to_json()})
        for dtype in ("q8_0", "f16"):
            message = "'no_obj_ptr' has values that are not finite"
            refused(tmp_path, CorruptFileError, message, tmp_path / "in", tmp_path / "out.gguf", dtype)


def test_models_that_are_not_known(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "in", {"w": np.ones((32, 32), np.float32)})
    refused(
        tmp_path, UnknownFormatError, "in: not of a family", tmp_path / "in", tmp_path / "out.gguf", "f16"
    )


def test_a_name_that_does_not_fit(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    for name in ("x" * 64, "dec.weight"):  # too long; and what would come back as another
        write_safetensors(tmp_path / "in", {**weights, name: np.ones(3)}, {CONFIG_KEY: CONFIG.to_json()})
        refused(tmp_path, InputError, "cannot be named", tmp_path / "in", tmp_path / "out.gguf", "f16")


@pytest.mark.parametrize("name", ["out.gguf", "out.safetensors"])
def test_a_disk_without_room(source: Path, tmp_path: Path, name: str) -> None:
    """A real refusal by the operating system in the middle of a write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / name).write_bytes(b"kept")
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        refused(tmp_path, OutputError, "does not allow a file of that size", source, tmp_path / name, "f16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", ["out.gguf", "out.safetensors"])
def test_ctrl_c_leaves_what_was_there(source: Path, tmp_path: Path, name: str) -> None:
    def interrupt(done: int, total: int) -> None:
        if done == total // 2:
            raise KeyboardInterrupt

    (tmp_path / name).write_bytes(b"kept")
    with pytest.raises(KeyboardInterrupt):
        convert.quantize(source, tmp_path / name, "f16", on_tensor=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"kept"


def test_the_whole_of_a_damaged_input(source: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(source.read_bytes()[:-4])
    refused(tmp_path, CorruptFileError, "cut off", tmp_path / "in", tmp_path / "out.gguf", "q8_0")
