"""The simplest thing that can be learned: the midpoint itself, free to take any values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch
from rebasin_cli.data.ranks import ALONE
from rebasin_cli.execution.midpoint_loss import MidpointLoss
from rebasin_cli.matching.learning.batches import LearningData
from rebasin_cli.matching.learning.journal import Journal
from rebasin_cli.matching.learning.judging import Clock, Judge
from rebasin_cli.matching.learning.loop import Course, Loop, Progress
from rebasin_cli.matching.learning.moving import Found, Interpolated


class Free:
    """Gradient descent with momentum on the tensors of a linear layer; no candidate is forbidden but `refused`."""

    def __init__(self, rate: float = 0.1) -> None:
        self.rate = rate
        self.tensors = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
        self.momentum = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}
        self.projections = 0
        self.refused: list[Found] = []

    def interpolated(self, lam: float) -> Interpolated:
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in self.tensors.items()}
        return Interpolated(leaves, tuple(leaves.values()))

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        for name, gradient in zip(self.tensors, gradients, strict=True):
            if gradient is not None:
                self.momentum[name] = 0.5 * self.momentum[name] + gradient
                self.tensors[name] = self.tensors[name] - self.rate * self.momentum[name]

    def slow(self, factor: float) -> None:
        self.rate *= factor

    def project(self) -> int:
        self.projections += 1
        return 0

    def found(self) -> Found:
        return dict(self.tensors)

    def midpoint(self, found: Found) -> Mapping[str, Tensor]:
        return found

    def allowed(self, found: Found) -> bool:
        return not any(all(torch.equal(one[name], found[name]) for name in one) for one in self.refused)

    def begin(self, found: Found) -> None:
        self.tensors = dict(found)
        self.momentum = {name: torch.zeros_like(tensor) for name, tensor in self.tensors.items()}

    def state(self) -> dict[str, Tensor]:
        rate = {"rate": torch.tensor(self.rate, dtype=torch.float64)}
        return {**rate, **self.tensors, **{f"momentum {name}": tensor for name, tensor in self.momentum.items()}}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.rate = float(state["rate"])
        self.tensors = {name: state[name] for name in self.tensors}
        self.momentum = {name: state[f"momentum {name}"] for name in self.momentum}


def batch(index: int, labels: Callable[[Tensor], Tensor], size: int = 16) -> Batch:
    """Random samples of four numbers."""
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(index))
    return Batch(index, (x,), target=labels(x), size=size)


def loop(
    moving: Free,
    held: list[Batch],
    rest: list[Batch],
    course: Course,
    *,
    path: Path | None = None,
    on_judged: Callable[[Progress], None] = lambda done: None,
    deadline: float | None = None,
    resume: bool = True,
) -> Loop:
    """A loop that has begun at zero, or continues from its saved state."""
    zero = {"weight": torch.zeros(3, 4), "bias": torch.zeros(3)}
    clock = Clock(deadline, ALONE)
    loss = MidpointLoss(nn.Linear(4, 3), (zero, zero), torch.device("cpu"))
    judge = Judge(loss, held, clock, ALONE)
    journal = Journal(path, {"test": 1})
    made = Loop(
        moving,
        loss,
        judge,
        LearningData(held, rest),
        course,
        clock=clock,
        journal=journal,
        ranks=ALONE,
        on_judged=on_judged,
    )
    saved = journal.load() if resume else None
    if saved is None:
        made.offer("zero", zero)
        made.begin({}, {})
    else:
        made.resume(*saved)
    return made
