"""SAM on the command line: the commands are the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import masklet as library
from masklet import testing
from masklet.io.masks import read_mask_input

Command = Callable[..., Any]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "sam.safetensors"
    testing.write_stand_in(path, testing.tiny_sam1_config())
    return path


def test_segment(masklet: Command, workplace: Path, checkpoint: Path, scene: testing.Scene) -> None:
    result = masklet("segment", "scene.png", "--point", "60,50", "--model", checkpoint)
    assert result.exit_code == 0
    predictor = library.ImagePredictor(library.load(checkpoint))
    predictor.set_image(scene.image)
    masks, *_ = predictor.predict([[60, 50]], [1], multimask_output=False)
    np.testing.assert_array_equal(np.array(Image.open("scene-mask.png")), masks[0] * np.uint8(255))


def test_a_rough_mask_lies_where_the_picture_does(
    masklet: Command, workplace: Path, checkpoint: Path, scene: testing.Scene
) -> None:
    """The picture covers 96 of the input's 128 rows: so must its mask, 24 of 32."""
    Image.fromarray(scene.masks[0] * np.uint8(255)).save("rough.png")
    given = read_mask_input("rough.png", 32, (24, 32))
    assert (given[0, 24:] == -10).all()
    assert given[0, :24].max() == 10
    result = masklet("segment", "scene.png", "--mask-input", "rough.png", "--json", "--model", checkpoint)
    predictor = library.ImagePredictor(library.load(checkpoint))
    predictor.set_image(scene.image)
    masks, scores, _ = predictor.predict(mask_input=given, multimask_output=False)
    (answer,) = json.loads(result.stdout)["masks"]
    assert (answer["area"], answer["score"]) == (masks[0].sum(), pytest.approx(float(scores[0]), abs=1e-5))
    stretched, *_ = predictor.predict(mask_input=read_mask_input("rough.png", 32), multimask_output=False)
    assert stretched[0].sum() != masks[0].sum()


def test_info(masklet: Command, checkpoint: Path) -> None:
    result = masklet("info", checkpoint)
    assert result.exit_code == 0
    fields = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "sam1, version 1" in fields["family"]
    assert "trunk 32 wide with 4 blocks, decoder 64 channels" in fields["network"]
    assert "128 x 128 pixels" in fields["input"]


def test_models_and_refusals(masklet: Command, checkpoint: Path, tmp_path: Path) -> None:
    result = masklet("export", checkpoint, tmp_path / "out", "--video")
    assert result.exit_code == 1
    assert "SAM is for pictures" in result.stderr
    assert masklet("export", checkpoint, tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "decode_masks.onnx").is_file()
    result = masklet("dump", checkpoint, "--list")
    assert "image_encoder.blocks.0.attn.rel_h" in result.stdout


def test_track_refuses(masklet: Command, checkpoint: Path, clip: Path, workplace: Path) -> None:
    result = masklet("track", clip, "--point", "0:1:30,20", "--model", checkpoint, "-o", "seen.jsonl")
    assert result.exit_code == 1
    assert "which is for pictures" in result.stderr


def test_an_input_size_in_steps_of_16(masklet: Command, workplace: Path, checkpoint: Path) -> None:
    """The family decides: SAM 2 has steps of 32."""
    arguments = ("segment", "scene.png", "--point", "60,50", "--model", checkpoint, "--image-size")
    assert masklet(*arguments, 144).exit_code == 0
    refused = masklet(*arguments, 100)
    assert refused.exit_code == 1
    assert "multiple of 16 pixels" in refused.stderr
