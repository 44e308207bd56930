"""A loaded model: a checkpoint, its configuration, and its stages as sessions that are made when first
needed.

In: a path or a published name. Out: `Model`, which the predictors share. Knows nothing about pictures or
prompts.
"""

from __future__ import annotations

import os
import threading as _threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masklet import registry
from masklet.errors import InputError, ModelNotFoundError, UnknownFormatError
from masklet.families import table
from masklet.families.family import Config
from masklet.families.keymaps import Tensors, canonical
from masklet.io.checkpoints import open_checkpoint
from masklet.model.tokens import TokenOrder
from masklet.runtime.cache import load_stage
from masklet.runtime.devices import find_device
from masklet.runtime.graph import Stage
from masklet.runtime.session import Session
from masklet.types import Candidates, FrameFeatures, ImageFeatures, Prompts, Remembered

if TYPE_CHECKING:
    from onnxruntime import OrtValue

PRECISIONS = ("f32",)
FUSED_DEVICES = ("cpu", "cuda")  # whose providers have ONNX Runtime's own operators


class Model:
    """A network with its weights on a device. Made by `load`; shared by any number of predictors.

    Safe to use from several threads. Not usable in a child that was forked after loading: stages say so.
    """

    def __init__(
        self,
        config: Config,
        tensors: Tensors,
        *,
        source: str,
        device: str = "cpu",
        threads: int | None = None,
        precision: str = "f32",
        image_size: int | None = None,
    ) -> None:
        """`tensors` are the weights under canonical keys. For the settings see `load`."""
        if precision not in PRECISIONS:
            raise InputError(f"precision is {precision!r}; allowed is {', '.join(PRECISIONS)}.")
        self.config = config
        self.source = source
        self.family = table.family_of(config)
        self.image_size = self.family.check_size(config.image_size if image_size is None else image_size)
        self.device = find_device(device)
        self.threads = threads
        self.precision = precision
        self._tensors = tensors
        self._dialect = "fused" if self.device.name in FUSED_DEVICES else "portable"
        self._stages = self._load(self.family.image_stages)
        self._sessions: dict[str, Session] = {}
        self._lock = _threading.RLock()

    def __repr__(self) -> str:
        name = self.family.preset_name(self.config) or "custom"
        return f"Model({name}, {self.image_size} px, {self.device.name}, {self.source})"

    @property
    def orders(self) -> tuple[TokenOrder, ...]:
        """The orders of feature tokens, finest first; the embedding's is the third."""
        return self.config.orders(self.image_size, nested=True)

    @property
    def features(self) -> tuple[str, ...]:
        """The names of what decoding takes of an encoded picture."""
        return tuple(
            name for name in self.stage("encode_image").outputs if name in self.stage("decode_masks").inputs
        )

    def tensor(self, key: str) -> np.ndarray:
        """A tensor of the checkpoint by its canonical key."""
        return self._tensors.array(key)

    def stage(self, name: str) -> Stage:
        """A compiled stage by name. Raises TensorMismatchError for one of video when the file has pictures'
        only, InputError when the whole family has."""
        with self._lock:
            if name not in self._stages:
                self.check_tracks()
                self._stages.update(self._load(self.family.video_stages))
            return self._stages[name]

    def check_tracks(self) -> None:
        """Raises InputError for a model of a family that is for pictures only."""
        if not self.family.video_stages:
            raise InputError(
                f"{self.source} is a {self.family.title} model, which is for pictures; "
                "give one of SAM 2 or EdgeTAM to track objects."
            )

    def session(self, name: str) -> Session:
        """The running session of a stage, made on first use."""
        with self._lock:
            if name not in self._sessions:
                stage = self.stage(name)
                self._sessions[name] = Session(stage, self._tensors.array, self.device, self.threads)
                self._tensors.release_pages()  # the engine has packed them for itself
            return self._sessions[name]

    def encode_image(self, image: np.ndarray, size_hw: tuple[int, int]) -> ImageFeatures:
        """(1, 3, S, S) float32, normalised -> features; `size_hw` is the picture's own size."""
        return ImageFeatures(size_hw, self.session("encode_image").run({"image": image}, self.features))

    def encode_frame(self, image: np.ndarray, size_hw: tuple[int, int]) -> FrameFeatures:
        """Like `encode_image`, with what tracking needs of a frame whatever the object."""
        wanted = [*self.features, "stride16"]
        values = self.session("encode_image").run({"image": image}, wanted)
        stride16 = values.pop("stride16")
        begun = self.session("begin_frame").run({"stride16": stride16})
        return FrameFeatures(
            ImageFeatures(size_hw, values),
            stride16,
            begun["frame_tokens"],
            begun["frame_queries"],
            begun["frame_pixels"],
        )

    def attend(self, frame: FrameFeatures, remembered: Remembered) -> OrtValue:
        """The frame's embedding (B, T, C) as each of B objects sees it in the light of its memories."""
        feeds = {"frame_tokens": frame.tokens, "frame_queries": frame.queries, **vars(remembered)}
        session = self.session("attend_memory")
        if "distances" not in session.stage.inputs:  # as in 2.0, whose pointers have no position in time
            del feeds["distances"]
        return session.run(feeds)["embedding"]

    def encode_memory(
        self, frame: FrameFeatures, logits: np.ndarray, object_score: np.ndarray, *, binary: bool
    ) -> np.ndarray:
        """Memories (B, T, M) of masks (B, 1, S / 4, S / 4) with scores (B, 1); `binary` cuts the masks at
        zero."""
        feeds = {
            "frame_pixels": frame.pixels,
            "mask_logits": logits,
            "binary": np.array([binary]),
            "object_score": object_score,
        }
        return self.session("encode_memory").run(feeds)["memories"].numpy()

    def point(self, tokens: np.ndarray, object_score: np.ndarray) -> np.ndarray:
        """Object pointers (B, C) of mask tokens (B, C) with scores (B, 1)."""
        feeds = {"mask_token": tokens, "object_score": object_score}
        return self.session("point_to_object").run(feeds)["pointers"].numpy()

    def shrink_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask prompt (B, 1, S, S) of zeros and ones as low-resolution input (B, 1, S / 4, S / 4)."""
        return self.session("shrink_mask").run({"mask_prompt": mask})["mask"].numpy()

    def decode(
        self, features: ImageFeatures, prompts: Prompts, embedding: OrtValue | None = None
    ) -> Candidates:
        """Four mask candidates for each of the prompts' B objects; `embedding` (1 or B, T, C) replaces the
        picture's."""
        embedded = self.session("encode_points").run({"coords": prompts.coords, "labels": prompts.labels})
        dense: OrtValue = embedded["dense"]
        if prompts.mask is not None:
            dense = self.session("encode_mask").run({"mask": prompts.mask})["dense"]
        feeds = {**features.values, "sparse": embedded["sparse"], "dense": dense}
        if embedding is not None:
            feeds["embedding"] = embedding
        values = self.session("decode_masks").run(feeds)
        return as_candidates({name: value.numpy() for name, value in values.items()})

    def _load(self, names: tuple[str, ...]) -> dict[str, Stage]:
        """Stages of pictures or of video, after the check that the file has their tensors."""
        stages = {name: load_stage(self.config, name, self.image_size, self._dialect) for name in names}
        expected = {key: shape for stage in stages.values() for key, shape in stage.tensors.items()}
        video = names == self.family.video_stages
        self.family.check_tensors(expected, self._tensors.shapes, self.source, video=video)
        return stages


def load(
    path_or_name: str | os.PathLike[str],
    *,
    device: str = "cpu",
    threads: int | None = None,
    precision: str = "f32",
    image_size: int | None = None,
) -> Model:
    """Load a model from a checkpoint file, or by its published name (downloaded when it isn't there yet).

    `device` is an execution provider in plain words ("cpu", "cuda", "openvino", ...), `threads` how many the
    CPU uses (None: all), `image_size` the side of the square input in pixels, a multiple of 32: SAM of 16,
    tracking with EdgeTAM of 256 (None: the model's own). Raises ModelNotFoundError, CheckpointError and its
    kinds, DownloadError, DeviceError, InputError.
    """
    path = find_file(path_or_name)
    checkpoint = open_checkpoint(path)
    tensors = canonical(checkpoint)
    try:
        config = table.recognise(tensors.shapes, checkpoint.metadata)
    except UnknownFormatError as error:
        raise UnknownFormatError(f"{path}: {error}") from error
    return Model(
        config,
        tensors,
        source=str(path),
        device=device,
        threads=threads,
        precision=precision,
        image_size=image_size,
    )


def find_file(path_or_name: str | os.PathLike[str]) -> Path:
    """The local file of a path or published name; a path never touches the network."""
    text = os.fspath(path_or_name)
    path = Path(text).expanduser()
    if path.exists():
        return path
    try:
        published = registry.find(text)
    except ModelNotFoundError as error:
        if path.suffix or path.is_absolute():
            raise ModelNotFoundError(f"There is no file {text!r}. {error}") from error
        raise
    from masklet.io.hub import fetch

    return fetch(published)


def as_candidates(values: dict[str, np.ndarray]) -> Candidates:
    """What `decode_masks` gave. Without an object score, as in SAM, every object counts as there."""
    present = np.full((len(values["logits"]), 1), np.inf, np.float32)
    return Candidates(**{"object_score": present, **values})
