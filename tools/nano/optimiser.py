"""Muon: steepest descent for matrices, beside AdamW for all else.

In: parameters with gradients. Out: the parameters, updated. Knows nothing about networks or time.

An update is the momentum with its singular values made about equal, by a polynomial that is applied a few
times (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"), scaled to the size of
AdamW's updates, so that one rate serves both (Liu et al. 2025, arXiv:2502.16982). torch has it too, but
computes in bfloat16, which took ten times as long on a CPU that emulates it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

MOMENTUM = 0.95
ROUNDS = 4  # of the polynomial
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
LIKE_ADAMW = 0.2  # root mean square of AdamW's updates
LEAST_SIDE = 9  # narrower matrices gain nothing


def is_hidden_matrix(parameter: torch.Tensor) -> bool:
    """Whether Muon is for it: matrices inside a network; tables of embeddings have a row or a few."""
    return parameter.ndim == 2 and min(parameter.shape) >= LEAST_SIDE


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum. Of `world` processes with equal gradients each does its share."""

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, weight_decay: float, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.rank, self.world = rank, world

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Update all parameters that have gradients."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            mine = _share(parameters, self.rank, self.world)
            updates = [self._update(p, index in mine) for index, p in enumerate(parameters)]
            if self.world > 1:
                flat = torch.cat([update.flatten() for update in updates])
                dist.all_reduce(flat)
                parts = flat.split([parameter.numel() for parameter in parameters])
                updates = [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]
            for parameter, update in zip(parameters, updates, strict=True):
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * LIKE_ADAMW * max(parameter.shape) ** 0.5)

    def _update(self, parameter: torch.Tensor, mine: bool) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        gradient = parameter.grad
        assert gradient is not None
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        return orthogonal(gradient.lerp(state["momentum"], MOMENTUM)) if mine else torch.zeros_like(parameter)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix with about the same singular vectors, its singular values near one."""
    first, third, fifth = COEFFICIENTS
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(ROUNDS):
        square = wide @ wide.T
        wide = torch.addmm(
            wide, torch.addmm(square, square, square, beta=third, alpha=fifth), wide, beta=first
        )
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


def _share(parameters: list[torch.Tensor], rank: int, world: int) -> set[int]:
    """Which parameters a process computes: always the next costly one to who has least to do."""
    costs = [min(p.shape) * p.numel() for p in parameters]
    loads, owners = [0] * world, [0] * len(costs)
    for index in sorted(range(len(costs)), key=lambda i: -costs[i]):
        owners[index] = loads.index(min(loads))
        loads[owners[index]] += costs[index]
    return {index for index, owner in enumerate(owners) if owner == rank}
