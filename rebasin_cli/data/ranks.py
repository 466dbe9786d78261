"""Several processes that share one pass over the data, under `torchrun`; a single process has world size 1.

Of a pass, only sums over batches are exchanged, in float64, so the results equal those of one process up to the order
of additions. Tasks of other kinds are divided whole (`Ranks.divided`).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from rebasin_cli import errors
from rebasin_cli.errors import RebasinError, ResourceError

Task = TypeVar("Task")
Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Ranks:
    """The rank of this process, the world size, and the device of exchanged tensors."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    def total(self, vector: Tensor) -> Tensor:
        """The sum over all processes of a float64 vector."""
        if self.world == 1:
            return vector
        moved = vector.to(self.device)
        dist.all_reduce(moved)
        return moved.to(vector.device)

    def shared(self, value: Any) -> Any:
        """The first process' value, in every process."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gathered(self, value: Any) -> list[Any]:
        """The value of every process, in order of their ranks, in every process."""
        found: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(found, value)
        return found

    def divided(self, tasks: Sequence[Task], work: Callable[[Task], Done]) -> list[Done]:
        """The results of all tasks in their order, in every process; each task is done by one of them.

        Raises:
            RebasinError: in every process, where a task fails in one.
        """
        own: dict[int, Done] = {}
        error: RebasinError | None = None
        try:
            for number in range(self.rank, len(tasks), self.world):
                own[number] = work(tasks[number])
        except RebasinError as caught:
            error = caught
        self.agree(error)
        own = {number: done for found in self.gathered(own) for number, done in found.items()}
        return [own[number] for number in range(len(tasks))]

    def agree(self, error: RebasinError | None) -> None:
        """Raise in every process the error of the first process that has one.

        Every process must call this equally often; one that fails calls it at once.
        """
        if self.world == 1:
            if error is not None:
                raise error
            return
        mine = None if error is None else (type(error).__name__, error.message, error.path, error.hint, error.slug)
        for found in self.gathered(mine):
            if found is not None:
                kind, message, path, hint, slug = found
                told = getattr(errors, kind, RebasinError)(message, path=path, hint=hint, slug=slug)
                told.agreed = True
                raise told from error


ALONE = Ranks()
PATIENCE = timedelta(days=1)
"""Timeout of collective operations: the first process may match for hours while the others wait."""


def launched() -> tuple[int, int, int]:
    """(rank, world, local rank) from the environment that `torchrun` sets; (0, 1, 0) without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2 or "RANK" not in os.environ:
        return 0, 1, 0
    return int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0"))


def ranks_for(device: torch.device) -> Ranks:
    """The process group of this launch: gloo for the CPU, nccl for GPUs (one for each local rank).

    It is created once per process: a second one of the same name could find the first one's entries in the rendezvous
    store and wait forever.

    Raises:
        ResourceError: the processes cannot connect.
    """
    rank, world, _ = launched()
    if world == 1:
        return ALONE
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ResourceError(f"rank {rank} of {world}: the processes cannot connect: {reason}") from error
        atexit.register(dist.destroy_process_group)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Ranks(dist.get_rank(), dist.get_world_size(), device if device.type == "cuda" else torch.device("cpu"))
