"""Does masklet give the masks that the trained torch network gives? `python tools/nano/agree.py DATA RUN`.

In: held-out pictures and a run's checkpoint. Out: for the file in f32 and in f16, how far masks agree with
those of the `sam2` package on the same weights in f32: the mean and the smallest IoU.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from export import DTYPES, export
from metrics import bounding_box, deepest, iou
from network import NANO, build
from sam2.sam2_image_predictor import SAM2ImagePredictor
from scenes import Scenes

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
    stills = [Scenes(options.data, "held", 384, 1).still(index) for index in range(options.pictures)]
    expected = answers(SAM2ImagePredictor(network), stills)
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            path = Path(folder) / f"{dtype}.safetensors"
            export(options.run, path, dtype, options.image_size)
            found = answers(masklet.ImagePredictor(masklet.load(str(path))), stills)
            ious = [iou(mask, truth) for mask, truth in zip(found, expected, strict=True)]
            print(
                f"{dtype}: {len(ious)} masks, IoU with torch mean {np.mean(ious):.5f}, least {min(ious):.5f}"
            )


def answers(predictor: Any, stills: list[Any]) -> list[np.ndarray]:
    """The masks of each object, from a click (all three candidates) and from its box."""
    masks = []
    for still in stills:
        predictor.set_image(still.image)
        for truth in still.masks:
            clicked, _, _ = predictor.predict(np.array([deepest(truth)]), np.array([1]))
            boxed, _, _ = predictor.predict(box=np.array(bounding_box(truth)), multimask_output=False)
            masks += [mask > 0 for mask in (*clicked, *boxed)]
    return masks


if __name__ == "__main__":
    main()
