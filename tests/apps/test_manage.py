from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masklet import registry, testing
from masklet.families import sam2
from masklet.families.family import CONFIG_KEY
from masklet.io.safetensors import write_safetensors
from masklet.registry import PublishedModel

Command = Callable[..., Any]
SMALL = "sam2.1_hiera_tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of downloads."""
    folder = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def published(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> PublishedModel:
    """A published model of the size of the tiny checkpoint."""
    content = tiny_checkpoint.read_bytes()
    model = replace(registry.find(SMALL), size_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(registry, "models", lambda: (model,))
    monkeypatch.setattr(registry, "find", lambda name: model)
    return model


def put_into_cache(hub: Path, model: PublishedModel, source: Path) -> Path:
    path = hub / f"models--{model.repo_id.replace('/', '--')}" / "snapshots" / "0" / model.filename
    path.parent.mkdir(parents=True)
    shutil.copy(source, path)
    return path


# ----------------------------------------------------------------------------------------------- models, pull


@pytest.mark.usefixtures("hub")
def test_models_lists_the_registry(masklet: Command) -> None:
    result = masklet("models")
    assert result.exit_code == 0
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["name", "parameters", "download", "licence", "downloaded"]
    names = [registry.BUNDLED.name, *(model.name for model in registry.models())]
    assert [line.split()[0] for line in lines] == names
    assert lines[0].split() == ["masklet-nano", "5", "M", "10.0", "MB", "MIT", "in", "the", "package"]
    assert lines[1].split() == [SMALL, "39", "M", "156.0", "MB", "Apache-2.0", "no"]


def test_models_json(masklet: Command, hub: Path, published: PublishedModel, tiny_checkpoint: Path) -> None:
    bundled, model = json.loads(masklet("models", "--json").stdout)["models"]
    assert (bundled["name"], bundled["url"], bundled["sha256"]) == ("masklet-nano", None, None)
    assert Path(bundled["path"]).stat().st_size == bundled["bytes"]
    assert model["name"] == SMALL
    assert model["path"] is None
    path = put_into_cache(hub, published, tiny_checkpoint)
    _, model = json.loads(masklet("models", "--json").stdout)["models"]
    assert model["path"] == str(path)
    assert masklet("models").stdout.splitlines()[2].split()[-1] == "yes"


@pytest.mark.usefixtures("hub", "published")
def test_pull_prints_the_path_alone(
    masklet: Command, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(model: PublishedModel, *, progress: Callable[[int, int], None]) -> Path:
        progress(1, 2)
        return tiny_checkpoint

    monkeypatch.setattr("masklet.io.hub.fetch", fetch)
    result = masklet("pull", SMALL)
    assert (result.exit_code, result.stdout) == (0, f"{tiny_checkpoint}\n")
    assert result.stderr.startswith(f"Downloading {SMALL} (")


def test_pull_verifies_what_is_there(
    masklet: Command, hub: Path, published: PublishedModel, tiny_checkpoint: Path
) -> None:
    path = put_into_cache(hub, published, tiny_checkpoint)
    result = masklet("pull", SMALL)
    assert (result.exit_code, result.stdout) == (0, f"{path}\n")
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    result = masklet("pull", SMALL)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "SHA-256" in result.stderr


@pytest.mark.usefixtures("hub")
def test_the_model_in_the_package_is_pulled_by_doing_nothing(masklet: Command) -> None:
    result = masklet("pull", "masklet-nano")
    assert (result.exit_code, result.stdout) == (0, f"{registry.BUNDLED.path}\n")
    assert result.stderr == "masklet-nano is here already: it is part of the package.\n"


@pytest.mark.usefixtures("hub")
def test_pull_of_an_unknown_name_suggests_others(masklet: Command) -> None:
    result = masklet("pull", "sam2.1_hiera_tini")
    assert result.exit_code == 1
    assert "Did you mean sam2.1_hiera_tiny" in result.stderr


def test_a_downloaded_model_is_used_by_name(
    masklet: Command, hub: Path, published: PublishedModel, tiny_checkpoint: Path, workplace: Path
) -> None:
    put_into_cache(hub, published, tiny_checkpoint)
    result = masklet("segment", "scene.png", "--point", "60,50", "--model", SMALL)
    assert (result.exit_code, result.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------------- info


def test_info(masklet: Command, tiny_checkpoint: Path) -> None:
    result = masklet("info", tiny_checkpoint)
    assert result.exit_code == 0
    fields = {line[:10].strip(): line[12:] for line in result.stdout.splitlines()}
    weights = testing.stand_in_weights(testing.tiny_config())
    count = sum(array.size for array in weights.values())
    assert fields["family"] == "sam2, version 2.1"
    assert fields["model"] == "custom"
    assert fields["parameters"] == f"{count:,} in {len(weights)} tensors"
    assert fields["dtypes"] == "f32"
    assert fields["input"] == "128 x 128 pixels"
    assert fields["can do"].startswith("pictures")
    assert "verified" not in fields


def test_info_says_what_the_file_is_good_for(masklet: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    def abilities(path: Path) -> list[str]:
        listed = json.loads(masklet("info", path, "--json").stdout)["abilities"]
        return [ability.split(":")[0] for ability in listed]

    assert abilities(tiny_checkpoint) == ["pictures", "video"]

    config = testing.tiny_config()
    weights = testing.stand_in_weights(config)
    of_pictures = {name: x for name, x in weights.items() if not name.startswith(sam2.VIDEO_TENSORS)}
    write_safetensors(tmp_path / "part.safetensors", of_pictures, {CONFIG_KEY: config.to_json()})
    assert abilities(tmp_path / "part.safetensors") == ["pictures"]

    testing.write_stand_in(tmp_path / "sam1.safetensors", testing.tiny_sam1_config())
    assert abilities(tmp_path / "sam1.safetensors") == ["pictures"]


def test_info_reads_no_profile(masklet: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes())
    path.with_name("masklet.toml").write_text("image_size = 96\nno such key")
    result = masklet("info", path, "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    assert json.loads(result.stdout)["image_size"] == 128


def test_info_json(masklet: Command, tiny_checkpoint: Path) -> None:
    result = masklet("info", tiny_checkpoint, "--json", "--verify")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["file"] == str(tiny_checkpoint)
    assert document["bytes"] == tiny_checkpoint.stat().st_size
    assert document["format"] == "safetensors"
    assert document["layout"] == "meta"
    assert document["network"] == {"width": 16, "blocks": [1, 2, 3, 1], "channels": 64}
    assert document["verified"] is False  # safetensors files carry no checksums
    assert document["problem"] is None


def test_info_by_name(masklet: Command, hub: Path, published: PublishedModel, tiny_checkpoint: Path) -> None:
    result = masklet("info", SMALL)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == f"error: {SMALL} is not downloaded yet; run: masklet pull {SMALL}\n"
    path = put_into_cache(hub, published, tiny_checkpoint)
    assert json.loads(masklet("info", SMALL, "--json").stdout)["file"] == str(path)


def test_info_of_the_model_in_the_package(masklet: Command) -> None:
    document = json.loads(masklet("info", "masklet-nano", "--json").stdout)
    assert document["file"] == str(registry.BUNDLED.path)
    assert (document["model"], document["parameters"]) == ("masklet-nano", registry.BUNDLED.parameters)


def test_info_of_what_cannot_run_says_what_is_there_and_why(masklet: Command, tmp_path: Path) -> None:
    config = testing.tiny_config()
    weights = testing.stand_in_weights(config)
    del weights["no_mem_embed"]
    path = tmp_path / "incomplete.safetensors"
    write_safetensors(path, weights, {CONFIG_KEY: config.to_json()})
    result = masklet("info", path, "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["tensors"] == len(weights)
    assert document["abilities"] == []
    assert "no_mem_embed" in document["problem"]
    assert "no_mem_embed" in result.stderr


def test_info_of_another_family(masklet: Command, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    write_safetensors(
        path,
        {
            "a.weight": np.zeros((2, 3), np.float16),
            "b": np.zeros(1, np.float32),
            "c": np.zeros(1, np.float32),
        },
    )
    result = masklet("info", path)
    assert result.exit_code == 1
    assert "parameters  8 in 3 tensors" in result.stdout
    assert "dtypes      f32 (2), f16 (1)" in result.stdout
    assert "layout" not in result.stdout
    assert "model " not in result.stdout
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("name", ["missing.pt", "missing.safetensors"])
def test_info_of_a_missing_file(masklet: Command, name: str) -> None:
    result = masklet("info", name)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: there is no file '{name}'")


def test_info_of_a_truncated_file(masklet: Command, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:-1])
    result = masklet("info", path)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: ")


# ------------------------------------------------------------------------------------------------------ cache


def test_cache_shows_and_clears(
    masklet: Command, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASKLET_CACHE", str(tmp_path))
    assert masklet("cache").stdout == f"0 entries, 0 B in {tmp_path}\n"
    masklet("info", tiny_checkpoint)  # writes the graphs
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}

    *lines, last = masklet("cache").stdout.splitlines()
    assert [line.split()[-1] for line in lines] == ["file", *sorted(sizes)]
    assert last.startswith(f"{len(sizes)} entries, ")
    document = json.loads(masklet("cache", "--json").stdout)
    assert document["folder"] == str(tmp_path)
    assert document["bytes"] == sum(sizes.values())
    assert {Path(entry["path"]).name: entry["bytes"] for entry in document["entries"]} == sizes
    assert {entry["stage"] for entry in document["entries"]} >= {"encode_image", "decode_masks"}

    result = masklet("cache", "--clear")
    assert (result.exit_code, result.stdout[:6]) == (0, "freed ")
    assert list(tmp_path.iterdir()) == []
    assert masklet("cache").stdout == f"0 entries, 0 B in {tmp_path}\n"


def test_cache_clear_json(masklet: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKLET_CACHE", str(tmp_path))
    (tmp_path / "encode_image-0.stage").write_bytes(b"12345")
    document = json.loads(masklet("cache", "--clear", "--json").stdout)
    assert document == {"folder": str(tmp_path), "entries": [], "bytes": 0, "freed_bytes": 5}
