"""What goes on inside a network, step by step, under the reference's names and in its layout.

In: a `Model`, a picture, maybe prompts, and which steps are wanted. Out: arrays by name, in the order in
which the data flows. `ImagePredictor` itself runs, on the plain graph instead of the fused one (standard
operators, raster order, nothing folded): what is recorded is what leads to the masks that it returns.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from masklet.errors import InputError
from masklet.pipeline.image import ImagePredictor
from masklet.pipeline.model import Model, as_candidates
from masklet.pipeline.prompts import stability
from masklet.runtime.graph import Stage
from masklet.runtime.prune import prune
from masklet.runtime.session import Session
from masklet.types import Candidates, ImageFeatures, Prompts

if TYPE_CHECKING:
    from onnxruntime import OrtValue

PIXELS = "pixels"
DENSE = "sam_prompt_encoder.dense"
STABILITY = "sam_mask_decoder.stability"
RESULTS = ("low_res_masks", "ious", "masks")  # what `ImagePredictor.predict` returns


@dataclass(frozen=True)
class StepNames:
    """What can be dumped, in the order in which the data flows; `prompt` needs a prompt."""

    image: tuple[str, ...]
    prompt: tuple[str, ...]


def step_names(model: Model) -> StepNames:
    """The names of all steps of a model."""
    image, *prompt = (_plain(model, name).taps for name in model.family.image_stages)
    return StepNames((PIXELS, *image), (*itertools.chain(*prompt), STABILITY, *RESULTS))


def dump(
    model: Model,
    image: Any,
    point_coords: Any = None,
    point_labels: Any = None,
    box: Any = None,
    mask_input: Any = None,
    multimask_output: bool = True,
    normalize_coords: bool = True,
    *,
    stages: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Steps by name, in the order of the data; picture and prompts are those of `ImagePredictor`.

    `stages` selects by name ("image_embed"), by the leading parts of names ("image_encoder.trunk") or by
    pattern ("*.blocks.1?"); only what these need is computed. None takes all, without a prompt all of the
    encoder. Raises InputError for a name that doesn't exist, and for steps behind a prompt if none is given.
    """
    names = step_names(model)
    prompted = any(given is not None for given in (point_coords, point_labels, box, mask_input))
    wanted = select_steps(names, stages, prompted)

    recorder = _Recorder(model, wanted, decoding=not wanted.isdisjoint(names.prompt))
    predictor = ImagePredictor(cast(Model, recorder))
    predictor.set_image(image)
    if recorder.decoding:
        masks, ious, low_res = predictor.predict(
            point_coords, point_labels, box, mask_input, multimask_output, normalize_coords=normalize_coords
        )
        recorder.keep(dict(zip(RESULTS, (low_res, ious, masks), strict=True)))
    return recorder.seen


def select_steps(names: StepNames, patterns: Sequence[str] | None, prompted: bool) -> frozenset[str]:
    """The names that the patterns choose; see `dump`."""
    known = (*names.image, *names.prompt)
    if patterns is None:
        return frozenset(known if prompted else names.image)
    wanted: set[str] = set()
    for pattern in patterns:
        found = [name for name in known if _matches(name, pattern)]
        if not found:
            close = difflib.get_close_matches(pattern, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise InputError(f"No step is called {pattern!r}.{hint} There are: {', '.join(listed(known))}.")
        wanted.update(found)
    behind = [name for name in names.prompt if name in wanted]
    if behind and not prompted:
        raise InputError(
            f"The step {behind[0]!r} comes after a prompt and none was given; add a point, a box or a mask."
        )
    return frozenset(wanted)


def listed(names: Sequence[str]) -> list[str]:
    """Names for people: runs that differ in a last number alone become one, "blocks.{0..11}"."""
    runs: list[tuple[str, list[str]]] = []
    for name in names:
        stem, _, last = name.rpartition(".")
        if last.isdecimal() and runs and runs[-1][0] == stem:
            runs[-1][1].append(last)
        else:
            runs.append((stem, [last]) if last.isdecimal() else (name, []))
    return [
        f"{stem}.{{{numbers[0]}..{numbers[-1]}}}" if len(numbers) > 1 else ".".join([stem, *numbers])
        for stem, numbers in runs
    ]


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(pattern + ".") or fnmatch.fnmatchcase(name, pattern)


def _plain(model: Model, name: str) -> Stage:
    return model.make_stage(name, "plain")


class _Recorder:
    """Takes a `Model`'s place under a predictor: runs the plain stages, pruned, and keeps the wanted steps.

    Each stage's session is closed behind it: at full size the sessions and their steps are what costs memory.
    """

    def __init__(self, model: Model, wanted: Collection[str], *, decoding: bool) -> None:
        self.image_size, self.config, self.decoding = model.image_size, model.config, decoding
        self.seen: dict[str, np.ndarray] = {}
        self._model, self._wanted = model, wanted

    def keep(self, steps: Mapping[str, np.ndarray]) -> None:
        self.seen.update({name: array for name, array in steps.items() if name in self._wanted})

    def encode_image(self, image: np.ndarray, size_hw: tuple[int, int]) -> ImageFeatures:
        """As `Model.encode_image`; the features are left out when nothing will be decoded."""
        self.keep({PIXELS: image})
        outputs = self._model.features if self.decoding else ()
        return ImageFeatures(size_hw, self._run("encode_image", {"image": image}, outputs))

    def share(self, features: ImageFeatures) -> ImageFeatures:
        """As it is: the plain graph decodes each prompt as the reference does."""
        return features

    def decode(self, features: ImageFeatures, prompts: Prompts) -> Candidates:
        """As `Model.decode`."""
        points = {"coords": prompts.coords, "labels": prompts.labels}
        embedded = self._run("encode_points", points, ("sparse", "dense"))
        sparse, dense = embedded["sparse"], embedded["dense"]
        if prompts.mask is not None:
            dense = self._run("encode_mask", {"mask": prompts.mask}, ("dense",))["dense"]
        else:  # one vector stands for the whole grid, which the reference writes out
            grid, size_hw = dense.numpy().reshape(1, -1, 1, 1), self._model.orders[2].grid_hw
            self.keep({DENSE: np.broadcast_to(grid, (len(prompts.coords), grid.shape[1], *size_hw))})

        feeds = {**features.values, "sparse": sparse, "dense": dense}
        outputs = self._model.stage("decode_masks").outputs
        values = self._run("decode_masks", feeds, outputs)
        candidates = as_candidates({name: values[name].numpy() for name in outputs})
        self.keep({STABILITY: stability(candidates.logits)})
        return candidates

    def _run(
        self, name: str, feeds: Mapping[str, np.ndarray | OrtValue], outputs: Sequence[str]
    ) -> dict[str, OrtValue]:
        """Outputs of a stage; its wanted steps are kept on the way."""
        stage = _plain(self._model, name)
        taps = [tap for tap in stage.taps if tap in self._wanted]
        if not taps and not outputs:
            return {}
        model = self._model
        session = Session(prune(stage, [*outputs, *taps]), model.tensor, model.device, model.threads)
        values = session.run(feeds)
        self.keep({tap: values.pop(tap).numpy() for tap in taps})
        return values
