"""Stand-ins for tests and demonstrations: seeded "lively" weights, pictures and clips with known masks.

In: tensor names and shapes, or a seed and a picture's size. Out: numpy arrays; and checkpoints made of them.
Weights and pictures know nothing about engines, graphs or files.

Randomly initialised reference models have zero positional tables and unit norms, which hide bugs: a table
that is added in the wrong place changes nothing. `lively_weights` therefore gives every tensor a value that
matters, at a scale that keeps activations sane through the deepest trunk, so that masks are neither empty nor
full.

Everything here is bit-identical on every platform and numpy version: only the raw words of PCG64 (a stream
that numpy guarantees), integer arithmetic, and single float32 operations, which IEEE 754 rounds exactly. No
value passes through a library's `exp`, `sin` or `normal`, so expected outputs made on one machine hold on
all.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from masklet.errors import InputError

if TYPE_CHECKING:
    from masklet.families.edgetam import EdgeTamConfig
    from masklet.families.family import Config
    from masklet.families.sam1 import Sam1Config
    from masklet.families.sam2 import Sam2Config

__all__ = [
    "Clip",
    "Scene",
    "lively_weights",
    "occlusion_clip",
    "sampled",
    "stand_in_weights",
    "synthetic_clip",
    "synthetic_scene",
    "tiny_config",
    "tiny_edgetam_config",
    "tiny_sam1_config",
    "weights_sha256",
    "write_stand_in",
]

# ---------------------------------------------------------------------------------------------------- weights

# A sum of four uniform 16-bit words: mean 4 * 65535 / 2, variance 4 * (65536^2 - 1) / 12. Near enough to a
# normal (excess kurtosis -0.3, nothing beyond 3.5 standard deviations), and exact in float32.
_SUM_MEAN = np.float32(4 * 65535 / 2)
_SUM_STD = np.float32(math.sqrt(4 * (65536.0**2 - 1) / 12))

# The last layers of the hypernetworks set the spread of the mask logits. Trained models have 4 to 8: some
# logits exceed the clamp at +-32. The single mask's (token 0) is smaller, so that its stability falls on both
# sides of the threshold 0.98. Given for 32 output channels; logits are sums over these channels, so fewer of
# them get more.
_SINGLE_MASK_GAIN, _MULTIMASK_GAIN, _GAIN_CHANNELS = 1.25, 2.0, 32

# With unit gains, attention mixes thousands of memory tokens nearly evenly: exchanging two memories changes a
# mask less than rounding does. Sharper queries look at few tokens, sharper times tell pointers apart.
_MEMORY_QUERY_GAIN, _POINTER_TIME_GAIN = 3.0, 4.0

# RepViT has no norm behind its sums: with unit gains they grow a thousandfold through its blocks.
_BRANCH_GAIN = 0.5

_RANDOM_FOURIER = re.compile(r"(^|\.)positional_encoding_gaussian_matrix$")
_TABLE = re.compile(
    r"(^|\.)(pos_embed|pos_embed_window|rel_pos_[hw]|maskmem_tpos_enc|no_mem_embed|no_mem_pos_enc|no_obj_ptr|no_obj_embed_spatial"
    r"|latents|latents_2d|(point_embeddings\.\d+|not_a_point_embed|no_mask_embed|iou_token|mask_tokens|obj_score_token)\.weight)$"
)
_TRANSPOSED_CONV = re.compile(r"(^|\.)output_upscaling\.[03]\.weight$")
_MEMORY_QUERY = re.compile(r"(^|\.)cross_attn_image\.q_proj\.weight$")
_POINTER_TIME = re.compile(r"(^|\.)obj_ptr_tpos_proj\.weight$")
_HYPERNETWORK_OUT = re.compile(r"(^|\.)output_hypernetworks_mlps\.(\d+)\.layers\.2\.weight$")
_BRANCH = re.compile(r"(^|\.)(token_mixer\.conv1?\.c|(channel_mixer|ffn)\.conv2\.c|se\.fc2)\.weight$")
_OBJECT_SCORE_BIAS = re.compile(r"(^|\.)pred_obj_score_head\.(layers\.2\.)?bias$")


def lively_weights(
    shapes: Mapping[str, tuple[int, ...]], seed: int = 0, *, object_score_bias: float | None = None
) -> dict[str, np.ndarray]:
    """Seeded float32 weights for tensors of a SAM or SAM 2 checkpoint, by Meta's names.

    Each tensor depends on `seed`, its own name and its own shape only: neither order nor company matters, so
    a part of a model gets the same values as the whole. `object_score_bias` replaces the bias of the object
    score's last layer: +5 makes an object present for every prompt, -5 absent.

    Raises `InputError` for a tensor whose role its name and shape do not tell.
    """
    weights = {}
    for name, shape in shapes.items():
        shape = tuple(shape)
        mean, std = _mean_and_std(name, shape)
        if object_score_bias is not None and _OBJECT_SCORE_BIAS.search(name):
            weights[name] = np.full(shape, object_score_bias, np.float32)
        else:
            weights[name] = np.float32(mean) + np.float32(std) * _normal(f"{seed}:{name}", shape)
    return weights


def weights_sha256(weights: Mapping[str, np.ndarray]) -> str:
    """A checksum of float32 tensors and their names, whatever their order."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name}{tuple(weights[name].shape)}".encode())
        digest.update(np.ascontiguousarray(weights[name], "<f4").tobytes())
    return digest.hexdigest()


def _mean_and_std(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """The distribution of one tensor, from its role."""
    if _RANDOM_FOURIER.search(name):
        return 0.0, 1.0
    if _TABLE.search(name):
        return 0.0, 0.3
    if name.endswith(".gamma"):  # layer scale
        return 0.5, 0.1
    if name.endswith((".bias", ".bn.running_mean")):
        return 0.0, 0.1
    if name.endswith(".bn.running_var"):
        return 1.0, 0.15
    if name.endswith(".weight") and len(shape) == 1:  # normalisation
        return 1.0, 0.15
    if name.endswith(".weight") and len(shape) >= 2:
        # A transposed convolution whose stride is its kernel size sums over its input channels only, and has
        # them first.
        fan_in = shape[0] if _TRANSPOSED_CONV.search(name) else math.prod(shape[1:])
        return 0.0, _gain(name, shape[0]) / math.sqrt(fan_in)
    raise InputError(
        f"no lively fill is known for the tensor {name!r} of shape {shape}; use Meta's SAM 2 keys, such as"
        " 'image_encoder.trunk.blocks.0.attn.qkv.weight'"
    )


def _gain(name: str, channels: int) -> float:
    if _MEMORY_QUERY.search(name):
        return _MEMORY_QUERY_GAIN
    if _POINTER_TIME.search(name):
        return _POINTER_TIME_GAIN
    if _BRANCH.search(name):
        return _BRANCH_GAIN
    found = _HYPERNETWORK_OUT.search(name)
    if not found:
        return 1.0
    return (_SINGLE_MASK_GAIN if found[2] == "0" else _MULTIMASK_GAIN) * math.sqrt(_GAIN_CHANNELS / channels)


def _normal(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values of mean 0 and standard deviation 1, fixed by `key`."""
    words = _raw(key, math.prod(shape)).view("<u2")
    total = np.add(words[0::4], words[1::4], dtype=np.uint32)
    total += words[2::4]
    total += words[3::4]
    return ((total.astype(np.float32) - _SUM_MEAN) / _SUM_STD).reshape(shape)


def _raw(key: str, count: int) -> np.ndarray:
    """`count` uniform 64-bit words, little-endian, fixed by `key`."""
    seed = np.frombuffer(hashlib.sha256(key.encode()).digest(), "<u4").tolist()
    return np.random.PCG64(np.random.SeedSequence(seed)).random_raw(count).astype("<u8", copy=False)


# ------------------------------------------------------------------------------------------- expected outputs


def sampled(array: np.ndarray, limit: int) -> np.ndarray:
    """`array` itself if it has at most `limit` elements, else `limit` of them, flat, at positions that its
    size fixes.

    Expected outputs of large intermediates are stored this way: the positions (multiples of the golden ratio,
    modulo the size) spread evenly over the tensor, and no short period of rows, windows or channels escapes
    them.
    """
    if array.size <= limit:
        return array
    fraction = (np.arange(limit, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)
    return array.reshape(-1)[(fraction * np.uint64(array.size)) >> np.uint64(32)]


# --------------------------------------------------------------------------------------------------- pictures

_MIN_SIDE = 32
_SHAPES = ("ellipse", "rectangle", "ring", "cross")
_TEXTURES = ("stripes", "checks", "speckle", "plain")
_VIVID = ((214, 40, 40), (20, 90, 200), (20, 130, 60), (240, 120, 20), (130, 40, 160))  # RGB


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture of K textured shapes whose visible parts are known. Pixels are those of `image`."""

    image: np.ndarray  # (H, W, 3) uint8, RGB
    masks: np.ndarray  # (K, H, W) bool, what is visible of each shape; disjoint, none is empty
    points_xy: np.ndarray  # (K, 2) float32, the pixel of each mask farthest from its outline
    boxes_xyxy: np.ndarray  # (K, 4) float32, the first and last column and row of each mask


def synthetic_scene(seed: int = 0, size_hw: tuple[int, int] = (720, 1280)) -> Scene:
    """A seeded picture: four textured shapes, which may partly hide each other, on a smooth background, with
    noise.

    Raises `InputError` for a side under 32 pixels.
    """
    height, width = _checked_size_hw(size_hw)
    draw = _Draw(f"{seed}:scene")
    image = _background(draw, height, width)
    order = draw.shuffled(len(_SHAPES))
    shapes = [_draw_shape(draw, index, _SHAPES[kind], height, width) for index, kind in enumerate(order)]
    image, masks = _render(image, shapes, f"{seed}:noise")
    points_xy = np.stack([_deepest_pixel_xy(mask) for mask in masks])
    boxes_xyxy = np.stack([_bounding_box_xyxy(mask) for mask in masks])
    return Scene(image, masks, points_xy, boxes_xyxy)


@dataclass(frozen=True, eq=False)
class Clip:
    """F frames in which K textured shapes move and hide each other. Pixels are those of `frames`."""

    frames: np.ndarray  # (F, H, W, 3) uint8, RGB
    masks: np.ndarray  # (F, K, H, W) bool, what is visible of each shape; disjoint, empty where it is hidden

    def point_xy(self, frame: int, shape: int) -> np.ndarray:
        """(2,) float32: the pixel (x, y) farthest from the shape's outline. A hidden shape: `InputError`."""
        return _deepest_pixel_xy(self._visible(frame, shape))

    def box_xyxy(self, frame: int, shape: int) -> np.ndarray:
        """(4,) float32: the shape's first and last column and row. A hidden shape: `InputError`."""
        return _bounding_box_xyxy(self._visible(frame, shape))

    def _visible(self, frame: int, shape: int) -> np.ndarray:
        mask = self.masks[frame, shape]
        if not mask.any():
            raise InputError(
                f"shape {shape} is hidden in frame {frame} of the clip; choose a frame in which it shows"
            )
        return mask


def synthetic_clip(seed: int = 0, num_frames: int = 24, size_hw: tuple[int, int] = (144, 192)) -> Clip:
    """A seeded clip: the shapes of a scene pass over each other and turn back at the picture's edges, the
    background drifts, and every frame has its own noise. Frame t is the same whatever the clip's length.

    Raises `InputError` for a side under 32 pixels and for a clip without frames.
    """
    height, width = _checked_size_hw(size_hw)
    if num_frames < 1:
        raise InputError(f"a clip of {num_frames} frames was asked for; give 1 or more")
    draw, cell = _Draw(f"{seed}:clip"), min(height, width) // 2
    background = _background(draw, height + cell, width + cell)
    order = draw.shuffled(len(_SHAPES))
    shapes = [_draw_shape(draw, index, _SHAPES[kind], height, width) for index, kind in enumerate(order)]
    # In sixteenths of a pixel a frame: a cell in 12 to 6 frames, the background a third as fast.
    moves = [_Move(*(draw.sign() * cell * 16 // draw.between(6, 12) for _ in "yx")) for _ in shapes]
    drift = _Move(*(draw.sign() * cell * 16 // draw.between(18, 36) for _ in "yx"))

    frames, masks = [], []
    for time in range(num_frames):
        top, left = drift.at(time, (cell // 2, cell // 2), (cell, cell))
        placed = [
            replace(shape, centre_yx=move.at(time, shape.centre_yx, (height - 1, width - 1)))
            for shape, move in zip(shapes, moves, strict=True)
        ]
        window = background[top : top + height, left : left + width].copy()
        image, visible = _render(window, placed, f"{seed}:clip noise {time}")
        frames.append(image)
        masks.append(visible)
    return Clip(np.stack(frames), np.stack(masks))


def occlusion_clip(seed: int = 0, num_frames: int = 24, size_hw: tuple[int, int] = (144, 192)) -> Clip:
    """A seeded clip of two shapes: number 0, a ball of one vivid colour, goes from left to right behind
    number 1, a striped pillar that hides it whole for about a fifth of the frames. The background is pale,
    every frame has its own noise.

    Raises `InputError` for a side under 32 pixels and for a clip of fewer than 8 frames.
    """
    height, width = _checked_size_hw(size_hw)
    if num_frames < 8:
        raise InputError(f"an occlusion in {num_frames} frames was asked for; give 8 or more")
    draw, short = _Draw(f"{seed}:occlusion"), min(height, width)
    background = _background(draw, height, width) // 4 + 144
    radius, row = short // 7, height // 2 + draw.between(-height // 8, height // 8)
    vivid = np.array(_VIVID[draw.between(0, len(_VIVID) - 1)])
    ball = _Shape("ellipse", (row, 0), radius, radius, (1, 0), short, "plain", (vivid, vivid))
    stripes = np.array([60, 62, 66]), np.array([96, 98, 102])
    half_width = radius + width // 12
    pillar = _Shape(
        *("rectangle", (height // 2, width // 2), half_width, height, (1, 0)), short // 12, "stripes", stripes
    )
    frames, masks = [], []
    for time in range(num_frames):
        column = width // 8 + (width - width // 4) * time // (num_frames - 1)
        shapes = [replace(ball, centre_yx=(row, column)), pillar]
        image, visible = _render(background.copy(), shapes, f"{seed}:occlusion noise {time}")
        frames.append(image)
        masks.append(visible)
    return Clip(np.stack(frames), np.stack(masks))


@dataclass(frozen=True)
class _Move:
    """A velocity in sixteenths of a pixel a frame."""

    y: int
    x: int

    def at(self, time: int, start_yx: tuple[int, int], last_yx: tuple[int, int]) -> tuple[int, int]:
        """Where what started at `start_yx` is, when it turns back at 0 and at `last_yx`."""
        y, x = (
            last - abs((start * 16 + velocity * time) // 16 % (2 * last) - last)
            for start, velocity, last in zip(start_yx, (self.y, self.x), last_yx, strict=True)
        )
        return y, x


def _checked_size_hw(size_hw: tuple[int, int]) -> tuple[int, int]:
    height, width = size_hw
    if min(height, width) < _MIN_SIDE:
        raise InputError(
            f"a scene of {height} x {width} pixels is too small; both sides must be {_MIN_SIDE} or more"
        )
    return height, width


class _Draw:
    """Integers from a seeded stream, in the order asked for."""

    def __init__(self, key: str) -> None:
        self._words = iter(_raw(key, 1024).tolist())

    def between(self, low: int, high: int) -> int:
        """One integer of low .. high, both included."""
        return low + next(self._words) % (high - low + 1)

    def sign(self) -> int:
        return 2 * self.between(0, 1) - 1

    def colour(self) -> np.ndarray:
        return np.array([self.between(16, 240) for _ in range(3)])

    def shuffled(self, count: int) -> list[int]:
        """0 .. count - 1 in a drawn order."""
        rest = list(range(count))
        return [rest.pop(self.between(0, len(rest) - 1)) for _ in range(count)]


def _background(draw: _Draw, height: int, width: int) -> np.ndarray:
    """(H, W, 3) int64: a 4 x 5 lattice of colours, interpolated bilinearly in 1/256 steps."""
    rows, columns = 4, 5
    lattice = np.stack([draw.colour() for _ in range(rows * columns)]).reshape(rows, columns, 3)
    y = np.arange(height, dtype=np.int64) * ((rows - 1) * 256) // height
    x = np.arange(width, dtype=np.int64) * ((columns - 1) * 256) // width
    (y0, fy), (x0, fx) = divmod(y, 256), divmod(x, 256)
    fy, fx = fy[:, None, None], fx[None, :, None]
    top = lattice[y0][:, x0] * (256 - fx) + lattice[y0][:, x0 + 1] * fx
    bottom = lattice[y0 + 1][:, x0] * (256 - fx) + lattice[y0 + 1][:, x0 + 1] * fx
    return (top * (256 - fy) + bottom * fy) >> 16


@dataclass(frozen=True, eq=False)
class _Shape:
    """A textured shape. Its own axes u, v are integers, scaled by the length of `direction`."""

    kind: str
    centre_yx: tuple[int, int]
    half_u: int
    half_v: int
    direction: tuple[int, int]
    period: int
    texture: str
    colours: tuple[np.ndarray, np.ndarray]

    def cover(self, image: np.ndarray, owner: np.ndarray, index: int) -> None:
        """Draw into `image` and `owner`, over what is there."""
        height, width = owner.shape
        (a, b), (centre_y, centre_x) = self.direction, self.centre_yx
        squared, length = a * a + b * b, math.isqrt(a * a + b * b)
        dy = np.arange(height, dtype=np.int64)[:, None] - centre_y
        dx = np.arange(width, dtype=np.int64)[None, :] - centre_x
        u, v = a * dx + b * dy, a * dy - b * dx
        inside = _inside(self.kind, u * u, v * v, self.half_u**2 * squared, self.half_v**2 * squared)

        period = self.period * length
        if self.texture == "stripes":
            second = (u // period) % 2 == 1
        elif self.texture == "checks":
            second = (u // period + v // period) % 2 == 1
        elif self.texture == "speckle":
            second = ((u // length) * 7 + (v // length) * 13) % 11 < 4
        else:
            second = np.zeros(owner.shape, bool)
        image[inside] = np.where(second[..., None], self.colours[1], self.colours[0])[inside]
        owner[inside] = index


def _draw_shape(draw: _Draw, index: int, kind: str, height: int, width: int) -> _Shape:
    """A shape in quarter `index` of the picture."""
    cell = min(height, width) // 2
    row, column = divmod(index, 2)
    centre_y = height * (2 * row + 1) // 4 + draw.between(-cell // 8, cell // 8)
    centre_x = width * (2 * column + 1) // 4 + draw.between(-cell // 8, cell // 8)
    # No shape reaches farther than 0.7 cells, and centres are 0.75 cells apart or more: every centre stays
    # visible.
    half_u, half_v = draw.between(cell * 3 // 8, cell // 2), draw.between(cell // 4, cell // 2)
    direction = draw.between(1, 8), draw.between(-8, 8)
    period = max(2, cell // draw.between(6, 12))
    texture = _TEXTURES[draw.between(0, len(_TEXTURES) - 1)]
    colours = draw.colour(), draw.colour()
    return _Shape(kind, (centre_y, centre_x), half_u, half_v, direction, period, texture, colours)


def _render(image: np.ndarray, shapes: list[_Shape], noise: str) -> tuple[np.ndarray, np.ndarray]:
    """The picture of `shapes` over a background, with noise, and the visible part of each."""
    owner = np.full(image.shape[:2], -1)
    for index, shape in enumerate(shapes):
        shape.cover(image, owner, index)
    words = _raw(noise, -(-image.size // 8)).view(np.uint8)[: image.size].reshape(image.shape)
    image = np.clip(image + words.astype(np.int64) % 17 - 8, 0, 255).astype(np.uint8)
    return image, np.stack([owner == index for index in range(len(shapes))])


def _inside(kind: str, uu: np.ndarray, vv: np.ndarray, half_uu: int, half_vv: int) -> np.ndarray:
    """Whether each pixel is in the shape; all arguments are squares."""
    if kind == "rectangle":
        return (uu <= half_uu) & (vv <= half_vv)
    if kind == "cross":
        bar_u, bar_v = (uu <= half_uu) & (9 * vv <= half_vv), (9 * uu <= half_uu) & (vv <= half_vv)
        return bar_u | bar_v
    outline = half_uu * half_vv
    # The minimum keeps far pixels outside, and the products within 64 bits for sides up to 16384.
    radius = np.minimum(uu, half_uu + 1) * half_vv + np.minimum(vv, half_vv + 1) * half_uu
    inside = radius <= outline
    return inside & (radius > outline // 8) if kind == "ring" else inside


def _deepest_pixel_xy(mask: np.ndarray) -> np.ndarray:
    """(2,) float32: the pixel (x, y) farthest, in city blocks, from anything outside `mask`; the first one of
    equals."""
    distance = np.where(np.pad(mask, 1), mask.size, 0)
    for axis in (0, 1):
        steps = np.arange(distance.shape[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
        forward = np.minimum.accumulate(distance - steps, axis) + steps
        backward = np.flip(np.minimum.accumulate(np.flip(distance + steps, axis), axis), axis) - steps
        distance = np.minimum(forward, backward)
    y, x = np.unravel_index(np.argmax(distance), distance.shape)
    return np.array([x - 1, y - 1], np.float32)


def _bounding_box_xyxy(mask: np.ndarray) -> np.ndarray:
    """(4,) float32: the first and last column and row with a pixel."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float32)


# ----------------------------------------------------------------------------------------------------- models


def tiny_config(version: str = "2.1", image_size: int = 128) -> Sam2Config:
    """A SAM 2 network small enough for tests: padded windows, global blocks and every kind of layer, 0.5 M
    parameters."""
    from masklet.families.sam2 import Sam2Config
    from masklet.model.config import HieraConfig

    trunk = HieraConfig(16, 1, (1, 2, 3, 1), (4,), (8, 4, 14, 7), (7, 7))
    return Sam2Config(version, trunk, 64, 16, 2048, 4, image_size)


def tiny_sam1_config(image_size: int = 128) -> Sam1Config:
    """A SAM network small enough for tests: padded windows and global blocks, 0.4 M parameters."""
    from masklet.families.sam1 import Sam1Config
    from masklet.model.config import VitConfig

    return Sam1Config(VitConfig(32, 4, 2, (1, 3), 3), 64, 256, image_size)


def tiny_edgetam_config(image_size: int = 128) -> EdgeTamConfig:
    """An EdgeTAM network small enough for tests: every kind of block, 16 + 16 latents, 0.3 M parameters."""
    from masklet.families.edgetam import EdgeTamConfig
    from masklet.model.config import RepVitConfig

    trunk = RepVitConfig((8, 16, 24, 32), (1, 2, 3, 1))
    return EdgeTamConfig(trunk, 64, 16, 256, 2, 2, 16, 16, image_size)


def stand_in_weights(config: Config, seed: int = 0, **fill: float | None) -> dict[str, np.ndarray]:
    """Lively weights for every tensor that a configuration's stages read."""
    from masklet.families.table import family_of
    from masklet.runtime.cache import load_stage

    names = (*family_of(config).image_stages, *family_of(config).video_stages)
    stages = [load_stage(config, name, config.image_size, "fused") for name in names]
    shapes = {key: shape for stage in stages for key, shape in stage.tensors.items()}
    return lively_weights(shapes, seed, **fill)


def write_stand_in(path: str | os.PathLike[str], config: Config, seed: int = 0, **fill: float | None) -> None:
    """Write a checkpoint with lively weights that `masklet.load` reads: real in form, but its masks mean
    nothing."""
    from masklet.families.family import CONFIG_KEY
    from masklet.io.safetensors import write_safetensors

    write_safetensors(path, stand_in_weights(config, seed, **fill), {CONFIG_KEY: config.to_json()})
