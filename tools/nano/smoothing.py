"""What calibration gives to int8: `python tools/nano/smoothing.py DATA --model FILE`.

In: the folder of `gather.py` and a model. Out: a Markdown table on stdout: the model in int8 as it is, and
calibrated on training pictures with several exponents, against the same file in f32 on held-out pictures. The
same once more with outliers planted: `OUTLIERS` channels behind each norm made `LARGER` times as large and
the weights behind them as much smaller, which leaves the network as it is. And stored in blocks, computed in
f32: whether smoothing costs something there. Runs without torch.

Error is the distance of the image embedding from that of f32, relative to its spread. Lost is 1 - IoU of the
three candidates for a click in each object. Both are means; the +- is the standard error over pictures.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from metrics import deepest, iou
from scenes import Scenes

import masklet
from masklet.families.family import CONFIG_KEY
from masklet.io.safetensors import write_safetensors
from masklet.pipeline.calibrate import STAGE, calibrate
from masklet.pipeline.conventions import conventions_of
from masklet.quant.convert import quantize
from masklet.runtime.norms import normed_linears

EXPONENTS = (0.25, 0.5, 0.75)
OUTLIERS, LARGER = 3, 20.0
STORED = ("q8_0", "q4_0")


@dataclass(frozen=True)
class Answer:
    """What a model makes of a picture: the embedding, flat, and masks (M, H, W) for clicks."""

    embedding: np.ndarray
    masks: np.ndarray


def main() -> None:
    """Parse arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that gather.py made")
    parser.add_argument("--model", required=True, help="a model file or published name")
    parser.add_argument("--pictures", type=int, default=16, help="to calibrate on")
    parser.add_argument("--held", type=int, default=40, help="pictures to measure on")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()

    model = masklet.load(args.model, precision="f32", threads=1)
    seen, held = (
        [Scenes(args.data, split, model.image_size, args.seed).still(index) for index in range(count)]
        for split, count in (("train", args.pictures), ("held", args.held))
    )
    print("| | error of the embedding | lost |", "|---|---|---|", sep="\n")
    with tempfile.TemporaryDirectory() as folder:
        planted = Path(folder) / "planted.safetensors"
        plant(model, planted)
        pictures = [still.image for still in seen]
        for label, path in (("", Path(model.source)), (", outliers planted", planted)):
            Comparison(path, pictures, held, Path(folder)).print_int8(label)
        Comparison(Path(model.source), pictures, held, Path(folder)).print_stored()


class Comparison:
    """Variants of a file against the file itself in f32."""

    def __init__(self, path: Path, pictures: Sequence[np.ndarray], held: Sequence[Any], folder: Path) -> None:
        """`pictures` are calibrated on, `held` measured on; variants are written into `folder`."""
        self._path, self._held, self._folder = path, held, folder
        self._model = masklet.load(path, precision="f32", threads=1)
        self._expected = answers(self._model, held)
        self._smoothings = {exponent: calibrate(self._model, pictures, exponent) for exponent in EXPONENTS}

    def print_int8(self, label: str) -> None:
        """Rows of the file in int8."""
        self._row(f"int8{label}", self._path, "int8")
        for exponent, smoothing in self._smoothings.items():
            made = self._folder / "made.safetensors"
            quantize(self._path, made, "f16", keep=["*"], smoothing=smoothing)
            self._row(f"int8{label}, calibrated, exponent {exponent}", made, "int8")

    def print_stored(self) -> None:
        """Rows of the file stored in fewer bits, computed in f32."""
        for dtype in STORED:
            made = self._folder / "made.gguf"
            for exponent, smoothing in {None: None, **self._smoothings}.items():
                quantize(self._path, made, dtype, smoothing=smoothing)
                more = "" if exponent is None else f", calibrated, exponent {exponent}"
                self._row(f"{dtype} in f32{more}", made, "f32")

    def _row(self, name: str, file: Path, precision: str) -> None:
        found = answers(masklet.load(file, precision=precision, threads=1), self._held)
        cells = [told(measure, self._expected, found) for measure in (error, lost)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def plant(model: masklet.Model, path: Path) -> None:
    """Write the model with a few large channels behind each norm."""
    tensors = {
        key: model.tensor(key)
        for name in (*model.family.image_stages, *model.family.video_stages)
        for key in model.stage(name).tensors
    }
    rng = np.random.default_rng(0)
    for group in normed_linears(model.make_stage(STAGE, "fused")):
        factor = np.ones(len(tensors[f"{group.norm}.weight"]), np.float32)
        factor[rng.permutation(len(factor))[:OUTLIERS]] = LARGER
        for part in ("weight", "bias"):
            tensors[f"{group.norm}.{part}"] = tensors[f"{group.norm}.{part}"] * factor
        for key in group.matrices:
            tensors[key] = tensors[key] / factor
    write_safetensors(path, tensors, {CONFIG_KEY: model.config.to_json()})


def answers(model: masklet.Model, held: Sequence[Any]) -> list[Answer]:
    """The model's answers to a click in each object of each picture."""
    predictor, made = masklet.ImagePredictor(model), []
    for still in held:
        pixels = conventions_of(model.config).picture(still.image, model.image_size)
        features = model.encode_image(pixels, still.image.shape[:2])
        predictor.set_image(still.image)
        masks = [predictor.predict([deepest(truth)], [1])[0] > 0 for truth in still.masks]
        made.append(Answer(features.values["embedding"].numpy().ravel(), np.concatenate(masks)))
    return made


def error(expected: Answer, found: Answer) -> float:
    """Of one picture's embedding."""
    before, after = expected.embedding, found.embedding
    return float(np.linalg.norm(after - before) / np.linalg.norm(before - before.mean()))


def lost(expected: Answer, found: Answer) -> float:
    """Of one picture's masks."""
    return 1 - float(np.mean([iou(a, b) for a, b in zip(expected.masks, found.masks, strict=True)]))


def told(
    measure: Callable[[Answer, Answer], float], expected: Sequence[Answer], found: Sequence[Answer]
) -> str:
    """The mean over pictures, and how certain it is."""
    values = [measure(e, f) for e, f in zip(expected, found, strict=True)]
    return f"{np.mean(values):.4f} +- {np.std(values) / len(values) ** 0.5:.4f}"


if __name__ == "__main__":
    main()
