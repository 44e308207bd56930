"""Pictures and clips with exact masks for training and evaluation: an index in, a `Still` or a `Clip` out.

A scene depends on (seed, split, index) and the data folder alone, not on what was drawn before nor on the
process. The data folder is described in `assets.py`; without it, all is procedural.

    python tools/nano/scenes.py DATA --preview OUT.png [--clip]    # a sheet with the masks' outlines
"""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
from assets import Assets
from clips import Clip, compose_clip
from layers import Stock
from shapes import shape_families
from sheet import save_sheet
from stills import Still, compose_still
from textures import texture_families

SPLITS = ("train", "held")
# Decoding a sprite costs more than drawing it: a stretch of indices shares some, so that a cache helps those
# who count up.
_STRETCH, _SPRITES, _PHOTOS = 2048, 320, 96
_STOCK, _STILL, _CLIP = range(3)  # what a stream of random numbers is for


class Scenes:
    """All scenes of a split, pictures of `size` x `size` pixels."""

    def __init__(self, data_dir: str | Path, split: str = "train", size: int = 256, seed: int = 0) -> None:
        if split not in SPLITS:
            raise ValueError(f"split={split!r}; it is one of {', '.join(SPLITS)}.")
        self.split, self.size, self.seed = split, size, seed
        self.assets = Assets(data_dir, split, size)
        self._stocks: dict[int, Stock] = {}

    def still(self, index: int) -> Still:
        """Picture number `index`."""
        cv2.setNumThreads(1)  # a worker has one core
        return compose_still(self._rng(_STILL, index), self._stock_for(index), self.size)

    def clip(self, index: int, frames: int = 8) -> Clip:
        """Clip number `index`; a longer one is another clip."""
        cv2.setNumThreads(1)
        return compose_clip(self._rng(_CLIP, index), self._stock_for(index), self.size, frames)

    def items(self) -> list[str]:
        """All that this split may draw: its sprites, photographs and procedural families."""
        return [
            *(f"sprite:{name}" for name in self.assets.sprites),
            *(f"photo:{name}" for name in self.assets.photos),
            *(f"shape:{name}" for name in shape_families(self.split)),
            *(f"texture:{name}" for name in texture_families(self.split)),
        ]

    def _rng(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, SPLITS.index(self.split), purpose, number])

    def _stock_for(self, index: int) -> Stock:
        stretch = index // _STRETCH
        if stretch not in self._stocks:
            rng = self._rng(_STOCK, stretch)
            chosen = [
                [names[i] for i in rng.permutation(len(names))[:count]]
                for names, count in ((self.assets.sprites, _SPRITES), (self.assets.photos, _PHOTOS))
            ]
            # Stills and clips may be in different stretches: two of each are enough for those who count up.
            self._stocks = dict(list(self._stocks.items())[-3:])
            self._stocks[stretch] = Stock(self.assets, *chosen)
        return self._stocks[stretch]


def main() -> None:
    """Writes a sheet of scenes."""
    parser = argparse.ArgumentParser(
        description="A sheet of training pictures or clips with the masks' outlines."
    )
    parser.add_argument("data", type=Path, help="the gathered data; see tools/nano/DATA.md")
    parser.add_argument("--preview", type=Path, required=True, metavar="OUT.png")
    parser.add_argument("--clip", action="store_true", help="clips, one to a row")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the index of the first scene")
    options = parser.parse_args()
    scenes = Scenes(options.data, options.split, seed=options.seed)
    if options.clip:
        clips = [scenes.clip(options.first + row) for row in range(6)]
        cells = [cell for clip in clips for cell in zip(clip.images, clip.masks, strict=True)]
        save_sheet(options.preview, cells, columns=8)
    else:
        stills = [scenes.still(options.first + cell) for cell in range(24)]
        save_sheet(options.preview, [(still.image, still.masks) for still in stills], columns=6)


if __name__ == "__main__":
    main()
