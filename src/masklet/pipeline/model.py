"""A loaded model: a checkpoint, its configuration, and its stages as sessions that are made when first
needed.

In: a path or a name, or neither. Out: `Model`, which the predictors share. Knows nothing about pictures or
prompts.
"""

from __future__ import annotations

import os
import threading as _threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masklet import registry
from masklet.errors import DeviceError, InputError, ModelNotFoundError, UnknownFormatError
from masklet.families import table
from masklet.families.family import Config
from masklet.families.keymaps import Tensors, canonical
from masklet.io.checkpoints import Checkpoint, open_checkpoint
from masklet.model.precision import PRECISIONS
from masklet.model.tokens import TokenOrder
from masklet.pipeline.profile import AUTO, DIALECTS, settings_of
from masklet.runtime import graph
from masklet.runtime.cache import load_stage
from masklet.runtime.devices import find_device
from masklet.runtime.graph import Stage, write_stage
from masklet.runtime.session import Session
from masklet.types import Candidates, FrameFeatures, ImageFeatures, Prompts, Remembered

if TYPE_CHECKING:
    from onnxruntime import OrtValue

WIDE = ("f32", "f64")  # types of more than 16 bits
CUTS = ("share_image", "decode_shared", "rate_prompts", "draw_masks")  # of decode_masks, with its tensors
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
        dialect: str | None = None,
        cache: bool = True,
        provider_options: Mapping[str, Any] | None = None,
    ) -> None:
        """`tensors` are the weights under canonical keys. For the settings see `load`."""
        if dialect is not None and dialect not in DIALECTS:
            raise InputError(f"dialect is {dialect!r}; allowed is {', '.join(DIALECTS)}.")
        if precision not in PRECISIONS:
            allowed = ", ".join((*PRECISIONS, AUTO))
            raise InputError(f"precision is {precision!r}; allowed is {allowed}.")
        if precision == "int8" and (device != "cpu" or dialect == "portable"):
            raise InputError(
                "precision is 'int8', for the CPU and ONNX Runtime's own operators, but the device is "
                f"{device!r} and the dialect {dialect or 'fused'!r}. Leave these out, or use precision "
                "'f32' or 'f16'."
            )
        self.config = config
        self.source = source
        self.family = table.family_of(config)
        self.image_size = self.family.check_size(config.image_size if image_size is None else image_size)
        self.device = find_device(device, provider_options)
        self.threads = threads
        self.precision = precision
        self._tensors = tensors
        self.dialect = dialect or ("fused" if self.device.name in FUSED_DEVICES else "portable")
        self._write = load_stage if cache else write_stage
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
            if name in CUTS and name not in self._stages:
                self._stages[name] = self.make_stage(name)
            if name not in self._stages:
                self.check_tracks()
                self._stages.update(self._load(self.family.video_stages))
            return self._stages[name]

    def make_stage(self, name: str, dialect: str | None = None) -> Stage:
        """The stage of that name for this model's size: in the model's dialect and precision, or in another
        dialect, which is f32."""
        kind = (self.dialect, self.precision) if dialect is None else (dialect, "f32")
        return self._write(self.config, name, self.image_size, *kind)

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

    def share(self, features: ImageFeatures) -> ImageFeatures:
        """The same with what its prompts have in common, which `decode` then computes no more."""
        nothing = {"coords": np.zeros((1, 1, 2), np.float32), "labels": np.zeros((1, 1), np.int64)}
        dense = self.session("encode_points").run(nothing, ["dense"])["dense"]
        feeds = {"embedding": features.values["embedding"], "dense": dense}
        return replace(features, shared=self.session("share_image").run(feeds))

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
        feeds = {**features.values, **embedded}
        if features.shared is not None and prompts.mask is None and embedding is None:
            stage = "decode_shared"
            feeds = {**feeds, **features.shared}
            del feeds["embedding"], feeds["dense"]
        else:
            stage = "decode_masks"
            if prompts.mask is not None:
                feeds["dense"] = self.session("encode_mask").run({"mask": prompts.mask})["dense"]
            if embedding is not None:
                feeds["embedding"] = embedding
        values = self.session(stage).run(feeds)
        return as_candidates({name: value.numpy() for name, value in values.items()})

    def _load(self, names: tuple[str, ...]) -> dict[str, Stage]:
        """Stages of pictures or of video, after the check that the file has their tensors."""
        stages = {name: self.make_stage(name) for name in names}
        expected = {key: shape for stage in stages.values() for key, shape in stage.tensors.items()}
        video = names == self.family.video_stages
        self.family.check_tensors(expected, self._tensors.shapes, self.source, video=video)
        return stages


def load(
    path_or_name: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
    image_size: int | None = None,
    dialect: str | None = None,
    cache: bool | None = None,
    provider_options: Mapping[str, Any] | None = None,
    profile: str | os.PathLike[str] | None = None,
) -> Model:
    """Load a model from a checkpoint file, or by its published name (downloaded when it isn't there yet);
    without either masklet-nano, a small one in the package, for trying out, tests and simple scenes.

    What is not given is read from a profile (docs/profiles.md): from `profile`, else from `masklet.toml`
    beside the weights if it is there. What neither says is as in brackets here. `device` is an execution
    provider in plain words ("cpu", "cuda", "openvino", ...; [cpu]), `provider_options` are ONNX Runtime's for
    it, `threads` is how many the CPU uses [all]. `precision` is "f32", "f16" (weights in 16 bits, computing
    in 32), "int8" (linear layers in 8 bits, on the CPU), or ["auto"]: f16 for a file whose matrices have no
    more than 16 bits, f32 for others. `image_size` is the side of the square input in pixels, a multiple of
    32: SAM of 16, tracking with EdgeTAM of 256 [the model's own]. `dialect` is "fused", graphs with ONNX
    Runtime's own operators, or "portable", the standard ones only [what suits the device]. `cache` False
    writes graphs anew each time and keeps none [True]. Raises ModelNotFoundError, CheckpointError and its
    kinds, DownloadError, DeviceError, InputError.
    """
    path = find_file(path_or_name)
    given = {
        "device": device,
        "threads": threads,
        "precision": precision,
        "image_size": image_size,
        "dialect": dialect,
        "cache": cache,
        "provider_options": provider_options,
    }
    settings, origin = settings_of(path, profile, given)
    checkpoint = open_checkpoint(path)
    tensors = canonical(checkpoint)
    try:
        config = table.recognise(tensors.shapes, checkpoint.metadata)
    except UnknownFormatError as error:
        raise UnknownFormatError(f"{path}: {error}") from error
    if settings.precision == AUTO:
        settings = replace(settings, precision=_best_precision(checkpoint))
    try:
        return Model(config, tensors, source=str(path), **vars(settings))
    except (InputError, DeviceError) as error:
        if origin is None:
            raise
        raise type(error)(f"{error} (The profile {origin} is in use.)") from error


def _best_precision(checkpoint: Checkpoint) -> str:
    """What loses nothing that the file has: f16 where no matrix has more than 16 bits a number."""
    tensors = checkpoint.tensors.values()
    wide = any(tensor.dtype in WIDE and graph.halvable(tensor.shape) for tensor in tensors)
    return "f32" if wide else "f16"


def find_file(path_or_name: str | os.PathLike[str] | None) -> Path:
    """The local file of a path or name, or the one in the package; a path never touches the network."""
    if path_or_name is None:
        return registry.BUNDLED.path
    text = os.fspath(path_or_name)
    path = Path(text).expanduser()
    if path.exists():
        return path
    try:
        found = registry.find(text)
    except ModelNotFoundError as error:
        if path.suffix or path.is_absolute():
            raise ModelNotFoundError(f"There is no file {text!r}. {error}") from error
        raise
    from masklet.io.hub import fetch

    return fetch(found)


def as_candidates(values: dict[str, np.ndarray]) -> Candidates:
    """What `decode_masks` gave. Without an object score, as in SAM, every object counts as there."""
    present = np.full((len(values["logits"]), 1), np.inf, np.float32)
    return Candidates(**{"object_score": present, **values})
