"""Judging candidates: the loss of a midpoint on the held batches, the same ones for all of them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from math import inf, isfinite

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.ranks import Ranks
from rebasin_cli.errors import RebasinError
from rebasin_cli.execution.midpoint_loss import MidpointLoss
from rebasin_cli.execution.scores import Values

IN_ANY_CASE = 2
"""Candidates that are judged whatever the time: B as it is, and the result of the search by weights."""


class OutOfTime(Exception):
    """The deadline came before a candidate was judged."""


class Clock:
    """A deadline for several processes, foreseen: work that would not end before it is not begun.

    Args:
        deadline: of `time.monotonic`, in the first process; None for none.
    """

    def __init__(self, deadline: float | None, ranks: Ranks) -> None:
        self._deadline, self._ranks = deadline, ranks
        self._longest: dict[str, float] = {}

    def late(self, work: str, error: RebasinError | None = None) -> bool:
        """Whether work of this kind, as long as the longest so far, would end after the deadline; alike everywhere.

        Raises:
            RebasinError: in every process, where one has an error.
        """
        self._ranks.agree(error)
        if self._deadline is None:
            return False
        late = time.monotonic() + self._longest.get(work, 0.0) >= self._deadline
        return bool(self._ranks.shared(late))

    def took(self, work: str, seconds: float) -> None:
        """Remember how long it took."""
        self._longest[work] = max(self._longest.get(work, 0.0), seconds)


class Judge:
    """The held batches and the loss.

    Args:
        ranks: the processes that share the batches; every one gets the same numbers.

    Attributes:
        held: the batches; fewer where time ran out before the first candidate was judged on all of them.
    """

    def __init__(self, loss: MidpointLoss, held: Sequence[Batch], clock: Clock, ranks: Ranks) -> None:
        self._loss, self.held, self._clock, self._ranks = loss, list(held), clock, ranks
        self._judged = 0

    def __call__(self, network: Mapping[str, Tensor]) -> float:
        """The mean loss over the held samples; infinite where it is not finite.

        Raises:
            OutOfTime, RebasinError: as for `losses`.
        """
        losses = self.losses(network)
        sizes = torch.tensor([batch.size for batch in self.held], dtype=torch.float64)
        mean = float((losses * sizes).sum() / sizes.sum())
        return mean if isfinite(mean) else inf

    @torch.no_grad()
    def losses(self, network: Mapping[str, Tensor]) -> Tensor:
        """The loss of each held batch, float64.

        Raises:
            OutOfTime: before all batches were done. The first `IN_ANY_CASE` candidates are judged in any case: the
                first on one round of batches at least, and all others on the same ones.
            RebasinError: in every process, where the data do not fit the model in one.
        """
        world = self._ranks.world
        losses = torch.zeros(len(self.held), dtype=torch.float64)
        for start in range(0, len(self.held), world):
            if not self._goes_on(start):
                break
            began = time.monotonic()
            error = None
            number = start + self._ranks.rank
            if number < len(self.held):
                try:
                    losses[number] = float(self._loss.of(network, self.held[number]))
                except RebasinError as caught:
                    error = caught
            self._ranks.agree(error)
            self._clock.took("judging", time.monotonic() - began)
        self._judged += 1
        return self._ranks.total(losses)[: len(self.held)]

    def _goes_on(self, start: int) -> bool:
        """Whether there is time for the batches from `start` on; of the first candidate those before are enough."""
        free = self._judged < IN_ANY_CASE and (self._judged or not start)
        if free or not self._clock.late("judging"):
            return True
        if self._judged:
            raise OutOfTime
        self.held = self.held[:start]
        return False

    def ends(self) -> tuple[Values, ...]:
        """How A and B classify the held samples (the first batch, where time is short); empty without class numbers."""
        held = self.held[:1] if self._clock.late("judging") else self.held
        found = (self._loss.score(end, held) for end in (0, 1))
        return tuple(score for score in found if score is not None)
