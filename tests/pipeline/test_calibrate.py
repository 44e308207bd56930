"""Calibrated models: the same networks, of which 8 bits lose less."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import masklet
from masklet import testing
from masklet.errors import InputError
from masklet.families.family import CONFIG_KEY
from masklet.io.checkpoints import open_checkpoint
from masklet.io.safetensors import write_safetensors
from masklet.pipeline.calibrate import STAGE, calibrate
from masklet.quant.convert import quantize
from masklet.quant.smooth import CALIBRATED_KEY, NormedLinears, calibrated_on
from masklet.runtime.cache import load_stage
from masklet.runtime.norms import normed_linears

SAM2, SAM1 = testing.tiny_config(image_size=64), testing.tiny_sam1_config(image_size=64)
BOTH = pytest.mark.parametrize("config", [SAM2, SAM1], ids=["sam2", "sam1"])
PICTURES = [testing.synthetic_scene(seed, (48, 64)).image for seed in range(3)]
HELD = testing.synthetic_scene(9, (60, 50)).image
OUTLIERS, LARGER = 2, 20.0


def planted(folder: Path, config: Any) -> Path:
    """A stand-in with a few channels behind each norm `LARGER` times as large, and weights behind them that
    are as much smaller, as trained networks have them."""
    weights = testing.stand_in_weights(config)
    for group in normed_linears(load_stage(config, STAGE, config.image_size, "fused")):
        factor = np.ones(len(weights[f"{group.norm}.bias"]), np.float32)
        factor[3 : 3 + OUTLIERS] = LARGER
        weights |= {key: weights[key] * factor for key in (f"{group.norm}.weight", f"{group.norm}.bias")}
        weights |= {key: weights[key] / factor for key in group.matrices}
    path = folder / "planted.safetensors"
    write_safetensors(path, weights, {CONFIG_KEY: config.to_json()})
    return path


def written(path: Path, smoothing: Any) -> Path:
    """The file, smoothed, in f32."""
    target = path.with_name("smooth.safetensors")
    quantize(path, target, "f16", keep=["*"], smoothing=smoothing)
    return target


def load(path: Path, precision: str = "f32") -> masklet.Model:
    return masklet.load(path, precision=precision, threads=1)


def embedding(path: Path, precision: str) -> np.ndarray:
    predictor = masklet.ImagePredictor(load(path, precision))
    predictor.set_image(HELD)
    return predictor.get_image_embedding()


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative to the embedding's spread."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected - expected.mean()))


@BOTH
def test_the_network_stays_the_same(tmp_path: Path, config: Any) -> None:
    """Up to rounding: about 1e-6, where one channel that is not undone makes it 0.01 and more."""
    path = planted(tmp_path, config)
    smooth = written(path, calibrate(load(path), PICTURES))
    assert error(embedding(smooth, "f32"), embedding(path, "f32")) < 1e-5
    with open_checkpoint(path) as before, open_checkpoint(smooth) as after:
        changed = [key for key in before.tensors if not np.array_equal(before.array(key), after.array(key))]
        assert calibrated_on(after.metadata) == len(PICTURES)
    assert all(key.startswith("image_encoder.") for key in changed)
    assert any(key.endswith("norm2.bias") for key in changed)
    assert not any("trunk.blocks.0." in key for key in changed)  # which int8 leaves in f32


@BOTH
def test_8_bits_lose_less_where_there_are_outliers(tmp_path: Path, config: Any) -> None:
    path = planted(tmp_path, config)
    expected = embedding(path, "f32")
    smooth = written(path, calibrate(load(path), PICTURES))
    before, after = (error(embedding(file, "int8"), expected) for file in (path, smooth))
    assert before > 0.06  # or nothing would be shown
    assert after < 0.5 * before


def test_all_pictures_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each channel's largest value over all of them, in any order; the progress is told."""
    seen: list[dict[NormedLinears, np.ndarray]] = []
    monkeypatch.setattr("masklet.pipeline.calibrate.smoothing", lambda largest, *_: seen.append(largest))
    model, steps = load(planted(tmp_path, SAM2)), []
    for picture in PICTURES:
        calibrate(model, [picture])
    calibrate(model, PICTURES, on_picture=lambda *step: steps.append(step))
    calibrate(model, PICTURES[::-1])
    *singles, together, reverse = seen
    for group, values in together.items():
        np.testing.assert_array_equal(values, np.max([single[group] for single in singles], axis=0))
        np.testing.assert_array_equal(values, reverse[group])
    assert steps == [(1, 3), (2, 3), (3, 3)]


def test_the_same_pictures_give_the_same_bytes(tmp_path: Path) -> None:
    path = planted(tmp_path, SAM2)
    contents = [written(path, calibrate(load(path), PICTURES)).read_bytes() for _ in range(2)]
    assert contents[0] == contents[1]


def test_a_file_made_of_a_calibrated_one_says_so(tmp_path: Path) -> None:
    path = planted(tmp_path, SAM2)
    smooth = written(path, calibrate(load(path), PICTURES))
    quantize(smooth, tmp_path / "out.gguf", "q8_0")
    with open_checkpoint(smooth) as before, open_checkpoint(tmp_path / "out.gguf") as after:
        assert after.metadata[CALIBRATED_KEY] == before.metadata[CALIBRATED_KEY]


def test_what_cannot_be_calibrated(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    def refused(message: str, call: Callable[[], Any]) -> None:
        with pytest.raises(InputError, match=message):
            call()

    model = load(planted(tmp_path, SAM2))
    refused("no pictures to calibrate on", lambda: calibrate(model, []))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    Image.fromarray(HELD).save(tmp_path / "good.png")
    pictures = [tmp_path / "good.png", tmp_path / "broken.png"]
    refused("broken.png", lambda: calibrate(model, pictures))
    testing.write_stand_in(tmp_path / "edgetam", testing.tiny_edgetam_config())
    refused("EdgeTAM.*nothing to calibrate", lambda: calibrate(load(tmp_path / "edgetam"), PICTURES))
