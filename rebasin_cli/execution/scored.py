"""Whole networks evaluated on data, one after the other: loss and accuracy of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.data import BatchSource
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.scores import Values, values
from rebasin_cli.progress import Progress


@dataclass(frozen=True, slots=True)
class WholeNetwork:
    """A network by its tensors, as the passes over data know networks."""

    name: str
    tensors: Mapping[str, Tensor]
    end: int | None = None
    between: tuple[int, int] = (0, 0)
    lam: float = 0.0
    shares: Sequence[tuple[int, float]] = ()
    adjusted: bool = False

    @property
    def keys(self) -> Sequence[str]:
        return tuple(self.tensors)

    def tensor(self, key: str, device: torch.device | None = None) -> Tensor:
        """The tensor, on a device."""
        found = self.tensors[key]
        return found if device is None else found.to(device)


def scores_of(
    slot: ModelSlot,
    source: BatchSource,
    networks: Mapping[str, Mapping[str, Tensor]],
    *,
    measure: Measure | None = None,
    progress: Progress | None = None,
    reference: str | None = None,
) -> dict[str, Values]:
    """Loss and accuracy of every network on the data, by name.

    Args:
        reference: the network whose outputs all are compared with, for want of labels; see `agreement`.

    Raises:
        DataError: a batch cannot be read or does not fit the model.
    """

    def step(done: int, words: str) -> None:
        if progress is not None:
            progress.step(done, source.batch_count, words)

    whole = [WholeNetwork(name, tensors, 0 if name == reference else None) for name, tensors in networks.items()]
    sums = evaluate(
        slot, source, whole, measure or Measure(), RunningSums(), unlabelled=reference is not None, progress=step
    )
    return {name: values(sums[name]) for name in networks}
