"""Devices in plain words, as ONNX Runtime execution providers.

In: a name such as "cpu" or "cuda", a thread count. Out: the provider list and session options for it.
Knows nothing about models. Probes nothing until it is asked.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from masklet.errors import DeviceError, InputError

if TYPE_CHECKING:
    import onnxruntime


@dataclass(frozen=True)
class Device:
    """A device word, the provider behind it and what installs it."""

    name: str
    provider: str
    install: str
    options: Mapping[str, Any] = field(default_factory=dict)  # of the provider, under ONNX Runtime's names


ROOMY_CACHE = 1 << 20  # bytes
_SC_LEVEL2_CACHE_SIZE = 191  # glibc's number; Python has no name for it

DEVICES = {
    device.name: device
    for device in (
        Device("cpu", "CPUExecutionProvider", "pip install onnxruntime"),
        Device("cuda", "CUDAExecutionProvider", "pip install onnxruntime-gpu"),
        Device("tensorrt", "TensorrtExecutionProvider", "pip install onnxruntime-gpu tensorrt"),
        Device(
            "tensorrt-rtx", "NvTensorRTRTXExecutionProvider", "pip install onnxruntime-ep-nv-tensorrt-rtx"
        ),
        Device("openvino", "OpenVINOExecutionProvider", "pip install onnxruntime-openvino"),
        Device("coreml", "CoreMLExecutionProvider", "pip install onnxruntime  (on macOS)"),
        Device("mlx", "MLXExecutionProvider", "pip install onnxruntime-ep-mlx  (on Apple silicon)"),
        Device("webgpu", "WebGpuExecutionProvider", "pip install onnxruntime-webgpu"),
        Device("directml", "DmlExecutionProvider", "pip install onnxruntime-directml  (on Windows)"),
        Device("qnn", "QNNExecutionProvider", "pip install onnxruntime-qnn"),
        Device("rocm", "MIGraphXExecutionProvider", "pip install onnxruntime-migraphx"),
    )
}


def find_device(name: str, options: Mapping[str, Any] | None = None) -> Device:
    """The device of that name, if ONNX Runtime has its provider here; `options` are for the provider.

    Raises DeviceError with close matches, or with the install line and what is available.
    """
    device = DEVICES.get(name.lower()) if isinstance(name, str) else None
    if device is None:
        close = difflib.get_close_matches(str(name).lower(), DEVICES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DeviceError(f"Unknown device {name!r}.{hint} Known are {', '.join(DEVICES)}.")
    import onnxruntime

    installed = onnxruntime.get_available_providers()
    if device.provider not in installed:
        here = ", ".join(word for word, known in DEVICES.items() if known.provider in installed)
        raise DeviceError(
            f"The device {device.name!r} needs ONNX Runtime's {device.provider}, which is not installed. "
            f"Available here: {here}. To add it: {device.install}"
        )
    return replace(device, options=dict(options or {}))


def session_options(threads: int | None) -> onnxruntime.SessionOptions:
    """Options shared by all sessions. `threads` None takes every processor that this process may use."""
    import onnxruntime

    if threads is not None and (not isinstance(threads, int) or isinstance(threads, bool) or threads < 1):
        raise InputError(f"threads is {threads!r}; give a whole number of at least 1, or None for all cores.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    # A planned block would come on top of what the arena holds from the first run: a third more memory, no
    # faster.
    options.enable_mem_pattern = False
    options.log_severity_level = 3  # errors only; they also come back as exceptions
    return options


def small_cache() -> bool:
    """Whether a core's second-level cache is known to be under 1 MiB. ONNX Runtime asks the same, and lays
    out fused attention by it."""
    if sys.platform != "linux":
        return False
    try:
        return 0 < os.sysconf(_SC_LEVEL2_CACHE_SIZE) < ROOMY_CACHE
    except (OSError, ValueError):
        return False


def usable_cores() -> int:
    """How many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def provider_arguments(device: Device) -> dict[str, Any]:
    """The `providers` argument of a session: the device, and the CPU for what it can't run."""
    fallback = [] if device.name == "cpu" else [DEVICES["cpu"]]
    chain = [device, *fallback]
    return {
        "providers": [one.provider for one in chain],
        "provider_options": [{key: str(value) for key, value in one.options.items()} for one in chain],
    }
