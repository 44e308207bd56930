from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from masklet import testing
from masklet.families.family import CONFIG_KEY
from masklet.io.safetensors import write_safetensors

Command = Callable[..., Any]


@pytest.fixture
def here(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a model in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_checkpoint, "tiny.safetensors")
    return tmp_path


def test_the_summary(masklet: Command, here: Path) -> None:
    result = masklet("quantize", "tiny.safetensors", "q8.gguf", "--type", "q8_0")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert lines[0].startswith("file        q8.gguf (")
    assert lines[1].startswith("made of     tiny.safetensors (")
    assert lines[2].startswith("stored      q8_0: ")
    assert "rows that no block fits" in result.stdout
    assert "image_encoder.neck.convs.#.conv.weight (4)" in result.stdout
    table = lines[lines.index("The 10 tensors that changed most:") + 2 :]
    assert table[0].split() == ["tensor", "type", "relative", "error", "largest"]
    errors = [float(line.split()[2]) for line in table[1:]]
    assert len(errors) == 10
    assert errors == sorted(errors, reverse=True)
    assert sorted(path.name for path in here.iterdir()) == ["q8.gguf", "tiny.safetensors"]


def test_json(masklet: Command, here: Path) -> None:
    result = masklet(
        "quantize", "tiny.safetensors", "out.safetensors", "--type", "f16", "--keep", "no_*", "--json"
    )
    document = json.loads(result.stdout)
    assert document["bytes"] == (here / "out.safetensors").stat().st_size
    assert document["source_bytes"] == (here / "tiny.safetensors").stat().st_size
    told = {tensor["name"]: tensor for tensor in document["tensors"]}
    assert told["no_obj_ptr"] == {
        "name": "no_obj_ptr",
        "shape": [1, 64],
        "type": "f32",
        "bytes": 256,
        "error": 0.0,
        "largest_error": 0.0,
        "exact_because": "asked for",
    }
    assert told["memory_attention.layers.0.linear1.weight"]["type"] == "f16"
    assert told["memory_attention.layers.0.linear1.weight"]["exact_because"] is None
    assert len(document["worst"]) == 10
    assert document["left_out"] == []


def test_the_file_goes_where_a_checkpoint_goes(masklet: Command, here: Path) -> None:
    masklet("quantize", "tiny.safetensors", "q8.gguf", "--type", "q8_0")
    scene = testing.synthetic_scene(seed=3, size_hw=(120, 160))
    Image.fromarray(scene.image).save("scene.png")
    result = masklet("segment", "scene.png", "--point", "60,60", "--model", "q8.gguf", "--image-size", 64)
    assert result.exit_code == 0
    assert np.asarray(Image.open("scene-mask.png")).shape == (120, 160)
    assert masklet("quantize", "q8.gguf", "q4.gguf", "--type", "q4_0").exit_code == 0


def test_info_tells_the_types(masklet: Command, here: Path) -> None:
    masklet("quantize", "tiny.safetensors", "q4.gguf", "--type", "q4_1")
    report = json.loads(masklet("info", "q4.gguf", "--json", "--tensors").stdout)
    assert (report["format"], report["layout"], report["problem"]) == ("gguf", "short", None)
    assert report["dtypes"].keys() == {"q4_1", "f16", "f32"}
    assert sum(report["dtypes"].values()) == report["tensors"] == len(report["listed"])
    listed = {tensor["name"]: (tensor["type"], tensor["shape"]) for tensor in report["listed"]}
    assert listed["memory_attention.layers.0.linear1.weight"] == ("q4_1", [2048, 64])
    text = masklet("info", "q4.gguf", "--tensors", "--verify").stdout
    assert "layout      masklet's short tensor names" in text
    assert "dtypes      f32 (" in text
    assert ["memory_attention.layers.0.linear1.weight", "q4_1", "(2048,", "64)"] in map(
        str.split, text.splitlines()
    )
    assert "verified    the file carries no checksums" in text
    assert json.loads(masklet("info", "tiny.safetensors", "--json").stdout)["listed"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["out.gguf"], 2, "--type"),
        (["out.gguf", "--type", "q5_0"], 2, "give one of f16, bf16, q8_0, q4_1, q4_0"),
        (["out.bin", "--type", "f16"], 1, "ends in .gguf or .safetensors"),
        (["tiny.safetensors", "--type", "f16"], 1, "is the input itself"),
        (["out.safetensors", "--type", "q4_0"], 1, "cannot hold q4_0"),
        (["out.gguf", "--type", "f16", "--keep", "none.*"], 1, "'none.*' fits none"),
        (["no/out.gguf", "--type", "f16"], 1, "does not exist; create it first"),
    ],
)
def test_what_cannot_be_done(
    masklet: Command, here: Path, plain: Callable[[str], str], arguments: list[str], code: int, message: str
) -> None:
    content = (here / "tiny.safetensors").read_bytes()
    result = masklet("quantize", "tiny.safetensors", *arguments)
    assert result.exit_code == code
    assert message in plain(result.stderr)
    assert [path.name for path in here.iterdir()] == ["tiny.safetensors"]
    assert (here / "tiny.safetensors").read_bytes() == content


def test_a_model_that_does_not_run_is_not_written(masklet: Command, here: Path) -> None:
    config = testing.tiny_config()
    weights = testing.stand_in_weights(config)
    weights["sam_mask_decoder.other"] = np.ones((2, 2), np.float32)
    write_safetensors(here / "more", weights, {CONFIG_KEY: config.to_json()})
    result = masklet("quantize", "more", "out.gguf", "--type", "f16")
    assert result.exit_code == 1
    assert "not known: sam_mask_decoder.other" in result.stderr
    assert not (here / "out.gguf").exists()


def test_other_gguf_files_are_refused(masklet: Command, here: Path) -> None:
    content = b"GGUF\x03\x00\x00\x00" + bytes(8) + b"\x01" + bytes(7)
    content += (
        b"\x14" + bytes(7) + b"general.architecture" + b"\x08\x00\x00\x00" + b"\x05" + bytes(7) + b"llama"
    )
    (here / "llm.gguf").write_bytes(content)
    for command in (["quantize", "llm.gguf", "out.gguf", "--type", "f16"], ["info", "llm.gguf"]):
        result = masklet(*command)
        assert result.exit_code == 1
        assert "another architecture ('llama')" in result.stderr


# ------------------------------------------------------------------------------------------------ calibration


@pytest.fixture
def pictures(here: Path) -> Path:
    """A folder with two pictures, and what else is found in such folders."""
    folder = here / "pictures"
    folder.mkdir()
    for seed, suffix in enumerate(("png", "jpg")):
        Image.fromarray(testing.synthetic_scene(seed, (48, 64)).image).save(folder / f"{seed}.{suffix}")
    (folder / "notes.txt").write_text("none")
    (folder / ".hidden.png").write_text("none")
    return folder


def test_calibration(masklet: Command, here: Path, pictures: Path) -> None:
    arguments = ("--type", "f16", "--calibrate", "pictures")
    result = masklet("quantize", "tiny.safetensors", "out.safetensors", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert "calibrated  on 2 pictures; 12 norms and what follows them are smoothed" in lines
    assert "calibrated  for int8, on 2 pictures" in masklet("info", "out.safetensors").stdout.splitlines()
    assert "calibrated" not in masklet("info", "tiny.safetensors").stdout
    again = masklet("quantize", "tiny.safetensors", "again.safetensors", *arguments, "--json")
    assert json.loads(again.stdout)["calibrated_on"] == 2
    assert (here / "again.safetensors").read_bytes() == (here / "out.safetensors").read_bytes()
    Image.fromarray(testing.synthetic_scene(seed=3, size_hw=(48, 64)).image).save("scene.png")
    for precision in ("f32", "int8"):
        run = ("--model", "out.safetensors", "--image-size", 64, "--precision", precision)
        assert masklet("segment", "scene.png", "--point", "30,20", *run).exit_code == 0


def test_of_many_pictures_some_are_taken(
    masklet: Command, here: Path, pictures: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("masklet.apps.quantize.MOST_PICTURES", 3)
    for number in range(10, 15):
        shutil.copy(pictures / "0.png", pictures / f"{number}.png")
    seen: list[str] = []
    monkeypatch.setattr(
        "masklet.pipeline.calibrate.read_image",
        lambda path: seen.append(Path(path).name) or testing.synthetic_scene(0, (48, 64)).image,
    )
    masklet("quantize", "tiny.safetensors", "out.gguf", "--type", "q8_0", "--calibrate", "pictures")
    assert seen == ["0.png", "10.png", "12.png"]  # of 0, 1, 10, 11, 12, 13, 14


def test_the_profile_does_not_say_where_to_calibrate(masklet: Command, here: Path, pictures: Path) -> None:
    (here / "masklet.toml").write_text('precision = "int8"\n')
    arguments = ("--type", "f16", "--calibrate", "pictures")
    masklet("quantize", "tiny.safetensors", "profile.gguf", *arguments)
    (here / "masklet.toml").unlink()
    masklet("quantize", "tiny.safetensors", "none.gguf", *arguments)
    assert (here / "profile.gguf").read_bytes() == (here / "none.gguf").read_bytes()


def test_what_cannot_be_calibrated(masklet: Command, here: Path, plain: Callable[[str], str]) -> None:
    (here / "empty").mkdir()
    (here / "broken").mkdir()
    (here / "broken" / "a.png").write_bytes(b"no picture")
    testing.write_stand_in("edgetam.safetensors", testing.tiny_edgetam_config())
    (here / "good").mkdir()
    Image.fromarray(testing.synthetic_scene(0, (48, 64)).image).save("good/a.png")
    for model, folder, message in (
        ("tiny", "empty", "There are no pictures in the folder 'empty' (0 other files and folders)"),
        ("tiny", "missing", "Cannot read the folder 'missing': No such file or directory"),
        ("tiny", "tiny.safetensors", "Cannot read the folder 'tiny.safetensors': Not a directory"),
        ("tiny", "broken", "a.png"),
        ("edgetam", "good", "there is nothing to calibrate. int8 takes it as it is"),
    ):
        result = masklet(
            "quantize", f"{model}.safetensors", "out.gguf", "--type", "f16", "--calibrate", folder
        )
        assert result.exit_code == 1
        assert message in plain(result.stderr)
        assert not (here / "out.gguf").exists()
