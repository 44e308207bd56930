"""The gathered pictures of one split: names in, decoded pictures out, opened when first needed.

DATA/sprites/SPLIT/SOURCE/*.png are RGBA, DATA/photos/SPLIT/*.jpg RGB, DATA/regions/SPLIT/*.png 16-bit label
maps of photographs (0 = no region). Any may be missing. A bounded cache keeps what was decoded last; pickling
leaves it behind. Knows nothing about scenes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

CACHE_BYTES = 500 << 20


class Assets:
    """Sprites and photographs of a split, reduced to what a picture of `size` pixels can show."""

    def __init__(self, data_dir: str | Path, split: str, size: int) -> None:
        self.root, self.split, self.size = Path(data_dir), split, size
        sprites = self.root / "sprites" / split
        self.sprites = sorted(str(path.relative_to(sprites)) for path in sprites.glob("*/*.png"))
        self.photos = sorted(path.name for path in (self.root / "photos" / split).glob("*.jpg"))
        regions = {path.stem for path in (self.root / "regions" / split).glob("*.png")}
        self.mapped = [name for name in self.photos if Path(name).stem in regions]
        self._cache: OrderedDict[str, np.ndarray] = OrderedDict()
        self._held = 0

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache": OrderedDict(), "_held": 0}

    def sprite(self, name: str, side: float) -> np.ndarray:
        """Premultiplied RGBA (h, w, 4) uint8, cropped to what is opaque.

        Its longer side is at most `size`, and less than twice `side` if that is smaller.
        """
        path = f"sprites/{self.split}/{name}"
        longest = max(self._cached(path, self._decode_sprite).shape[:2])
        return self._halved(path, self._decode_sprite, int(np.log2(max(longest / side, 1))))

    def photo(self, name: str, halvings: int = 0) -> np.ndarray:
        """RGB (h, w, 3) uint8, about twice to four times `size`, halved so many times."""
        return self._halved(f"photos/{self.split}/{name}", self._decode_photo, halvings)

    def regions(self, name: str) -> np.ndarray:
        """The label map (h, w) uint16 of a photograph in `mapped`: same shape ratio, its own resolution."""
        return self._cached(f"regions/{self.split}/{Path(name).stem}.png", _decode_labels)

    def _cached(self, name: str, decode: Callable[[Path], np.ndarray]) -> np.ndarray:
        if name in self._cache:
            self._cache.move_to_end(name)
            return self._cache[name]
        picture = decode(self.root / name)
        self._cache[name] = picture
        self._held += picture.nbytes
        while self._held > CACHE_BYTES and len(self._cache) > 1:
            self._held -= self._cache.popitem(last=False)[1].nbytes
        return picture

    def _halved(self, name: str, decode: Callable[[Path], np.ndarray], times: int) -> np.ndarray:
        """Halves are kept: what is left to scale by less than a half needs no costly average."""
        if times == 0:
            return self._cached(name, decode)
        larger = self._halved(name, decode, times - 1)
        size = (max(larger.shape[1] // 2, 1), max(larger.shape[0] // 2, 1))
        return self._cached(f"{name}/{times}", lambda _: cv2.resize(larger, size, None, 0, 0, cv2.INTER_AREA))

    def _decode_sprite(self, path: Path) -> np.ndarray:
        rgba = _read(path, cv2.IMREAD_UNCHANGED)
        if rgba.ndim != 3 or rgba.shape[2] != 4 or rgba.dtype != np.uint8:
            raise ValueError(f"{path}: shape {rgba.shape} {rgba.dtype}; a sprite is an 8-bit RGBA picture.")
        alpha = cv2.extractChannel(rgba, 3)
        x, y, width, height = cv2.boundingRect((alpha >= 128).view(np.uint8))
        if width == 0:
            raise ValueError(f"{path}: nothing in it is opaque; leave it out.")
        window = np.s_[y : y + height, x : x + width]
        return shrink(premultiply(cv2.cvtColor(rgba, cv2.COLOR_BGRA2RGB)[window], alpha[window]), self.size)

    def _decode_photo(self, path: Path) -> np.ndarray:
        # The decoder halves for nothing: a 1024 pixel photograph costs a quarter at 512.
        flag = cv2.IMREAD_REDUCED_COLOR_2 if self.size <= 256 else cv2.IMREAD_COLOR
        return cv2.cvtColor(_read(path, flag), cv2.COLOR_BGR2RGB)


def premultiply(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """RGB and alpha as one premultiplied RGBA, which can be warped and blurred without fringes."""
    weighted = cv2.multiply(rgb, cv2.cvtColor(alpha, cv2.COLOR_GRAY2RGB), scale=1 / 255)
    rgba = cv2.cvtColor(weighted, cv2.COLOR_RGB2RGBA)
    return cv2.insertChannel(alpha, rgba, 3)


def shrink(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture with its longer side at most `side`."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    return cv2.resize(
        picture, (max(round(width * scale), 1), max(round(height * scale), 1)), None, 0, 0, cv2.INTER_AREA
    )


def _decode_labels(path: Path) -> np.ndarray:
    labels = _read(path, cv2.IMREAD_UNCHANGED)
    if labels.ndim != 2:
        raise ValueError(f"{path}: shape {labels.shape}; a label map has one channel.")
    return labels.astype(np.uint16)


def _read(path: Path, flag: int) -> np.ndarray:
    picture = cv2.imdecode(np.fromfile(path, np.uint8), flag)
    if picture is None:
        raise ValueError(f"{path}: not a picture that can be decoded; gather the data again.")
    return picture
