"""The reference's video predictor, and a recorder of all that it decides and remembers while a scenario
plays.

In: a variant or a `TinyConfig`, the seed of its weights, a scenario of `video_cases`. Out: a `Recording` of
numpy arrays and plain numbers in the reference's own layout. Knows nothing about our networks. torch and sam2
are imported inside functions: importing this file needs numpy only.

The predictor is that of `build_sam2_video_predictor`, without hole filling, which it does on CUDA alone, and
mended in two places where it fails (`_clear_around`, `_in_float32`).
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import reference
import video_cases
from recordings import Decision, Recording
from video_cases import Event, Scenario

if TYPE_CHECKING:
    import torch
    from sam2.sam2_video_predictor import SAM2VideoPredictor

# For each variant and image size: the seed of its weights, and the bias of the object score. Chosen for what
# `test_reference_video.py` asks: choices on both sides, none of them near a tie.
FILLS: dict[tuple[str, int], tuple[int, float]] = {
    ("sam2.1_hiera_tiny", 256): (15, -0.238),
    ("sam2_hiera_tiny", 256): (2, 0.6),
    ("sam2.1_hiera_tiny", 1024): (5, 0.15),
    ("sam2_hiera_tiny", 1024): (2, 0.6),
    ("sam2.1_hiera_base_plus", 1024): (0, 0.347),
    ("sam2_hiera_base_plus", 1024): (4, -0.293),
    ("sam2.1_hiera_small", 1024): (0, 0.964),
    ("sam2_hiera_small", 1024): (7, 0.53),
    ("sam2.1_hiera_large", 1024): (2, 0.926),
    ("sam2_hiera_large", 1024): (0, 0.355),
}
STABILITY_THRESHOLD, STABILITY_DELTA = 0.98, 0.05
OVERLAP_LIMIT = -10.0  # the losers' upper bound: below it, the owner of a pixel does not matter
LARGEST_KEPT = 256  # image size up to which encoded frames are kept: 6 MB each there, 100 MB at 1024
_STORES = ("cond_frame_outputs", "non_cond_frame_outputs")
_POLICY = {"max_cond_frames": "max_cond_frames_in_attn", "stride": "memory_temporal_stride_for_eval"}


# ----------------------------------------------------------------------------------------------------- models


def build(variant: str, image_size: int, seed: int | None = None, **fill: Any) -> SAM2VideoPredictor:
    """A published variant on the CPU with lively weights: those of `FILLS`, or of `seed` (`fill` goes to
    `lively_weights`)."""
    made = _compose(reference.VARIANTS[variant].config, [f"++model.image_size={image_size}"])
    if seed is None:
        seed, bias = FILLS[variant, image_size]
        fill = {"object_score_bias": bias, **fill}
    return reference.fill_lively(made, seed, **fill)


def build_tiny(config: reference.TinyConfig, seed: int, **fill: Any) -> SAM2VideoPredictor:
    """A small model, through the same configuration file and the same code as the published ones."""
    return reference.fill_lively(_compose(*reference.tiny_settings(config)), seed, **fill)


def _compose(config: str, overrides: list[str]) -> SAM2VideoPredictor:
    reference.prepare_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sam2.build_sam import build_sam2_video_predictor

        made = build_sam2_video_predictor(config, None, device="cpu", hydra_overrides_extra=overrides)
    made.fill_hole_area = 0  # the builder sets 8 after everyone else's overrides
    made._clear_obj_non_cond_mem_around_input = _clear_around.__get__(made)
    made.memory_attention.register_forward_pre_hook(_in_float32, with_kwargs=True)
    if made.image_size <= LARGEST_KEPT:
        made.forward_image = _Encoded(made)
    return made


class _Encoded:
    """`forward_image` that encodes a frame once, whatever the scenario; the reference does it at every
    visit."""

    def __init__(self, model: SAM2VideoPredictor) -> None:
        self._model, self._features = model, {}

    def __call__(self, image: torch.Tensor) -> Any:
        key = hashlib.sha256(image.numpy().tobytes()).digest()
        if key not in self._features:
            self._features[key] = type(self._model).forward_image(self._model, image)
        return self._features[key]


def _in_float32(_module: Any, inputs: Any, arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Memories are bfloat16, and become float32 where pointers join them. Where an object has no pointer yet,
    in frames before its only prompt, the reference fails outside of autocast."""
    return inputs, {**arguments, "memory": arguments["memory"].float()}


def _clear_around(self: Any, state: dict, frame_idx: int, obj_idx: int) -> None:
    """The method that the reference calls and lacks: what its method for all objects does, for one."""
    reach = self.memory_temporal_stride_for_eval * self.num_maskmem
    remembered = state["output_dict_per_obj"][obj_idx]["non_cond_frame_outputs"]
    for frame in range(frame_idx - reach, frame_idx + reach + 1):
        remembered.pop(frame, None)


@contextmanager
def settings_of(scenario: Scenario, model: SAM2VideoPredictor) -> Iterator[None]:
    """The model with the scenario's settings and policy; they are put back afterwards."""
    names = {**scenario.settings, **{_POLICY[key]: value for key, value in scenario.policy.items()}}
    before = {name: getattr(model, name) for name in names}
    for name, value in names.items():
        setattr(model, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(model, name, value)


# -------------------------------------------------------------------------------------------------- recording


def record(model: SAM2VideoPredictor, folder: Path, scenario: Scenario) -> Recording:
    """Play `scenario` on the JPEG files in `folder`."""
    with _silent(), settings_of(scenario, model):
        state = model.init_state(str(folder))
        recorder = _Recorder(model, state, scenario)
        with recorder.watching():
            for event in video_cases.play(scenario, model, state, recorder.begin_step):
                recorder.keep(event)
    return recorder.recording


class _Recorder:
    """Wraps the methods in which the reference decides, and looks into its state after each event."""

    def __init__(self, model: SAM2VideoPredictor, state: dict[str, Any], scenario: Scenario) -> None:
        self.recording = Recording(state["num_frames"])
        self._model, self._state = model, state
        self._wanted = set(scenario.forced)
        self._step = 0
        self._seen: dict[str, Any] = {}  # of the network's run in progress
        self._contested: np.ndarray | None = None

    def begin_step(self, number: int) -> None:
        self._step = number

    def keep(self, event: Event) -> None:
        """The event, and what the state holds of its frame."""
        kept = {}
        for obj, index in self._state["obj_id_to_idx"].items():
            out = self._output(index, event.frame)
            if out is not None:
                kept[obj] = {
                    "low_res": out["pred_masks"][0, 0].numpy().copy(),
                    "pointer": out["obj_ptr"][0].numpy().copy(),
                    "score": out["object_score_logits"][0, 0].numpy().copy(),
                }
                if out["maskmem_features"] is not None:
                    kept[obj]["memory"] = _bits(out["maskmem_features"][0])
        self.recording.events.append(event)
        self.recording.kept.append(kept)
        if self._contested is not None:
            self.recording.lead[len(self.recording.events) - 1] = self._contested
            self._contested = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Wrap, and unwrap afterwards."""
        import sam2.modeling.sam2_base as base

        model, decoder = self._model, self._model.sam_mask_decoder
        sine = base.get_1d_sine_pe
        model.track_step = self._track_step
        model._apply_non_overlapping_constraints = self._contest
        decoder.predict_masks = self._decode
        base.get_1d_sine_pe = lambda times, *rest, **options: sine(self._times(times), *rest, **options)
        handles = [
            model.memory_attention.register_forward_hook(self._attended, with_kwargs=True),
            model.sam_prompt_encoder.register_forward_hook(self._prompted, with_kwargs=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            base.get_1d_sine_pe = sine
            del (
                model.track_step,
                model._apply_non_overlapping_constraints,
                decoder.predict_masks,
            )  # the classes' own show again

    # The wrapped methods, in the order in which they run.

    def _track_step(self, **arguments: Any) -> dict[str, Any]:
        output_dict = arguments["output_dict"]
        index = next(i for i, d in self._state["output_dict_per_obj"].items() if d is output_dict)
        reads: list[tuple[str, str, int]] = []
        self._seen = {}
        watched = {
            store: {t: _Watched(out, reads, store, t) for t, out in output_dict[store].items()}
            for store in _STORES
        }
        stores = {store: tuple(output_dict[store]) for store in _STORES}
        out = type(self._model).track_step(self._model, **{**arguments, "output_dict": watched})

        decision = self._decide(arguments, self._state["obj_idx_to_id"][index], reads, stores)
        self.recording.decisions.append(decision)
        key = (self._step, decision.frame, decision.obj)
        if key in self._wanted and decision.memories:
            self.recording.forced[key] = self._whole(out, decision)
        return out

    def _times(self, times: torch.Tensor) -> torch.Tensor:
        self._seen["times"] = times.tolist()
        return times

    def _attended(self, _module: Any, _inputs: Any, arguments: dict[str, Any], output: torch.Tensor) -> None:
        self._seen.update(arguments, conditioned=output)

    def _prompted(self, _module: Any, _inputs: Any, arguments: dict[str, Any], _output: Any) -> None:
        (coords, labels), mask = arguments["points"], arguments["masks"]
        self._seen["prompt"] = {"coords": coords[0].numpy().copy(), "labels": labels[0].numpy().copy()}
        if mask is not None:
            self._seen["prompt"]["mask_input"] = mask[0, 0].numpy().copy()

    def _decode(self, *inputs: Any, **arguments: Any) -> Any:
        decoder = self._model.sam_mask_decoder
        output = type(decoder).predict_masks(decoder, *inputs, **arguments)
        self._seen["decoded"] = output
        return output

    def _contest(self, logits: torch.Tensor) -> torch.Tensor:
        if len(logits) > 1:
            best, second = logits[:, 0].sort(0, descending=True).values[:2].numpy()
            self._contested = np.where(best > OVERLAP_LIMIT, best - second, np.inf)
        return type(self._model)._apply_non_overlapping_constraints(self._model, logits)

    # What follows from what they saw.

    def _decide(
        self,
        arguments: dict[str, Any],
        obj: int,
        reads: list[tuple[str, str, int]],
        stores: dict[str, tuple[int, ...]],
    ) -> Decision:
        masks, ious, _, score = self._seen["decoded"]
        points = arguments["point_inputs"]
        multimask = self._model._use_multimask(arguments["is_init_cond_frame"], points)
        stable, turn = _stability(masks[0, 0].numpy())
        best, second = np.sort(ious[0, 1:].numpy())[[-1, -2]]
        margins = {"score": abs(float(score))}
        mask: int | None = 1 + int(ious[0, 1:].argmax())
        if (
            arguments["mask_inputs"] is not None
        ):  # its score is given, only its pointer comes from the decoder
            multimask, mask, margins = False, None, {**margins}
        if not multimask and mask is not None:
            margins["stability"] = turn
            mask = 0 if stable >= STABILITY_THRESHOLD else mask
        if mask:
            margins["iou"] = float(best - second)

        frames = [t for key, _, t in reads if key == "maskmem_features"]
        memories = tuple(zip(frames, self._rows(len(frames)), strict=True))
        pointing = [t for key, _, t in reads if key == "obj_ptr"]
        times = self._seen.get("times", [0.0] * len(pointing))
        return Decision(
            step=self._step,
            frame=arguments["frame_idx"],
            obj=obj,
            reverse=arguments["track_in_reverse"],
            prompted=points is not None or arguments["mask_inputs"] is not None,
            score=float(score),
            ious=tuple(ious[0].tolist()),
            mask=mask,
            stability=stable,
            margins=margins,
            memories=memories,
            pointers=tuple(zip(pointing, times, strict=True)),
            conditioning=stores["cond_frame_outputs"],
            tracked=stores["non_cond_frame_outputs"],
        )

    def _rows(self, count: int) -> list[int]:
        """Which row of the table of ages was added to the position of each attended memory."""
        if not count:
            return []
        table = self._model.maskmem_tpos_enc[:, 0, 0]
        plain = self._state["constants"]["maskmem_pos_enc"][-1].flatten(2).permute(2, 0, 1)
        rows = self._seen["memory_pos"][: count * len(plain)].reshape(count, *plain.shape) - plain
        return (rows.mean((1, 2))[:, None] - table[None]).abs().amax(-1).argmin(1).tolist()

    def _whole(self, out: dict[str, Any], decision: Decision) -> dict[str, np.ndarray]:
        """Everything that went into one step and came out of it. The memories are those of the state:
        bfloat16."""
        count, side = len(decision.memories), self._model.image_size // 16
        spatial, pointer = self._seen["memory"].split((count * side * side, self._seen["num_obj_ptr_tokens"]))
        masks, ious, tokens, score = self._seen["decoded"]
        arrays = {
            **self._seen["prompt"],
            "memories": _bits(spatial.reshape(count, side, side, -1).permute(0, 3, 1, 2)),
            "pointers": pointer.reshape(len(decision.pointers), -1).numpy().copy(),
            "conditioned": self._seen["conditioned"][:, 0].T.reshape(-1, side, side).numpy().copy(),
            "all_masks": masks[0].numpy().copy(),
            "all_ious": ious[0].numpy().copy(),
            "mask_tokens": tokens[0].numpy().copy(),
            "object_score": score[0].numpy().copy(),
            "pointer": out["obj_ptr"][0].numpy().copy(),
            "low_res": out["pred_masks"][0, 0].numpy().copy(),
        }
        if out["maskmem_features"] is not None:
            arrays["memory"] = out["maskmem_features"][0].numpy().copy()
        return arrays

    def _output(self, index: int, frame: int) -> dict[str, Any] | None:
        """What the state shows of an object in a frame: the newest first."""
        for states in ("temp_output_dict_per_obj", "output_dict_per_obj"):
            for store in _STORES:
                found = self._state[states][index][store].get(frame)
                if found is not None:
                    return found
        return None


class _Watched(dict):
    """One frame's output, which tells when its memory or pointer is read."""

    def __init__(self, out: dict, reads: list[tuple[str, str, int]], store: str, frame: int) -> None:
        super().__init__(out)
        self._told, self._reads = (store, frame), reads

    def __getitem__(self, key: str) -> Any:
        self._reads.append((key, *self._told))
        return super().__getitem__(key)


def _stability(logits: np.ndarray) -> tuple[float, float]:
    """The stability score, and the least shift of logits that takes it across its threshold: the worst for
    each pixel, by bisection."""

    def score(shift: float) -> float:
        inner, outer = (logits > STABILITY_DELTA + shift).sum(), (logits > -STABILITY_DELTA - shift).sum()
        return float(inner / outer) if outer else 1.0

    found = score(0.0)
    sign = 1 if found >= STABILITY_THRESHOLD else -1  # towards a wider gap, or a narrower one
    low, high = 0.0, STABILITY_DELTA
    if (score(sign * high) >= STABILITY_THRESHOLD) == (found >= STABILITY_THRESHOLD):
        return found, high
    while high - low > 1e-6:
        middle = (low + high) / 2
        same = (score(sign * middle) >= STABILITY_THRESHOLD) == (found >= STABILITY_THRESHOLD)
        low, high = (middle, high) if same else (low, middle)
    return found, low


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """bfloat16, or float32 with its values, as uint16."""
    import torch

    return tensor.to(torch.bfloat16).contiguous().view(torch.int16).numpy().view(np.uint16).copy()


@contextmanager
def _silent() -> Iterator[None]:
    """The reference without its progress bars."""
    import sam2.sam2_video_predictor
    import sam2.utils.misc

    modules = (sam2.sam2_video_predictor, sam2.utils.misc)
    before = [module.tqdm for module in modules]
    for module in modules:
        module.tqdm = lambda items, **_: items
    try:
        yield
    finally:
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar
