"""An exported folder: complete, described, all or nothing, never at other files' cost; the page runs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import masklet
from masklet import testing
from masklet.errors import InputError, OutputError
from masklet.io import atomic
from masklet.pipeline import export as export_module
from masklet.pipeline.export import export
from masklet.pipeline.postprocess import resize_logits

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
FILES = ["decode_masks.onnx", "encode_image.onnx", "encode_mask.onnx", "encode_points.onnx", "manifest.json"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    testing.write_stand_in(path, testing.tiny_config())
    return masklet.load(path, threads=1)


def written(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_files_and_manifest(model, tmp_path):
    told = []
    manifest_path = export(model, tmp_path / "out", on_stage=told.append)
    assert manifest_path == tmp_path / "out" / "manifest.json"
    assert list(written(tmp_path / "out")) == FILES
    manifest = json.loads(manifest_path.read_text())
    assert told == [stage["name"] for stage in manifest["stages"]]
    for stage in manifest["stages"]:
        content = (tmp_path / "out" / stage["file"]).read_bytes()
        assert stage["bytes"] == len(content)
        assert stage["sha256"] == hashlib.sha256(content).hexdigest()
        for port in stage["inputs"] + stage["outputs"]:
            assert port["meaning"]
            assert {size for size in port["shape"] if isinstance(size, str)} <= manifest["sizes"].keys()
    assert [port["name"] for port in manifest["stages"][0]["outputs"]] == ["stride4", "stride8", "embedding"]
    assert (manifest["family"], manifest["version"], manifest["image_size"]) == ("sam2", "2.1", 128)
    assert manifest["source"] == "tiny.safetensors"
    assert manifest["model"] is manifest["licence"] is None  # a network of our own
    assert manifest["preprocessing"]["mean"] == [0.485, 0.456, 0.406]


def test_a_published_network_has_its_name_and_licence(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "preset_name", lambda config: "sam2.1_hiera_tiny")
    manifest = json.loads(export(model, tmp_path / "out", stages=["encode_points"]).read_text())
    assert (manifest["model"], manifest["licence"]) == ("sam2.1_hiera_tiny", "Apache-2.0")


def test_tracking_stages(model, tmp_path):
    manifest = json.loads(export(model, tmp_path / "out", video=True).read_text())
    ports = {stage["name"]: stage for stage in manifest["stages"]}
    assert list(ports)[4:] == [
        "begin_frame",
        "attend_memory",
        "encode_memory",
        "point_to_object",
        "shrink_mask",
    ]
    assert "stride16" in [port["name"] for port in ports["encode_image"]["outputs"]]
    for stage in ports.values():
        for port in stage["inputs"] + stage["outputs"]:
            assert {size for size in port["shape"] if isinstance(size, str)} <= manifest["sizes"].keys()
    assert manifest["tracking"]["absent_logit"] == -1024


def test_another_input_size(tmp_path):
    testing.write_stand_in(tmp_path / "tiny.safetensors", testing.tiny_config())
    model = masklet.load(tmp_path / "tiny.safetensors", image_size=160, threads=1)
    manifest = json.loads(export(model, tmp_path / "out", stages=["encode_image"]).read_text())
    assert manifest["image_size"] == 160
    assert manifest["stages"][0]["inputs"][0]["shape"] == [1, 3, 160, 160]


def test_some_stages(model, tmp_path):
    export(model, tmp_path / "out", stages=["decode_masks", "encode_points"])
    assert list(written(tmp_path / "out")) == ["decode_masks.onnx", "encode_points.onnx", "manifest.json"]


@pytest.mark.parametrize("stages", [["decode"], []])
def test_unknown_stages_are_refused(model, tmp_path, stages):
    with pytest.raises(InputError, match="encode_image, encode_points, encode_mask, decode_masks"):
        export(model, tmp_path / "out", stages=stages)
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------ folders that exist


def test_an_empty_folder_is_used(model, tmp_path):
    export(model, tmp_path, stages=["encode_points"])
    assert list(written(tmp_path)) == ["encode_points.onnx", "manifest.json"]


def test_an_earlier_export_is_replaced_only_on_request(model, tmp_path):
    export(model, tmp_path, stages=["encode_points", "encode_mask"])
    before = written(tmp_path)
    with pytest.raises(OutputError, match=r"not empty.*--overwrite"):
        export(model, tmp_path, stages=["encode_points"])
    assert written(tmp_path) == before
    export(model, tmp_path, stages=["encode_points"], overwrite=True)
    assert list(written(tmp_path)) == ["encode_points.onnx", "manifest.json"]


@pytest.mark.parametrize("foreign", ["thesis.txt", "sub/photo.jpg", "model.onnx", "manifest.json"])
def test_other_peoples_files_are_never_replaced(model, tmp_path, foreign):
    path = tmp_path / foreign
    path.parent.mkdir(exist_ok=True)
    path.write_text("precious")
    with pytest.raises(OutputError, match="Nothing was deleted"):
        export(model, tmp_path, stages=["encode_points"], overwrite=True)
    assert path.read_text() == "precious"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["notes.txt", "my_own.onnx", "encode_mask.onnx"])
def test_a_file_beside_an_export_protects_the_folder(model, tmp_path, name):
    export(model, tmp_path, stages=["encode_points"])
    (tmp_path / name).write_text("precious")
    with pytest.raises(OutputError, match=re.escape(name)):
        export(model, tmp_path, stages=["encode_points"], overwrite=True)
    assert (tmp_path / name).read_text() == "precious"


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"format": 1}', '{"format": "masklet-export-1", "stages": 3}', "[" * 9999]
)
def test_a_manifest_that_is_none_of_ours_protects_the_folder(model, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(OutputError, match=r"it holds manifest\.json"):
        export(model, tmp_path, stages=["encode_points"], overwrite=True)
    assert (tmp_path / "manifest.json").read_text() == text


def test_a_file_in_the_place_of_the_folder(model, tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(OutputError, match="it is a file"):
        export(model, tmp_path / "out", overwrite=True)


def test_a_folder_in_a_folder_that_is_not_there(model, tmp_path):
    with pytest.raises(OutputError, match="does not exist; create it first"):
        export(model, tmp_path / "missing" / "out")
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------- interruptions


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def ctrl_c(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("fail", "expected"), [(full_disk, OutputError), (ctrl_c, KeyboardInterrupt)])
@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_half_written_stays(model, tmp_path, monkeypatch, fail, expected, overwrite):
    folder = tmp_path / "out"
    if overwrite:
        export(model, folder, stages=["encode_mask"])
    before = written(folder) if overwrite else None
    count, fsync = [], os.fsync

    def later(number):
        count.append(number)
        return fail() if len(count) == 2 else fsync(number)

    monkeypatch.setattr(export_module.os, "fsync", later)
    with pytest.raises(expected):
        export(model, folder, stages=["encode_points", "encode_mask"], overwrite=overwrite)
    assert len(count) == 2
    assert written(folder) == before if overwrite else not folder.exists()


def test_the_manifest_comes_last(model, tmp_path, monkeypatch):
    moved, replace = [], os.replace

    def watched(source, target):
        moved.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", watched)
    export(model, tmp_path / "out")
    assert sorted(moved) == FILES
    assert moved[-1] == "manifest.json"


def test_a_full_disk_is_said_so(model, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module.os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"out.*the disk .* is full"):
        export(model, tmp_path / "out", stages=["encode_points"])


# ---------------------------------------------------------------------------------------- the page


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def expected_answer(model, image):
    predictor = masklet.ImagePredictor(model)
    predictor.set_image(image)
    masks, ious, _ = predictor.predict([[500, 375]], [1])
    return masks[ious.argmax()], ious.max()


@pytest.fixture
def workplace(model, tmp_path, monkeypatch):
    """A folder with an export and a photograph, as the page supposes."""
    export(model, tmp_path / "exported")
    image = testing.synthetic_scene(3, (480, 640)).image
    Image.fromarray(image).save(tmp_path / "photo.jpg", quality=95)
    monkeypatch.chdir(tmp_path)
    return np.asarray(Image.open("photo.jpg").convert("RGB"))


def test_the_pages_example_gives_our_mask(model, workplace):
    space: dict = {}
    exec(compile(blocks()[0], str(PAGE), "exec"), space)
    mask, iou = expected_answer(model, workplace)
    assert 0.01 < mask.mean() < 0.99
    assert (np.asarray(Image.open("mask.png")) == mask).mean() > 0.9999
    assert space["answer"]["iou"][0, space["best"]] == pytest.approx(iou, abs=1e-5)


def test_the_pages_example_on_openvino(model, workplace):
    pytest.importorskip("openvino")
    example, on_openvino, _ = blocks()
    body, rest = example.split("# Encode the picture", 1)
    exec(compile(body + on_openvino + "# Encode the picture" + rest, str(PAGE), "exec"), {})
    mask, _ = expected_answer(model, workplace)
    assert (np.asarray(Image.open("mask.png")) == mask).mean() > 0.9999


def test_the_pages_tracking_gives_our_logits(model, tmp_path, monkeypatch):
    export(model, tmp_path / "exported", video=True)
    size = model.image_size  # nothing to resize: pictures and frames are resized in different ways
    image = testing.synthetic_scene(3, (size, size)).image
    monkeypatch.chdir(tmp_path)
    Image.fromarray(image).save("photo.png")
    click, _, tracking = (block.replace("photo.jpg", "photo.png") for block in blocks())
    space: dict = {}
    exec(compile(click.replace("x, y = 500, 375", "x, y = 60, 50") + tracking, str(PAGE), "exec"), space)

    predictor = masklet.VideoPredictor(model, fill_hole_area=0)
    state = predictor.init_state([image] * 16)
    predictor.add_new_points_or_box(state, 0, 1, points=[[60, 50]], labels=[1])
    *_, (index, _, logits) = predictor.propagate_in_video(state, max_frame_num_to_track=1)
    answer = space["answer"]
    chosen = answer["logits"][:, 1 + answer["iou"][0, 1:].argmax()]
    chosen = np.where(answer["object_score"][..., None] > 0, chosen, -1024)
    assert index == 1
    np.testing.assert_allclose(resize_logits(chosen, (size, size)), logits[:, 0], atol=2e-4)
