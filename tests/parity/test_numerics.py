"""docs/numerics.md, as a reader follows it: our dump, the page's program on Meta's code, the comparison."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import prompt_cases
import reference
from PIL import Image

import masklet
from masklet.pipeline.compare import compare_files
from masklet.pipeline.dump import dump, step_names

PAGE = Path(__file__).parents[2] / "docs" / "numerics.md"
VARIANT = "sam2.1_hiera_tiny"


def test_the_page(tmp_path, monkeypatch, recwarn):
    reference.prepare_torchvision()
    program = re.search(
        r"```python\n(\"\"\"python meta_steps.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL
    )
    assert program
    (tmp_path / "meta_steps.py").write_text(program[1], encoding="utf-8")
    checkpoint = reference.save_pt(reference.build(VARIANT), tmp_path / f"{VARIANT}.pt")
    scene = prompt_cases.picture("landscape")
    Image.fromarray(scene.image).save(tmp_path / "photo.jpg")
    x, y = scene.points_xy[0].tolist()

    arguments = [reference.VARIANTS[VARIANT].config, str(checkpoint), "photo.jpg", str(x), str(y), "meta.npz"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["meta_steps.py", *arguments])
    runpy.run_path("meta_steps.py")

    model = masklet.load(checkpoint)
    np.savez("ours.npz", **dump(model, "photo.jpg", [[x, y]], [1]))
    result = compare_files("ours.npz", "meta.npz")
    assert result.first_divergence is None
    names = step_names(model)
    assert {d.name for d in result.differences} | set(result.only_a) == {*names.image, *names.prompt}
    assert (result.only_a, result.only_b) == (("sam_mask_decoder.stability",), ())
    assert f"All {len(result.differences)} tensors agree" in PAGE.read_text(encoding="utf-8")
