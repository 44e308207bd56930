"""The table of published checkpoints, and how names find their rows."""

from __future__ import annotations

import dataclasses
import re

import pytest

from masklet.errors import MaskletError, ModelNotFoundError
from masklet.families.table import FAMILIES
from masklet.registry import BUNDLED, HubFile, PublishedModel, find, models

SAM2 = [
    f"{stem}_hiera_{size}" for stem in ("sam2.1", "sam2") for size in ("tiny", "small", "base_plus", "large")
]
SAM1 = {"sam_vit_b": "01ec64", "sam_vit_l": "0b3195", "sam_vit_h": "4b8939"}
NAMES = [*SAM2, *SAM1, "edgetam"]
MODELS = [pytest.param(model, id=model.name) for model in models()]
MODELS_OF_SAM2 = [pytest.param(model, id=model.name) for model in models() if model.family == "sam2"]


def test_the_models_of_all_families_are_there() -> None:
    assert [model.name for model in models()] == NAMES


@pytest.mark.parametrize("model", MODELS)
def test_a_row_is_what_it_says(model: PublishedModel) -> None:
    assert (model.licence, model.revision) == ("Apache-2.0", "main")
    assert FAMILIES[model.family].presets[model.preset].version == model.version
    assert model.pull_command == f"masklet pull {model.name}"
    # Four bytes for each parameter, and names and alignment: far less than a per mille more; EdgeTAM is small
    # and has a thousand tensors.
    bound = 4.04 if model.family == "edgetam" else 4.01
    assert 4 * model.parameters < model.size_bytes < bound * model.parameters


@pytest.mark.parametrize("name", SAM1)
def test_a_row_of_sam_names_its_file(name: str) -> None:
    model = find(name)
    file = f"{name}_{SAM1[name]}.pth"
    assert (model.family, model.version, model.twin) == ("sam1", "1", None)
    assert (model.repo_id, model.filename) == ("ybelkada/segment-anything", f"checkpoints/{file}")
    assert model.url == f"https://dl.fbaipublicfiles.com/segment_anything/{file}"
    assert find(file) is model


def test_the_row_of_edgetam_names_its_file() -> None:
    model = find("edgetam.pt")
    assert (model.name, model.version, model.twin) == ("edgetam", "1", None)
    assert (model.repo_id, model.filename) == ("facebook/EdgeTAM", "edgetam.pt")
    assert model.url == "https://github.com/facebookresearch/EdgeTAM/raw/main/checkpoints/edgetam.pt"


@pytest.mark.parametrize("model", MODELS_OF_SAM2)
def test_a_row_of_sam_2_names_its_file(model: PublishedModel) -> None:
    assert model.filename == f"{model.name}.pt"
    folder = {"2.0": "072824", "2.1": "092824"}[model.version]
    assert model.url == f"https://dl.fbaipublicfiles.com/segment_anything_2/{folder}/{model.filename}"
    assert model.repo_id == f"facebook/{model.name.replace('_', '-')}"


@pytest.mark.parametrize("model", MODELS_OF_SAM2)
def test_a_twin_holds_the_same_weights(model: PublishedModel) -> None:
    if model.version == "2.0":
        assert model.twin is None
        return
    assert model.twin is not None
    assert (model.twin.repo_id, model.twin.filename) == (model.repo_id, "model.safetensors")
    assert model.twin.pull_command == f"hf download {model.repo_id} model.safetensors"
    # `.pt` is a zip with a 64-byte alignment, so the twin is a little smaller.
    assert 4 * model.parameters < model.twin.size_bytes < model.size_bytes


def test_hashes_and_sizes_are_well_formed_and_differ() -> None:
    files: list[HubFile] = [*models(), *(model.twin for model in models() if model.twin)]
    hashes = [file.sha256 for file in files]
    assert all(digest and re.fullmatch(r"[0-9a-f]{64}", digest) for digest in hashes)
    assert len(set(hashes)) == len({file.size_bytes for file in files}) == 16


def test_parameters_are_those_of_metas_table() -> None:
    """In millions, as Meta's README gives them; 2.0 and 2.1 differ by less than the last digit."""
    published = {"tiny": 38.9, "small": 46.0, "base_plus": 80.8, "large": 224.4}
    for name in SAM2:
        assert find(name).parameters / 1e6 == pytest.approx(published[name.split("_", 2)[2]], abs=0.1)


def test_rows_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        models()[0].sha256 = None  # type: ignore[misc]


# -------------------------------------------------------------------------------------------------- finding


@pytest.mark.parametrize("model", [*MODELS, pytest.param(BUNDLED, id=BUNDLED.name)])
def test_every_name_finds_its_row_in_any_case(model: PublishedModel) -> None:
    for word in (model.name, *model.aliases):
        assert find(word) is find(word.upper()) is find(f" {word}\n") is model


def test_no_two_models_share_a_name() -> None:
    words = [word.lower() for model in (BUNDLED, *models()) for word in (model.name, *model.aliases)]
    assert sorted(words) == sorted(set(words))


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("sam2.1_hiera_tiny.pt", "sam2.1_hiera_tiny"),
        ("facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus"),
        ("sam2.1-hiera-large", "sam2.1_hiera_large"),
        ("sam2.1-tiny", "sam2.1_hiera_tiny"),
        ("sam2.1_base+", "sam2.1_hiera_base_plus"),
        ("sam2.1_hiera_b+", "sam2.1_hiera_base_plus"),
        ("sam2-small", "sam2_hiera_small"),
        ("sam2_hiera_l", "sam2_hiera_large"),
        ("sam_vit_b_01ec64", "sam_vit_b"),
        ("vit_l", "sam_vit_l"),
        ("facebook/sam-vit-huge", "sam_vit_h"),
        ("facebook/EdgeTAM", "edgetam"),
    ],
)
def test_names_as_people_write_them(word: str, name: str) -> None:
    assert find(word).name == name


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("sam2.1_hiera_tinny", "sam2.1_hiera_tiny"),
        ("sam2.1 hiera small", "sam2.1_hiera_small"),
        ("facebook/sam2.1-hiera-larg", "sam2.1_hiera_large"),
        ("sam2.1_hiera_baseplus", "sam2.1_hiera_base_plus"),
        ("sam2-hiera-tny", "sam2_hiera_tiny"),
        ("masklet-nanno", "masklet-nano"),
    ],
)
def test_a_slip_is_answered_with_the_closest_name(word: str, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match=re.escape(f"Did you mean {name}")) as caught:
        find(word)
    assert repr(word) in str(caught.value)


@pytest.mark.parametrize("word", ["", "resnet50", "/data/model.pt", "sam"])
def test_an_unknown_name_is_answered_with_all_names(word: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        find(word)
    message = str(caught.value)
    assert all(name in message for name in (BUNDLED.name, *NAMES))
    assert "Did you mean" not in message
    assert isinstance(caught.value, MaskletError)
    assert isinstance(caught.value, LookupError)
