"""Small networks against what Meta's code computed for them (tests/golden, written by tools/make_golden.py).

The plain graph is compared step by step, the fused one by its results. The tolerance is relative to the
largest value of a step: float32 sums in another order, through a whole network.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import masklet
from masklet import testing
from masklet.families.family import CONFIG_KEY
from masklet.families.sam2 import Sam2Config
from masklet.families.table import from_metadata
from masklet.io.safetensors import write_safetensors
from masklet.model.config import HieraConfig
from masklet.pipeline.dump import dump

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("tiny_*.npz"))
RELATIVE = 3e-5
IOU_DIFFERENCE = 1e-4
MASK_IOU = 0.999


class Golden:
    """One file: a loaded model of the same weights, the picture, the expected steps."""

    def __init__(self, path: Path, folder: Path) -> None:
        with np.load(path) as stored:
            self._arrays = {name: stored[name] for name in stored.files}
        config, weights = self._json("config"), self._json("weights")
        made = from_metadata(json.dumps(config)) if "family" in config else sam2_config(config)
        shapes = {name: tuple(shape) for name, shape in self._json("tensors").items()}
        tensors = testing.lively_weights(
            shapes, weights["seed"], object_score_bias=weights["object_score_bias"]
        )
        assert testing.weights_sha256(tensors) == weights["sha256"]

        file = folder / f"{path.stem}.safetensors"
        write_safetensors(file, tensors, {CONFIG_KEY: made.to_json()})
        self.model = masklet.load(file, threads=1)
        scene = self._json("scene")
        self.image = testing.synthetic_scene(scene["seed"], tuple(scene["size_hw"])).image
        self.cases = sorted({name.split("/")[1] for name in self._arrays if name.startswith("prompt/")})

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        return {k[len(prefix) + 1 :]: v for k, v in self._arrays.items() if k.startswith(prefix + "/")}

    def case(self, name: str) -> tuple[dict, dict[str, np.ndarray]]:
        everything = self.under(f"prompt/{name}")
        arguments = {
            key.split("/")[1]: value if value.ndim else value.item()
            for key, value in everything.items()
            if key.startswith("arguments/")
        }
        return arguments, {
            key: value for key, value in everything.items() if not key.startswith("arguments/")
        }

    def _json(self, name: str) -> dict:
        return json.loads(str(self._arrays[name]))


def sam2_config(values: dict) -> Sam2Config:
    lists = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    trunk = HieraConfig(**{name: lists[name] for name in HieraConfig.__dataclass_fields__})
    return Sam2Config(
        lists["version"],
        trunk,
        lists["d_model"],
        lists["memory_dim"],
        mlp_dim=2048,  # as the reference has it
        memory_layers=4,
        image_size=lists["image_size"],
    )


@pytest.fixture(scope="module", params=GOLDEN, ids=lambda path: path.stem)
def golden(request, tmp_path_factory):
    return Golden(request.param, tmp_path_factory.mktemp("golden"))


def check(steps: dict[str, np.ndarray], expected: dict[str, np.ndarray], skip: tuple[str, ...] = ()) -> None:
    for name, wanted in expected.items():
        if name.endswith(skip):
            continue
        got = testing.sampled(steps[name], wanted.size) if steps[name].shape != wanted.shape else steps[name]
        assert got.shape == wanted.shape, name
        limit = RELATIVE * np.abs(wanted).max(initial=0)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=limit, err_msg=name)


def test_there_are_all():
    assert [path.stem for path in GOLDEN] == ["tiny_2.0", "tiny_2.1", "tiny_sam1"]


def test_every_step_of_the_encoder(golden):
    check(dump(golden.model, golden.image), golden.under("encoder"))


def test_every_step_behind_the_prompts(golden):
    for name in golden.cases:
        if (
            name == "nothing"
        ):  # without a prompt, a dump ends with the encoder; `test_the_predictor` has the case
            continue
        arguments, expected = golden.case(name)
        steps = dump(golden.model, golden.image, **arguments)
        check(
            steps,
            {key: value for key, value in expected.items() if key.startswith("sam_")},
            skip=("stability",),
        )


def test_the_predictor(golden):
    predictor = masklet.ImagePredictor(golden.model)
    predictor.set_image(golden.image)
    assert len(golden.cases) >= 10
    for name in golden.cases:
        arguments, expected = golden.case(name)
        masks, ious, low_res = predictor.predict(**arguments)
        np.testing.assert_allclose(ious, expected["ious"], rtol=0, atol=IOU_DIFFERENCE, err_msg=name)
        low_res = testing.sampled(low_res, expected["low_res_masks"].size).reshape(
            expected["low_res_masks"].shape
        )
        wanted = expected["low_res_masks"]
        np.testing.assert_allclose(
            low_res, wanted, rtol=0, atol=RELATIVE * np.abs(wanted).max(), err_msg=name
        )
        both, either = (masks & expected["masks"]).sum(), (masks | expected["masks"]).sum()
        assert both / max(either, 1) >= MASK_IOU, name
