"""A trained run as the file that masklet loads: `python tools/nano/export.py RUN OUT.safetensors`.

In: a run's checkpoint. Out: its averaged weights under SAM 2.1's keys, with the configuration and the story
of the training in the metadata.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
import torch
from network import NANO, build

from masklet.families.family import CONFIG_KEY
from masklet.io.safetensors import write_safetensors

DTYPES = {"f16": torch.float16, "f32": torch.float32}


def export(run: Path, out: Path, dtype: str, image_size: int) -> dict[str, str]:
    """Write the file; returns its metadata."""
    saved = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    config = dataclasses.replace(NANO, image_size=image_size)
    build(config, image_size).load_state_dict(saved["ema"])  # every key and shape is as it should be
    weights = {name: value.to(DTYPES[dtype]).numpy() for name, value in saved["ema"].items()}
    unusable = [name for name, value in weights.items() if not np.isfinite(value).all()]
    if unusable:
        raise SystemExit(f"not finite as {dtype}: {', '.join(unusable)}")

    state = saved["state"]
    training = {
        "steps": state["step"],
        "pictures": state["stills"],
        "clips": state["clips"],
        "cycles": state["cycle"] + 1,
        "minutes": round(state["total_seconds"] / 60, 1),
    }
    metadata = {
        CONFIG_KEY: config.to_json(),
        "name": "masklet-nano",
        "license": "MIT",
        "training": json.dumps(training),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(out, weights, metadata)
    return metadata


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Export a trained masklet-nano.")
    parser.add_argument("run", type=Path, help="folder of tools/nano/train.py")
    parser.add_argument("out", type=Path, metavar="OUT.safetensors")
    parser.add_argument("--dtype", choices=DTYPES, default="f16")
    parser.add_argument("--image-size", type=int, default=256, help="side of the network's input, in pixels")
    options = parser.parse_args()
    metadata = export(options.run, options.out, options.dtype, options.image_size)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes, {metadata['training']}")


if __name__ == "__main__":
    main()
