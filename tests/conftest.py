"""What holds for every test: no network beyond this machine, caches of their own, globals put back.

The first two are set up before any test module is imported, because libraries read some variables when they
are imported. Processes that tests start inherit the variables but not the patched sockets: the variables for
proxies lead their traffic to a closed port.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import os
import signal
import socket
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

_CLEANUP = pytest.StashKey[contextlib.ExitStack]()
_CLOSED_PORT = "http://127.0.0.1:9"  # the discard service, which nobody runs
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def pytest_configure(config: pytest.Config) -> None:
    """Block the network and point the caches away from the user's own."""
    cleanup = config.stash[_CLEANUP] = contextlib.ExitStack()
    patch = cleanup.enter_context(pytest.MonkeyPatch.context())
    folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="masklet-tests-")))
    _patch_environment(patch, folder)
    _block_network(patch)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Undo `pytest_configure`."""
    if _CLEANUP in config.stash:
        config.stash[_CLEANUP].close()


@pytest.fixture(autouse=True)
def restore_globals() -> Iterator[None]:
    """Put back what a test may change for the whole process: variables, folder, signal handler, logger."""
    folder = Path.cwd()
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    interrupt = signal.getsignal(signal.SIGINT)
    logger = logging.getLogger("masklet")
    level, handlers, propagate = logger.level, list(logger.handlers), logger.propagate
    yield
    for name in os.environ.keys() - environment.keys():
        if name != "PYTEST_CURRENT_TEST":
            del os.environ[name]
    os.environ.update(environment)
    os.chdir(folder)
    signal.signal(signal.SIGINT, interrupt)
    logger.setLevel(level)
    logger.handlers[:], logger.propagate = handlers, propagate


@pytest.fixture(scope="session")
def finding_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in, 128 pixels, whose automatic masks are small, good and steady enough for the default
    thresholds, and depend on where the point is: some 30 in a scene of 120 x 160."""
    from masklet import testing
    from masklet.families.family import CONFIG_KEY
    from masklet.io.safetensors import write_safetensors

    config = testing.tiny_config(image_size=128)
    weights = testing.stand_in_weights(config, 1)
    for name, array in weights.items():
        if ".transformer." in name and name.endswith("q_proj.weight") and "self_attn" not in name:
            weights[name] = 8 * array
        elif "output_hypernetworks_mlps" in name and ".layers.2." in name:
            weights[name] = 30 * array - (78 if name.endswith("bias") else 0)
        elif name.endswith("iou_prediction_head.layers.2.bias"):
            weights[name] = array + 2.5
    path = tmp_path_factory.mktemp("finding") / "tiny.safetensors"
    write_safetensors(path, weights, {CONFIG_KEY: config.to_json()})
    return path


@pytest.fixture(scope="session")
def ggml_file() -> Callable[..., bytes]:
    """Builds sam3.cpp's files (.ggml) byte by byte, from the format.

    Tensors are (dimensions in row-major order, number of ggml's type, bytes) by name.
    """

    def build(
        tensors: Mapping[str, tuple[Sequence[int], int, bytes]], *, trunk: int = 1, version: int = 1
    ) -> bytes:
        settings = [1024, trunk, *(7 for _ in range(55 if trunk == 1 else 74))]
        content = bytearray(
            b"2mas" + struct.pack(f"<{3 + len(settings)}i", version, 1, len(tensors), *settings)
        )
        for name, (shape, kind, data) in tensors.items():
            encoded = name.encode()
            content += struct.pack(f"<{3 + len(shape)}i", len(shape), len(encoded), kind, *reversed(shape))
            content += encoded
            content += bytes(-len(content) % 32)
            content += data
        return bytes(content)

    return build


def _patch_environment(patch: pytest.MonkeyPatch, folder: Path) -> None:
    for name in list(os.environ):
        if name.startswith(("MASKLET_", "HF_", "HUGGING")) and not name.startswith("MASKLET_PARITY_"):
            patch.delenv(name)
    patch.setenv("MASKLET_CACHE", str(folder / "masklet"))
    patch.setenv("HF_HOME", str(folder / "huggingface"))
    patch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    patch.setenv("HF_HUB_DISABLE_XET", "1")  # a downloader that opens sockets outside Python
    for name in _PROXIES:
        patch.setenv(name, _CLOSED_PORT)
        patch.setenv(name.upper(), _CLOSED_PORT)
    patch.setenv("no_proxy", "127.0.0.1,localhost,::1")
    patch.setenv("NO_PROXY", "127.0.0.1,localhost,::1")


def _block_network(patch: pytest.MonkeyPatch) -> None:
    connect, connect_ex, sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto
    resolve = socket.getaddrinfo

    def guarded_connect(self: socket.socket, address: Any) -> None:
        _refuse_unless_local(self.family, address)
        return connect(self, address)

    def guarded_connect_ex(self: socket.socket, address: Any) -> int:
        _refuse_unless_local(self.family, address)
        return connect_ex(self, address)

    def guarded_sendto(self: socket.socket, data: Any, *rest: Any) -> int:
        _refuse_unless_local(self.family, rest[-1])
        return sendto(self, data, *rest)

    def guarded_resolve(host: Any, *rest: Any, **options: Any) -> Any:
        if host is not None and not _is_local(host):
            raise OSError(f"the tests may not look up {host!r}: only this machine itself is reachable")
        return resolve(host, *rest, **options)

    patch.setattr(socket.socket, "connect", guarded_connect)
    patch.setattr(socket.socket, "connect_ex", guarded_connect_ex)
    patch.setattr(socket.socket, "sendto", guarded_sendto)
    patch.setattr(socket, "getaddrinfo", guarded_resolve)


def _refuse_unless_local(family: int, address: Any) -> None:
    if family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
        raise OSError(f"the tests may not connect to {address!r}: only this machine itself is reachable")


def _is_local(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
