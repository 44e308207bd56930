"""The programs that masklet is measured against, behind one small protocol.

In: a published checkpoint of SAM 2, 2.1 or SAM, its variant's name, a thread count. Out: `Rival` objects:
prepare once, then encode a picture and click on it. Knows nothing about timing, memory or masklet: the caller
interleaves the runs, and starts a process of its own for each rival whose peak memory it wants.

    pytorch       Meta's SAM2ImagePredictor or SamPredictor, eager; for SAM the only rival
    onnxruntime   its ONNX export, on ONNX Runtime
    openvino      the same files, on OpenVINO

The exports are made once, by a process of their own, and kept in a folder: torch is then imported by
`pytorch` alone.

    python benchmarks/rivals.py export --checkpoint FILE --variant NAME --folder DIR [--exporter NAME]
    python benchmarks/rivals.py time --checkpoint FILE --variant NAME --folder DIR [--threads N] [--repeats N]
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

ROOT = Path(__file__).parents[1]
# Each exporter with the newest opset that it writes well: "dynamo" keeps attention as one node (opset 23).
OPSETS = {"torchscript": 18, "dynamo": 23}
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Subject:
    """What every rival is given."""

    checkpoint: Path
    variant: str  # a key of VARIANTS in tests/parity/reference.py or reference_sam1.py
    folder: Path  # keeps exports
    threads: int = 2
    exporter: str = "torchscript"
    image_size: int = 1024


@dataclass(frozen=True)
class Click:
    """The answer to one positive click: three candidate masks of an (H, W) picture."""

    masks: np.ndarray  # (3, H, W), above 0 where the object is: the reference returns 0 and 1 as float32
    ious: np.ndarray  # (3,) float32, predicted
    low_res_masks: np.ndarray  # (3, S/4, S/4) float32 logits, clamped to +-32


class Rival(Protocol):
    """One program. `prepare` loads and compiles; `encode` and `click` are what is timed: from the picture to
    its features, and from a point in its pixels to masks of its size."""

    name: str

    def versions(self) -> dict[str, str]: ...

    def prepare(self) -> None: ...

    def encode(self, image: np.ndarray) -> None: ...

    def click(self, point_xy: tuple[float, float]) -> Click: ...


def rivals(subject: Subject, names: tuple[str, ...] = ("pytorch", "onnxruntime", "openvino")) -> list[Rival]:
    """The rivals of these names, not yet prepared."""
    return [
        {"pytorch": PyTorch, "onnxruntime": OnnxRuntime, "openvino": OpenVino}[name](subject)
        for name in names
    ]


class PyTorch:
    """Meta's SAM2ImagePredictor or SamPredictor as its users run it on a CPU."""

    name = "pytorch"

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def versions(self) -> dict[str, str]:
        return _versions("torch", reference_of(self.subject.variant).PACKAGE)

    def prepare(self) -> None:
        import torch

        torch.set_num_threads(self.subject.threads)
        self._predictor = reference_of(self.subject.variant).predictor(_load_reference(self.subject))

    def encode(self, image: np.ndarray) -> None:
        self._predictor.set_image(np.array(image))

    def click(self, point_xy: tuple[float, float]) -> Click:
        return Click(*self._predictor.predict(np.array([point_xy], np.float32), np.array([1], np.int32)))


class _Exported:
    """What the two engines share: the exported pair of graphs and the preprocessing."""

    name: str

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def encode(self, image: np.ndarray) -> None:
        self._size_wh = image.shape[1], image.shape[0]
        self._features = self._run_encoder(preprocess(image, self.subject.image_size))

    def click(self, point_xy: tuple[float, float]) -> Click:
        scale = [self.subject.image_size / side for side in self._size_wh]
        coords = np.array([[[point_xy[0] * scale[0], point_xy[1] * scale[1]]]], np.float32)
        masks, ious = self._run_decoder([*self._features, coords, np.array([[1]], np.int32)])
        return Click(enlarge(masks[0], self._size_wh) > 0, ious[0], np.clip(masks[0], -32, 32))

    def _run_encoder(self, pixels: np.ndarray) -> list[np.ndarray]:
        raise NotImplementedError

    def _run_decoder(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        raise NotImplementedError


class OnnxRuntime(_Exported):
    """The export on ONNX Runtime's CPU provider, all graph optimisations on."""

    name = "onnxruntime"

    def versions(self) -> dict[str, str]:
        return _versions("onnxruntime") | {"exporter": self.subject.exporter}

    def prepare(self) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.subject.threads
        options.inter_op_num_threads = 1
        files = exported(self.subject)
        self._encoder, self._decoder = (
            onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"]) for path in files
        )

    def _run_encoder(self, pixels: np.ndarray) -> list[np.ndarray]:
        return self._encoder.run(None, {"pixels": pixels})

    def _run_decoder(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        names = [entry.name for entry in self._decoder.get_inputs()]
        return self._decoder.run(None, dict(zip(names, inputs, strict=True)))


class OpenVino(_Exported):
    """The export on OpenVINO's CPU plugin, float32 arithmetic, tuned for latency."""

    name = "openvino"

    def versions(self) -> dict[str, str]:
        return _versions("openvino") | {"exporter": self.subject.exporter}

    def prepare(self) -> None:
        import openvino

        core = openvino.Core()
        settings = {
            "INFERENCE_NUM_THREADS": self.subject.threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",
        }
        self._encoder, self._decoder = (
            core.compile_model(path, "CPU", settings).create_infer_request()
            for path in exported(self.subject)
        )

    def _run_encoder(self, pixels: np.ndarray) -> list[np.ndarray]:
        self._encoder.infer([pixels], share_inputs=True)
        return [self._encoder.get_output_tensor(index).data for index in range(3)]

    def _run_decoder(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        self._decoder.infer(inputs, share_inputs=True)
        return [self._decoder.get_output_tensor(index).data.copy() for index in range(2)]


def preprocess(image: np.ndarray, image_size: int) -> np.ndarray:
    """(1, 3, S, S) float32: the reference's antialiased bilinear resize, by Pillow in float, and its
    normalisation."""
    from PIL import Image

    planes = [
        np.asarray(Image.fromarray(plane).resize((image_size, image_size), Image.Resampling.BILINEAR))
        for plane in np.moveaxis(image, 2, 0).astype(np.float32)
    ]
    pixels = (np.stack(planes) / 255 - _MEAN[:, None, None]) / _STD[:, None, None]
    return np.ascontiguousarray(pixels[None], np.float32)


def enlarge(planes: np.ndarray, size_wh: tuple[int, int]) -> np.ndarray:
    """(M, H, W) float32: bilinear, as the reference enlarges logits."""
    from PIL import Image

    return np.stack(
        [np.asarray(Image.fromarray(plane).resize(size_wh, Image.Resampling.BILINEAR)) for plane in planes]
    )


# ----------------------------------------------------------------------------------------------------- export


def exported(subject: Subject) -> tuple[Path, Path]:
    """The encoder's and the decoder's file; made, if missing, by a process of its own (torch stays out of
    this one)."""
    files = _export_files(subject)
    if not all(path.exists() for path in files):
        arguments = [
            f"--{key}={getattr(subject, key)}" for key in ("checkpoint", "variant", "folder", "exporter")
        ]
        subprocess.run([sys.executable, __file__, "export", *arguments], check=True, stdout=sys.stderr)
    return files


def export(subject: Subject) -> tuple[Path, Path]:
    """Write both graphs with torch's exporter. The positional table is made a constant first: an engine's
    constant folder may take minutes over its cubic Resize."""
    import torch

    model = _load_reference(subject)
    trunk, grid = model.image_encoder.trunk, subject.image_size // 4
    with torch.no_grad():
        table = trunk._get_pos_embed((grid, grid)).contiguous()
    trunk._get_pos_embed = lambda hw: table
    encoder, decoder = _modules(model)

    pixels = torch.zeros(1, 3, subject.image_size, subject.image_size)
    coords, labels = torch.full((1, 1, 2), 300.0), torch.ones(1, 1, dtype=torch.int32)
    files = _export_files(subject)
    files[0].parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        features = encoder(pixels)
        feature_names = ["image_embed", "high_res_0", "high_res_1"]
        _export_one(subject, encoder, (pixels,), files[0], ["pixels"], feature_names)
        inputs = (*features, coords, labels)
        _export_one(
            subject, decoder, inputs, files[1], [*feature_names, "coords", "labels"], ["masks", "ious"]
        )
    return files


def _modules(model: Any) -> tuple[Any, Any]:
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            high_res_0, high_res_1, embed = self.model.forward_image(pixels)["backbone_fpn"]
            return embed + self.model.no_mem_embed.reshape(1, -1, 1, 1), high_res_0, high_res_1

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.prompt_encoder, self.mask_decoder = model.sam_prompt_encoder, model.sam_mask_decoder
            self.register_buffer("dense_pe", model.sam_prompt_encoder.get_dense_pe())

        def forward(
            self,
            embed: torch.Tensor,
            high_res_0: torch.Tensor,
            high_res_1: torch.Tensor,
            coords: torch.Tensor,
            labels: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            sparse, dense = self.prompt_encoder(points=(coords, labels), boxes=None, masks=None)
            masks, ious, _, _ = self.mask_decoder(
                image_embeddings=embed,
                image_pe=self.dense_pe,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
                repeat_image=False,
                high_res_features=[high_res_0, high_res_1],
            )
            return masks, ious

    return Encoder().eval(), Decoder().eval()


def _export_one(
    subject: Subject, module: Any, inputs: Any, path: Path, names: list[str], outputs: list[str]
) -> None:
    import torch

    partial = path.with_name(f"{os.getpid()}.{path.name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            partial,
            input_names=names,
            output_names=outputs,
            dynamo=subject.exporter == "dynamo",
            opset_version=OPSETS[subject.exporter],
            external_data=False,
        )
    os.replace(partial, path)


def _export_files(subject: Subject) -> tuple[Path, Path]:
    state = subject.checkpoint.stat()
    exporter = f"{subject.exporter}{OPSETS[subject.exporter]}-torch{importlib.metadata.version('torch')}"
    stem = f"{subject.checkpoint.stem}-{state.st_size:x}-{int(state.st_mtime):x}-{exporter}"
    return subject.folder / f"{stem}.encoder.onnx", subject.folder / f"{stem}.decoder.onnx"


# -------------------------------------------------------------------------------------------------- reference


def reference_of(variant: str) -> Any:
    """tests/parity/reference.py, or SAM's, which know how the reference is imported and built."""
    for folder in (ROOT / "src", ROOT / "tests" / "parity"):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
    import reference
    import reference_sam1

    return reference_sam1 if variant in reference_sam1.VARIANTS else reference


def _load_reference(subject: Subject) -> Any:
    return reference_of(subject.variant).load(subject.variant, subject.checkpoint, subject.image_size)


def _versions(*packages: str) -> dict[str, str]:
    return {package: importlib.metadata.version(package) for package in packages}


# ----------------------------------------------------------------------------------------------- command line


def main() -> None:
    """Exports of the reference, and a short comparison of the rivals."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("action", choices=("export", "time"))
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--exporter", choices=tuple(OPSETS), default=Subject.exporter)
    parser.add_argument("--threads", type=int, default=Subject.threads)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rivals", nargs="+", default=["pytorch", "onnxruntime", "openvino"])
    options = parser.parse_args()
    subject = Subject(options.checkpoint, options.variant, options.folder, options.threads, options.exporter)
    if options.action == "export":
        export(subject)
    else:
        print(json.dumps(compare(subject, tuple(options.rivals), options.repeats), indent=2))


def compare(subject: Subject, names: tuple[str, ...], repeats: int) -> dict[str, Any]:
    """Seconds of interleaved encodings and clicks of each rival, and its answer's distance from the first."""
    from masklet.testing import synthetic_scene

    scene = synthetic_scene(3, (720, 1280))
    point_xy = (float(scene.points_xy[0, 0]), float(scene.points_xy[0, 1]))
    table: dict[str, dict[str, Any]] = {}
    answers: dict[str, Click] = {}
    prepared = rivals(subject, names)
    for rival in prepared:
        table[rival.name] = {"versions": rival.versions(), "prepare": _seconds(rival.prepare)}
        rival.encode(scene.image)  # warms up
        answers[rival.name] = rival.click(point_xy)
    times = {name: {"encode": [], "click": []} for name in table}
    for _ in range(repeats):
        for rival in prepared:
            times[rival.name]["encode"].append(_seconds(lambda rival=rival: rival.encode(scene.image)))
            times[rival.name]["click"].append(_seconds(lambda rival=rival: rival.click(point_xy)))

    first = answers[names[0]]
    for name, row in table.items():
        ours = answers[name]
        difference = (
            np.abs(ours.low_res_masks - first.low_res_masks).max() / np.abs(first.low_res_masks).max()
        )
        row["relative_difference"] = float(difference)
        row["flipped_pixels"] = int(np.count_nonzero((ours.masks > 0) != (first.masks > 0)))
        row["median"] = {action: statistics.median(seconds) for action, seconds in times[name].items()}
        row["all"] = times[name]
    return {"variant": subject.variant, "threads": subject.threads, "seconds": table}


def _seconds(call: Any) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
