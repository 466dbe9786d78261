"""Several processes that share one pass over the data, under `torchrun`; one process is the case of world 1.

Sums over batches are the only thing that is exchanged, in float64, so the numbers are those of one process up to the
order of additions.
"""

from __future__ import annotations

import atexit
import os
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rebasin_cli import errors
from rebasin_cli.errors import RebasinError, ResourceError


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process' number, how many there are, and where tensors must lie to be exchanged."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Is this the process that speaks and writes?"""
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

    def agree(self, error: RebasinError | None) -> None:
        """Raise in every process the failure of the first process that has one.

        Every process calls this equally often: one that fails calls it at once, and meets the others where they are.
        """
        if self.world == 1:
            if error is not None:
                raise error
            return
        mine = None if error is None else (type(error).__name__, error.message, error.path, error.hint, error.slug)
        gathered: list[Any] = [None] * self.world
        dist.all_gather_object(gathered, mine)
        for found in gathered:
            if found is not None:
                kind, message, path, hint, slug = found
                told = getattr(errors, kind, RebasinError)(message, path=path, hint=hint, slug=slug)
                told.agreed = True
                raise told from error


ALONE = Ranks()
PATIENCE = timedelta(days=1)
"""How long a process waits for one that is alive: the first may match for hours while the others have nothing to do."""


def launched() -> tuple[int, int, int]:
    """(rank, world, local rank) that `torchrun` has put into the environment; (0, 1, 0) without it."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world < 2 or "RANK" not in os.environ:
        return 0, 1, 0
    return int(os.environ["RANK"]), world, int(os.environ.get("LOCAL_RANK", "0"))


def ranks_for(device: torch.device) -> Ranks:
    """The process group of this launch: gloo for the CPU, nccl for GPUs (one a local rank).

    It is made once and lasts as long as the process: a second one of the same name could meet what the first one left
    in the store through which processes find each other, and wait for ever.

    Raises:
        ResourceError: the processes do not find each other.
    """
    rank, world, _ = launched()
    if world == 1:
        return ALONE
    if not dist.is_initialized():
        try:
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ResourceError(f"rank {rank} of {world}: the processes do not find each other: {reason}") from error
        atexit.register(dist.destroy_process_group)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return Ranks(dist.get_rank(), dist.get_world_size(), device if device.type == "cuda" else torch.device("cpu"))
