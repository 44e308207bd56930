"""`dump`, `compare` and `export` as typed: the pages' own command lines, exit codes, streams."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from masklet import testing
from masklet.apps import inspect as commands
from masklet.pipeline.compare import TOLERANCE

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def workplace(tiny_checkpoint, tmp_path, monkeypatch):
    """What the pages suppose: a photograph, and a checkpoint under Meta's name."""
    Image.fromarray(testing.synthetic_scene(3, (480, 640)).image).save(tmp_path / "photo.jpg")
    (tmp_path / "sam2.1_hiera_tiny.pt").write_bytes(tiny_checkpoint.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shown(page: str) -> list[list[str]]:
    """The `masklet` command lines of a page."""
    return [
        shlex.split(line)
        for line in re.findall(r"^\$ masklet (.*)$", (DOCS / page).read_text(), re.MULTILINE)
    ]


def test_the_page_about_numbers(masklet, workplace):
    first, selected, compared = shown("numerics.md")
    assert masklet(*first).exit_code == 0
    ours = np.load("ours.npz")
    assert {"pixels", "masks"} <= set(ours.files)
    assert ours["masks"].shape == (3, 480, 640)

    assert masklet(*selected).exit_code == 0
    some = [f"image_encoder.{part}.{index}" for part in ("trunk.blocks", "neck") for index in range(4)]
    assert np.load("some.npz").files == some

    np.savez("meta.npz", **ours)
    result = masklet(*compared)
    assert result.exit_code == 0
    assert result.stdout.endswith(f"All {len(ours.files)} tensors agree within 0.0001.\n")
    header = (
        (DOCS / "numerics.md").read_text().split("$ masklet compare ours.npz meta.npz\n")[1].split("\n")[0]
    )
    assert result.stdout.split("\n")[0].split() == header.split()


def test_every_step_of_the_table_exists(masklet, workplace):
    listed = masklet("dump", "sam2.1_hiera_tiny.pt", "--list").stdout.split()
    table = (DOCS / "numerics.md").read_text().split("| step | shape | |")[1].split("\n\n")[0]
    for row in table.strip().splitlines()[1:]:
        names = re.findall(r"`([^`]+)`", row.split("|")[1])
        for name in names:
            stem = name if not name.startswith(".") else names[0].rpartition(".")[0] + name
            pattern = re.escape(stem).replace("N", r"\d+")
            assert any(re.fullmatch(pattern, step) for step in listed), stem


def test_the_pages_python_example(workplace, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "numerics.md").read_text(), re.DOTALL)
    exec(compile(blocks[-1], "numerics.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["image_embed", "ious", "low_res_masks"]
    assert all(float(line.split()[1]) < TOLERANCE for line in lines)


def test_dump_reports_on_stderr(masklet, workplace):
    result = masklet("dump", "sam2.1_hiera_tiny.pt", "photo.jpg", "-o", "out.npz", "--stage", "pixels")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "1 steps, 196.6 kB, in out.npz" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sam2.1_hiera_tiny.pt"], "IMAGE"),
        (["sam2.1_hiera_tiny.pt", "photo.jpg"], "FILE.npz"),
        (["sam2.1_hiera_tiny.pt", "photo.jpg", "-o", "out.npz", "--point", "1"], "--point"),
    ],
)
def test_dump_not_understood(masklet, plain, workplace, arguments, message):
    result = masklet("dump", *arguments)
    assert result.exit_code == 2
    assert message in plain(result.stderr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photo.jpg", "-o", "out.npz", "--stage", "nothing"], "No step is called 'nothing'"),
        (["photo.jpg", "-o", "missing/out.npz"], "does not exist; create it first"),
        (["missing.jpg", "-o", "out.npz"], "missing.jpg"),
        (["photo.jpg", "-o", "out.npz", "--point", "900,900"], "outside the picture"),
    ],
)
def test_dump_refused(masklet, workplace, arguments, message):
    before = sorted(workplace.iterdir())
    result = masklet("dump", "sam2.1_hiera_tiny.pt", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert sorted(workplace.iterdir()) == before


# ----------------------------------------------------------------------------------------- compare


@pytest.fixture
def files(tmp_path, monkeypatch):
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    b = a.copy()
    b[0, 0, 0] += 0.5
    np.savez(tmp_path / "a.npz", first=a, second=a, third=a, extra=a)
    np.savez(tmp_path / "b.npz", third=a[:1], second=b, first=a)
    monkeypatch.chdir(tmp_path)


def test_compare_names_the_first_divergence(masklet, files):
    result = masklet("compare", "a.npz", "b.npz")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[1].split() == ["first", "2x3x4", "1.000000000", "0.00e+00", "0.00e+00"]
    assert lines[2].split()[0] == "second"
    assert lines[2].split()[3:] == ["5.00e-01", "2.17e-02", "differs"]
    assert "2x3x4, B 1x3x4" in lines[3]
    assert "shapes differ" in lines[3]
    assert lines[4:] == ["Only in A: extra", "First divergence: second"]


def test_compare_with_another_tolerance(masklet, files):
    result = masklet("compare", "a.npz", "b.npz", "--tolerance", "0.1")
    assert result.stdout.endswith("First divergence: third\n")


def test_compare_as_one_document(masklet, files):
    result = masklet("compare", "b.npz", "a.npz", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert (document["within"], document["first_divergence"]) == (False, "third")
    assert document["only_b"] == ["extra"]
    third, second, first = document["tensors"]
    assert (third["shape_a"], third["relative"], third["within"]) == ([1, 3, 4], None, False)
    assert second["max_difference"] == 0.5
    assert first["within"] is True


def test_json_has_no_infinities(masklet, files):
    np.savez("a.npz", x=np.array([np.nan, 1.0]))
    np.savez("b.npz", x=np.array([1.0, 1.0]))
    document = json.loads(masklet("compare", "a.npz", "b.npz", "--json").stdout)
    assert document["tensors"][0]["relative"] is None
    assert document["within"] is False


def test_compare_refuses_what_is_no_archive(masklet, files, tmp_path):
    (tmp_path / "a.npz").write_text("text")
    result = masklet("compare", "a.npz", "b.npz")
    assert result.exit_code == 1
    assert "not a readable .npz" in result.stderr
    assert masklet("compare", "a.npz", "b.npz", "--tolerance", "-1").exit_code == 2


def test_the_default_tolerance_is_the_librarys():
    assert inspect.signature(commands.compare).parameters["tolerance"].default == TOLERANCE


# ------------------------------------------------------------------------------------------ export


def test_the_page_about_exporting(masklet, workplace):
    ((*command, _name, folder),) = shown("export.md")
    result = masklet(*command, "sam2.1_hiera_tiny.pt", folder)
    assert result.exit_code == 0
    files = sorted(path.name for path in Path(folder).iterdir())
    assert [Path(line.split()[0]).name for line in result.stdout.splitlines()[1:]] == files
    page = (DOCS / "export.md").read_text()
    assert all(f"`{name}`" in page for name in files)


def test_export_options(masklet, workplace):
    small = ["export", "sam2.1_hiera_tiny.pt", "out", "--image-size", "96", "--stage", "encode_image"]
    assert masklet(*small).exit_code == 0
    manifest = json.loads(Path("out/manifest.json").read_text())
    assert (manifest["image_size"], [stage["name"] for stage in manifest["stages"]]) == (96, ["encode_image"])
    refused = masklet(*small)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    assert masklet(*small, "--overwrite").exit_code == 0
    unknown = masklet("export", "sam2.1_hiera_tiny.pt", "other", "--stage", "encode")
    assert unknown.exit_code == 1
    assert "encode_image, encode_points" in unknown.stderr
    assert not Path("other").exists()
