"""The programs that track a clip for `video.py`: masklet, Meta's SAM 2 and Meta's EdgeTAM, behind the same
calls, each in a process of its own.

In: a `Subject`. Out: logits of each frame; seconds of each of masklet's stages; a profile. Knows nothing
about rounds and pages.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import flop
import numpy as np
import turns
from image import gemm_rate

PROGRAMS = ("masklet", "pytorch")
EDGETAM = "edgetam"  # the variant whose reference is a package of its own, which also calls itself sam2
EDGETAM_SIZE = 1024  # pixels
EDGETAM_PACKAGES = Path(sys.prefix) / "edgetam"  # where scripts/_env.sh installs it
# Functions of our step beside its stages, and their modules.
FUNCTIONS = {"frame_input": "video_state", "_remembered": "object_track", "video_logits": "video"}


@dataclass(frozen=True)
class Subject:
    """What every process is given."""

    variant: str
    checkpoint: Path
    clip: Path  # a folder of numbered JPEG files
    points: tuple[tuple[float, float], ...]  # one click (x, y) per object, pixels of the first frame
    threads: int


class Masklet:
    """masklet's predictor, and what its step is made of."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def versions(self) -> dict[str, str]:
        return {name: version(name) for name in ("masklet", "onnxruntime", "av")}

    def predictor(self) -> Any:
        import masklet
        from masklet.runtime.session import Session

        self._measure(Session, "run", lambda session: session.stage.name)
        for name, module in FUNCTIONS.items():
            self._measure(import_module(f"masklet.pipeline.{module}"), name, lambda *_, name=name: name)
        self.model = masklet.load(self.subject.checkpoint, threads=self.subject.threads)
        return masklet.VideoPredictor(self.model, fill_hole_area=0)

    def _measure(self, owner: Any, name: str, label: Any) -> None:
        """Add up the seconds of a function's calls under what `label` makes of its first argument."""
        original = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds[label(*args[:1])] += time.perf_counter() - started
                self.calls[label(*args[:1])] += 1

        setattr(owner, name, measured)


class PyTorch:
    """Meta's SAM2VideoPredictor as its users run it on a CPU."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.seconds: Counter[str] = Counter()

    def versions(self) -> dict[str, str]:
        package = "edgetam-dimos" if self.subject.variant == EDGETAM else "sam2"
        return {name: version(name) for name in ("torch", package)}

    def predictor(self) -> Any:
        if self.subject.variant == EDGETAM:
            return self._edgetam()
        import reference
        import torch

        reference.prepare_torchvision()
        from sam2.build_sam import build_sam2_video_predictor

        torch.set_num_threads(self.subject.threads)
        predictor = build_sam2_video_predictor(
            reference.VARIANTS[self.subject.variant].config, self.subject.checkpoint, device="cpu"
        )
        predictor.fill_hole_area = 0  # it fills holes on CUDA only, and warns elsewhere
        return predictor

    def _edgetam(self) -> Any:
        """EdgeTAM's own predictor, with the weights of the checkpoint."""
        sys.path.insert(0, str(EDGETAM_PACKAGES))
        import run_edgetam
        import torch

        torch.set_num_threads(self.subject.threads)
        with redirect_stdout(sys.stderr):  # it tells how far it got; stdout is for answers
            predictor = run_edgetam.build(EDGETAM_SIZE)
        state = torch.load(self.subject.checkpoint, weights_only=True)["model"]
        predictor.load_state_dict(state)
        return predictor


def track(predictor: Any, subject: Subject, objects: int) -> Iterator[np.ndarray]:
    """Logits (objects, H, W) of each frame. Both programs have the same names."""
    state = predictor.init_state(str(subject.clip))
    for index, point_xy in enumerate(subject.points[:objects]):
        predictor.add_new_points_or_box(
            state,
            frame_idx=0,
            obj_id=index,
            points=np.array([point_xy], np.float32),
            labels=np.array([1], np.int32),
        )
    for _frame, _ids, logits in predictor.propagate_in_video(state):
        yield np.asarray(logits)[:, 0]


def work(name: str, subject: Subject, objects: int, answer: Path) -> None:
    """Serve turns on stdin, one JSON line each on stdout: the step's seconds, whole and by stage, and peak
    memory so far. "answer" writes the logits of the timed frames to a file."""
    program = {"masklet": Masklet, "pytorch": PyTorch}[name](subject)
    results: Any = None
    kept: list[np.ndarray] = []
    for line in sys.stdin:
        turn, logits = line.strip(), None
        program.seconds.clear()
        started = time.perf_counter()
        if turn == "prepare":
            results = track(program.predictor(), subject, objects)
        elif turn in ("warm", "step"):
            logits = next(results)
        seconds = time.perf_counter() - started
        if turn == "step":
            kept.append(np.array(logits, np.float32))
        elif turn == "answer":
            np.save(answer, np.stack(kept))
        reply = {"seconds": seconds, "stages": program.seconds}
        reply |= {"peak": turns.peak_memory(), "versions": program.versions()}
        print(json.dumps(reply), flush=True)


def profile(subject: Subject, frames: int) -> dict[str, Any]:
    """One step with full memory and one object: FLOP of each of masklet's stages, and for each operator its
    kernels' microseconds and FLOP. "rate": what the machine's matrix product reaches at that time."""
    from masklet.runtime import session as sessions

    plain = sessions.session_options
    program, results = Masklet(subject), None
    with tempfile.TemporaryDirectory() as folder:

        def profiled(count: int | None) -> Any:
            options = plain(count)
            options.enable_profiling = True
            options.profile_file_prefix = tempfile.mkdtemp(dir=folder) + "/profile"
            return options

        sessions.session_options = profiled
        results = track(program.predictor(), subject, 1)
        for _ in range(frames):
            next(results)
        program.calls.clear()
        next(results)
        stages, spent, flops = Counter(), Counter(), Counter()
        for name, session in program.model._sessions.items():
            for kernel in flop.kernels(Path(session._session.end_profiling()), program.calls[name]):
                stages[name] += kernel.flop
                spent[kernel.operator] += kernel.microseconds
                flops[kernel.operator] += kernel.flop
    return {"stages": stages, "spent": spent, "flop": flops, "rate": gemm_rate(subject.threads)}
