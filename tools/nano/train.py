"""Train masklet-nano: `python tools/nano/train.py DATA RUN`. Started again, it goes on from its checkpoint.

In: gathered data. Out: RUN/checkpoint.pt, replaced every few minutes, and RUN/log.txt. What is done when is
in `schedule.py`; a run always anneals within its --minutes. Given again after its end, or with other
--minutes, it starts a further cycle over the trained weights with a lower peak.

On a CPU, --processes with one thread each average their gradients: that is faster than threads, which wait
for one another after each small operation. With --workers other processes draw the scenes.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from amx import use_tiles
from batches import ClipBatch, Source, StillBatch, clip_batch, still_batch
from losses import Losses
from network import NANO, build, parameter_count, set_size
from optimiser import Muon, is_hidden_matrix
from schedule import LEAST, learning_rate, phase_at, phase_size
from similarity import Similarity
from steps import BOX, CLICK, MASK, ClipPlan, StillPlan, clip_ious, clip_losses, still_ious, still_losses

PEAK_RATE = 1e-3
WEIGHT_DECAY = 0.02
GRADIENT_NORM = 1.0
EMA_DECAY = 0.999
PICTURES_PER_CLIP = 6  # of a batch: a clip costs about as much
FIRST_PROMPTS, FIRST_SHARES = (CLICK, BOX, MASK), (0.5, 0.3, 0.2)
CORRECTION_SHARES = (0.35, 0.35, 0.2, 0.1)  # of 0, 1, 2, 3 corrections
SAVE_EVERY, EVALUATE_EVERY = 180, 1200  # seconds
LOG_EVERY = 20  # steps
HELD_STILLS, HELD_CLIPS, HELD_FRAMES = 64, 8, 8


@dataclass(frozen=True)
class Order:
    """What one step does: the same in all processes."""

    step: int
    size: int
    least: float  # share of the picture of the smallest object that is prompted
    plain: float  # share of plain pictures
    likeness: float  # weight of the similarity of places
    first: int  # number of the first scene, of all processes together
    count: int  # scenes for each process
    frames: int  # 0: pictures
    still: StillPlan | None  # None: the trunk learns alone
    clip: ClipPlan


@dataclass
class State:
    """What a checkpoint keeps beside weights and optimiser."""

    step: int = 0
    stills: int = 0
    clips: int = 0
    cycle: int = 0
    minutes: float = 0.0  # of the cycle
    seconds: float = 0.0  # of the cycle, spent
    total_seconds: float = 0.0


@dataclass
class Trainer:
    """A network with its optimiser, average and state, in one of `world` processes."""

    options: argparse.Namespace
    rank: int
    world: int
    device: torch.device
    state: State = field(default_factory=State)
    stopping: bool = False

    def __post_init__(self) -> None:
        torch.manual_seed(self.options.seed)
        self.model = build(NANO, self.options.size).to(self.device)
        self.ema = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.similarity = Similarity(NANO.d_model).to(self.device)
        self.parameters = [*self.model.parameters(), *self.similarity.parameters()]
        self.optimisers = self._optimisers()
        self.path = self.options.run / "checkpoint.pt"
        self._load()

    def _optimisers(self) -> list[torch.optim.Optimizer]:
        matrices = [parameter for parameter in self.model.parameters() if is_hidden_matrix(parameter)]
        known = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in self.parameters if id(parameter) not in known]
        groups = [
            {"params": [p for p in rest if p.ndim > 1]},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        return [
            torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True),
            Muon(matrices, PEAK_RATE, WEIGHT_DECAY, self.rank, self.world),
        ]

    def _load(self) -> None:
        """Weights of --init, then a checkpoint, if there is one."""
        if self.options.init and not self.path.exists():
            from safetensors.torch import load_file

            weights = {name: value.float() for name, value in load_file(self.options.init).items()}
            self.model.load_state_dict(weights)
            self.ema = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.state.cycle = 1
        minutes = self.options.minutes
        if self.options.resume and self.path.exists():
            saved = torch.load(self.path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(saved["model"])
            self.similarity.load_state_dict(saved["similarity"])
            for optimiser, content in zip(self.optimisers, saved["optimisers"], strict=True):
                optimiser.load_state_dict(content)
            self.ema = saved["ema"]
            self.state = State(**saved["state"])
            if self.state.seconds >= 60 * self.state.minutes or self.state.minutes != minutes:
                self.state.cycle += 1
                self.state.seconds = 0.0
                self.model.load_state_dict(self.ema)  # the annealed average is what goes on
        self.state.minutes = minutes

    def save(self) -> None:
        """Replace the checkpoint, whole or not at all."""
        if self.rank:
            return
        content = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "similarity": self.similarity.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "state": vars(self.state),
        }
        part = self.path.with_suffix(".part")
        torch.save(content, part)
        os.replace(part, self.path)

    def log(self, text: str) -> None:
        """A line on stdout and in the log, from the first process alone."""
        if self.rank == 0:
            line = f"{time.strftime('%H:%M:%S', time.gmtime())} {text}"
            print(line, flush=True)
            with open(self.options.run / "log.txt", "a", encoding="utf-8") as file:
                file.write(line + "\n")

    def progress(self) -> float:
        """Share of the cycle's time that is over, 1 to stop; the first process decides."""
        share = min(1.0, self.state.seconds / (60 * self.state.minutes))
        told = torch.tensor([2.0 if self.stopping else share], dtype=torch.float64)
        if self.world > 1:
            dist.broadcast(told, 0)
        self.stopping = bool(told[0] > 1)
        return float(told[0])

    def order(self, progress: float) -> Order:
        """The next step; random choices depend on seed and step alone. Counts its scenes as used."""
        state = self.state
        rng = np.random.default_rng([self.options.seed, state.step])
        phase = phase_at(progress, state.cycle)
        frames = int(rng.integers(4, 9)) if rng.random() < phase.clips else 0
        count = self.options.batch
        if frames:
            count = max(1, count // PICTURES_PER_CLIP)
        first_prompt = str(rng.choice(FIRST_PROMPTS, p=FIRST_SHARES))
        corrections, feedback = int(rng.choice(4, p=CORRECTION_SHARES)), bool(rng.random() < 0.8)
        still = StillPlan(first_prompt, corrections, feedback) if phase.prompts else None
        correct_at = int(rng.integers(1, frames)) if frames and rng.random() < 0.3 else None
        order = Order(
            step=state.step,
            size=phase_size(phase, self.options.size),
            least=phase.least,
            plain=phase.plain,
            likeness=phase.likeness,
            first=state.clips if frames else state.stills,
            count=count,
            frames=frames,
            still=still,
            clip=ClipPlan(first_prompt, correct_at),
        )
        state.step += 1
        if frames:
            state.clips += count * self.world
        else:
            state.stills += count * self.world
        return order

    def source(self, order: Order) -> Source:
        """The scenes of an order."""
        options = self.options
        return Source(options.data, "train", order.size, options.seed, order.least, order.plain)

    def draw(self, order: Order) -> tuple[Any, ...]:
        """The call that draws this process's share of an order's scenes."""
        first = order.first + self.rank * order.count
        if order.frames:
            return clip_batch, self.source(order), first, order.count, order.frames
        return still_batch, self.source(order), first, order.count

    def train_step(self, order: Order, batch: StillBatch | ClipBatch, rate: float) -> Losses:
        """One step of the optimiser."""
        torch.manual_seed(order.step * self.world + self.rank)
        set_size(self.model, order.size)
        self.model.train()
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
            for group in optimiser.param_groups:
                group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            if isinstance(batch, ClipBatch):
                losses = clip_losses(self.model, batch, order.clip, self.device)
            else:
                losses = still_losses(self.model, batch, order.still, self.device, self.similarity)
        losses.total(order.likeness).backward()
        self._average_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, GRADIENT_NORM)
        if torch.isfinite(norm):
            for optimiser in self.optimisers:
                optimiser.step()
            self._average_weights(order.step)
        return Losses(*(part.detach().to(self.device) for part in losses))

    def _average_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def _average_weights(self, step: int) -> None:
        keep = min(EMA_DECAY, (1 + step) / (10 + step))
        values = self.model.state_dict()
        torch._foreach_lerp_([self.ema[name] for name in values], list(values.values()), 1 - keep)

    @torch.no_grad()
    def evaluate(self) -> str:
        """Held-out scenes with the averaged weights, at stride 4; each process takes its share."""
        kept = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema)
        self.model.eval()
        set_size(self.model, self.options.size)
        options = self.options
        source = Source(options.data, "held", options.size, options.seed, LEAST)
        sums = torch.zeros(8, dtype=torch.float64)
        for first in range(self.rank * 8, HELD_STILLS, 8 * self.world):
            batch = still_batch(source, first, 8)
            clicks = still_ious(self.model, batch, StillPlan(CLICK, 2, True, exact=True), self.device)
            boxes = still_ious(self.model, batch, StillPlan(BOX, 0, True, exact=True), self.device)
            for place, ious in enumerate((clicks[0], clicks[2], boxes[0])):
                sums[2 * place] += ious.sum().cpu()
                sums[2 * place + 1] += ious.numel()
        for first in range(self.rank, HELD_CLIPS, self.world):
            batch = clip_batch(source, first, 1, HELD_FRAMES)
            ious = clip_ious(self.model, batch, ClipPlan(CLICK, None), self.device)
            sums[6] += ious.sum().cpu()
            sums[7] += ious.numel()
        if self.world > 1:
            dist.all_reduce(sums)
        self.model.load_state_dict(kept)
        one, three, box, clips = (sums[::2] / sums[1::2]).tolist()
        return f"held: 1 click {one:.3f}, 3 clicks {three:.3f}, box {box:.3f}, clips from a click {clips:.3f}"


def run(trainer: Trainer, executor: ProcessPoolExecutor | None) -> None:
    """Steps until the time is over or a signal came, then a last evaluation and checkpoint."""
    state = trainer.state
    trainer.log(
        f"start: {parameter_count(trainer.model):,} parameters, cycle {state.cycle}, step {state.step},"
        f" {state.seconds / 60:.1f} of {state.minutes:g} minutes, {trainer.world} processes"
    )
    ahead: deque[tuple[Order, Future | None]] = deque()
    recent: list[tuple[bool, Losses]] = []
    clock = saved = evaluated = logged = time.monotonic()
    scenes = state.stills + state.clips
    while True:
        progress = trainer.progress()
        if progress >= 1:
            break
        while len(ahead) < (2 * trainer.options.workers if executor else 1):
            order = trainer.order(progress)
            ahead.append((order, executor.submit(*trainer.draw(order)) if executor else None))
        order, future = ahead.popleft()
        if future:
            batch = future.result()
        else:
            make, *arguments = trainer.draw(order)
            batch = make(*arguments)
        rate = learning_rate(progress, state.cycle, trainer.options.rate)
        recent.append((order.frames > 0, trainer.train_step(order, batch, rate)))

        now = time.monotonic()
        state.seconds += now - clock
        state.total_seconds += now - clock
        clock = now
        if order.step % LOG_EVERY == LOG_EVERY - 1:
            speed = (state.stills + state.clips - scenes) / (now - logged)
            trainer.log(f"step {order.step + 1} {progress:5.1%} size {order.size} lr {rate:.2e}"
                        f" {speed:.1f} scenes/s{_summary(recent)}")  # fmt: skip
            logged, scenes = now, state.stills + state.clips
            recent.clear()
        if trainer.rank == 0 and now - saved > SAVE_EVERY:
            trainer.save()
            saved = now
        due = torch.tensor(float(now - evaluated > EVALUATE_EVERY))
        if trainer.world > 1:
            dist.broadcast(due, 0)
        if due:
            trainer.log(trainer.evaluate())
            evaluated = time.monotonic()
    if not trainer.stopping:
        trainer.log(trainer.evaluate())
    trainer.save()
    trainer.log(f"{'stopped' if trainer.stopping else 'done'}: step {state.step}, {state.stills} pictures,"
                f" {state.clips} clips, {state.total_seconds / 60:.1f} minutes in all")  # fmt: skip


def _summary(recent: list[tuple[bool, Losses]]) -> str:
    text = ""
    for clips, name in ((False, "stills"), (True, "clips")):
        parts = [torch.stack(list(losses)) for kind, losses in recent if kind == clips]
        if parts:
            means = zip(Losses._fields, torch.stack(parts).mean(0).tolist(), strict=True)
            text += f" | {name} " + " ".join(f"{part} {mean:.3f}" for part, mean in means)
    return text


def process(rank: int, options: argparse.Namespace, address: str) -> None:
    """One of the processes that average their gradients."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # they are many times slower on a CPU
    tiles = options.device == "cpu" and use_tiles()
    if options.processes > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group("gloo", init_method=address, rank=rank, world_size=options.processes)
    trainer = Trainer(options, rank, options.processes, torch.device(options.device))
    if tiles:
        trainer.log("matrix products in bfloat16, on the CPU's tiles")

    def stop(*_: object) -> None:
        trainer.stopping = rank == 0  # the others are told

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if not options.workers:
        run(trainer, None)
        return
    context = torch.multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, mp_context=context, initializer=_quiet_worker) as executor:
        run(trainer, executor)


def _quiet_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the trainer ends its workers
    torch.set_num_threads(1)


def main() -> None:
    """Starts the processes; this one is the first."""
    parser = argparse.ArgumentParser(description="Train masklet-nano, or go on with its training.")
    parser.add_argument("data", type=Path, help="the gathered data; see tools/nano/DATA.md")
    parser.add_argument("run", type=Path, help="folder of the checkpoint and the log")
    parser.add_argument("--minutes", type=float, default=100.0, help="of this cycle")
    parser.add_argument("--size", type=int, default=256, help="side of the pictures, in steps of 128 pixels")
    parser.add_argument("--batch", type=int, default=4, help="pictures of a step, in each process")
    parser.add_argument("--rate", type=float, default=PEAK_RATE, help="peak of the learning rate")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="that average their gradients (CPU)")
    parser.add_argument("--threads", type=int, default=1, help="in each process")
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that draw scenes, for each of these"
    )
    parser.add_argument("--resume", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--init", type=Path, help="start from an exported model")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.run.mkdir(parents=True, exist_ok=True)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    context = torch.multiprocessing.get_context("spawn")
    others = [
        context.Process(target=process, args=(rank, options, address), daemon=options.workers == 0)
        for rank in range(1, options.processes)
    ]
    for other in others:
        other.start()
    process(0, options, address)
    for other in others:
        other.join()


if __name__ == "__main__":
    sys.exit(main())
