"""Does masklet give the masks that the trained torch network gives? `python tools/nano/agree.py DATA RUN`.

In: held-out pictures and a run's checkpoint. Out: for the file in f32 and in f16, how far masks agree with
those of the `sam2` modules with the trained weights in f32: the mean and the smallest IoU, at stride 4.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export import DTYPES, export
from metrics import bounding_box, deepest, iou
from network import NANO, build
from scenes import Scenes
from steps import BOX, CLICK, decode, encode, first_prompt

import masklet


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the folder that gather.py made")
    parser.add_argument("run", type=Path, help="folder of tools/nano/train.py")
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--image-size", type=int, default=256, help="side of the network's input, in pixels")
    options = parser.parse_args()

    saved = torch.load(options.run / "checkpoint.pt", map_location="cpu", weights_only=True)
    network = build(NANO, options.image_size).eval()
    network.load_state_dict(saved["ema"])
    scenes = Scenes(options.data, "held", options.image_size, 1)
    stills = [scenes.still(index) for index in range(options.pictures)]
    expected = [mask for still in stills for mask in torch_masks(network, still)]
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            path = Path(folder) / f"{dtype}.safetensors"
            export(options.run, path, dtype, options.image_size)
            predictor = masklet.ImagePredictor(masklet.load(path))
            found = [mask for still in stills for mask in our_masks(predictor, still)]
            ious = [iou(mask, truth) for mask, truth in zip(found, expected, strict=True)]
            mean, least = np.mean(ious), min(ious)
            print(f"{dtype}: {len(ious)} masks, IoU with torch mean {mean:.5f}, least {least:.5f}")


def our_masks(predictor: masklet.ImagePredictor, still: Any) -> Iterator[np.ndarray]:
    """At stride 4, the three candidates of a click in each object, and of its box."""
    predictor.set_image(still.image)
    for truth in still.masks:
        _, _, clicked = predictor.predict(np.array([deepest(truth)]), np.array([1]))
        _, _, boxed = predictor.predict(box=np.array(bounding_box(truth)))
        yield from (*(clicked > 0), *(boxed > 0))


@torch.no_grad()
def torch_masks(network: Any, still: Any) -> Iterator[np.ndarray]:
    """The same of the modules that were trained."""
    encoded = encode(network, torch.from_numpy(still.image)[None])
    embedding = encoded.levels[-1] + network.no_mem_embed.view(1, -1, 1, 1)
    for truth in still.masks:
        click = np.array([deepest(truth)], np.float32)
        box = np.array([bounding_box(truth)], np.float32)
        for kind in (CLICK, BOX):
            coords, labels = first_prompt(kind, click, box, torch.device("cpu"))
            logits, _, _ = decode(network, embedding, encoded.levels[:2], coords, labels, None, several=True)
            yield from (logits[0] > 0).numpy()


if __name__ == "__main__":
    main()
