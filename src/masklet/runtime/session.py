"""A stage made runnable: weights bound from the checkpoint, arguments in, device values out.

In: a `Stage`, a source of checkpoint tensors, a device. Out: OrtValues, which stay on their device between
stages. Knows nothing about pictures or prompts. Plain tensors are bound as they lie in the mapped file,
without a copy.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from masklet.errors import EngineError
from masklet.model import derive
from masklet.runtime.devices import Device, provider_arguments, session_options
from masklet.runtime.graph import Stage, WeightSource

if TYPE_CHECKING:
    from onnxruntime import OrtValue

Array = np.ndarray


class Session:
    """One stage, ready to run. Safe to call from several threads at once; not usable in a forked child."""

    def __init__(
        self, stage: Stage, tensor: Callable[[str], Array], device: Device, threads: int | None = None
    ) -> None:
        """`tensor` gives a checkpoint tensor (float32, shape as in `stage.tensors`) by its key.

        Raises EngineError when ONNX Runtime refuses the graph or the device.
        """
        import onnxruntime

        self.stage = stage
        self._process = os.getpid()
        options = session_options(threads)
        # ONNX Runtime reads weights where they lie and doesn't keep the arrays alive: this list does.
        self._weights = [resolve(weight, tensor) for weight in stage.weights]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights]
        options.add_external_initializers([weight.name for weight in stage.weights], values)
        try:
            self._session = onnxruntime.InferenceSession(
                stage.onnx, options, disabled_optimizers=_unwanted(stage), **provider_arguments(device)
            )
        except Exception as error:  # ONNX Runtime raises its own unexported types
            raise EngineError(
                f"ONNX Runtime could not build stage {stage.name!r} for device {device.name!r}: {error}"
            ) from error
        _return_memory()

    def run(
        self, feeds: Mapping[str, Array | OrtValue], outputs: Sequence[str] | None = None
    ) -> dict[str, OrtValue]:
        """Run the stage; `outputs` names the wanted ones, all if None."""
        import onnxruntime

        if os.getpid() != self._process:
            raise EngineError(
                f"Stage {self.stage.name!r} was loaded in process {self._process} and is used in its forked "
                f"child {os.getpid()}. Load the model after the fork, or start workers with 'spawn'."
            )
        names = list(outputs or self.stage.outputs)
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(feed) if isinstance(feed, np.ndarray) else feed
            for name, feed in feeds.items()
        }
        try:
            made = self._session.run_with_ort_values(names, values)
        except Exception as error:  # ONNX Runtime raises its own unexported types
            shapes = ", ".join(f"{name} {tuple(value.shape())}" for name, value in values.items())
            raise EngineError(
                f"ONNX Runtime failed in stage {self.stage.name!r} with {shapes}: {error}"
            ) from error
        return dict(zip(names, made, strict=True))


def _unwanted(stage: Stage) -> list[str]:
    """Optimizers to leave out: those that would widen 16-bit weights once and for all."""
    halved = any(weight.recipe == "half" for weight in stage.weights)
    return ["ConstantFolding", "FuseFp16InitializerToFp32NodeTransformer"] if halved else []


def _return_memory() -> None:
    """Give what was freed back to the system. glibc keeps the room of arrays that were only passed through:
    a fifth of what a session of SAM 2.1 tiny takes from a quantised file."""
    with suppress(OSError, AttributeError, TypeError):  # other C libraries do so by themselves
        ctypes.CDLL(None).malloc_trim(0)


def resolve(weight: WeightSource, tensor: Callable[[str], Array]) -> Array:
    """The numbers of a weight from checkpoint tensors: float32, or the type of its recipe."""
    sources = [tensor(key) for key in weight.keys]
    if weight.recipe is None:
        return np.ascontiguousarray(sources[0], dtype=np.float32)
    return derive.compute(weight.recipe, sources, dict(weight.settings))
