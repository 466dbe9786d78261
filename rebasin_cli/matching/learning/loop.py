"""The loop: learn on one part of the data, judge on the other, stop where nothing improves, and restore the best.

In every step the loss of a network between A and B (lam is drawn from `LAMS`) is differentiated on one or several
batches, and what is learned moves. Every few steps the midpoint of the present candidate is judged on the held batches.
The clock decides nothing but when a time limit ends the loop, and random numbers depend on the seed and on the number
of the step alone. So a run that continues from its saved state, and one of several processes, give the same numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.ranks import Ranks
from rebasin_cli.errors import RebasinError
from rebasin_cli.execution.midpoint_loss import MidpointLoss
from rebasin_cli.matching.learning.batches import LearningData, Stream
from rebasin_cli.matching.learning.journal import Journal
from rebasin_cli.matching.learning.judging import Clock, Judge, OutOfTime
from rebasin_cli.matching.learning.moving import Found, Interpolated, Moving
from rebasin_cli.matching.learning.straight_through import same
from rebasin_cli.matching.result import CurvePoint, LearningEnd, LearningStopped

LAMS = 0.4, 0.6
"""Where on the line losses are taken: a little around the midpoint, which is judged."""
EVERY, MOST_STEPS_BETWEEN = 10, 50
"""Steps between one judgement and the next: more where judging would take more time than learning."""
IMPROVES = 1e-3
"""A fall of the held loss below this share of itself does not prolong the learning."""
SLOWER, SLOWED = 0.3, 2
"""When the patience ends, steps become smaller by this factor, so many times, before the learning ends."""
_MOVING, _BEST, _JUDGED, GIVEN = "moving/", "best/", "judged/", "given/"


@dataclass(frozen=True, slots=True)
class Course:
    """How long and in which steps is learned.

    Attributes:
        steps: the most.
        patience: steps without an improvement after which steps become smaller, and in the end the learning ends.
        seed: of lam and of the order of the batches.
        batches: batches of one step, which several processes share.
        project_every: steps between projections.
    """

    steps: int
    patience: int
    seed: int
    batches: int = 1
    project_every: int = 1


@dataclass
class Progress:
    """What a loop has done so far; all of it is saved."""

    step: int = 0
    best_loss: float = inf
    best_step: int = 0
    best_name: str = ""
    target: float = inf
    """The held loss that the next improvement must fall below, and in `target_step` since when."""
    slowed: int = 0
    target_step: int = 0
    curve: list[CurvePoint] = field(default_factory=list)
    round: int = 0
    place: int = 0
    sums: tuple[float, float] = (0.0, 0.0)
    """Of the losses learned on since the last judgement, and of their samples."""
    over: LearningStopped | None = None


class Loop:
    """A learning in progress.

    Args:
        moving: what is learned; it begins at the best candidate offered.
        clock: the deadline.
        judge: of the held batches.
        data: the batches that are learned on.
        journal: where the state is saved.
        ranks: the processes that share batches.
        on_judged: called after every judgement.

    Attributes:
        best: the candidate with the lowest held loss.
    """

    def __init__(
        self,
        moving: Moving,
        loss: MidpointLoss,
        judge: Judge,
        data: LearningData,
        course: Course,
        *,
        clock: Clock,
        journal: Journal,
        ranks: Ranks,
        on_judged: Callable[[Progress], None],
    ) -> None:
        self.moving, self.loss, self.judge, self.data, self.course = moving, loss, judge, data, course
        self.clock, self.journal, self.ranks, self._on_judged = clock, journal, ranks, on_judged
        self.done = Progress()
        self.best: Found = {}
        self._judged: Found = {}
        self._facts: Mapping[str, Any] = {}
        self._given: Mapping[str, Tensor] = {}
        per_step = course.batches * max((batch.size for batch in data.rest[:1]), default=1)
        self.every = min(MOST_STEPS_BETWEEN, max(EVERY, data.held_samples // (2 * per_step)))

    def offer(self, name: str, found: Found) -> float:
        """Judge a candidate, and keep it if it is the best so far and allowed.

        Raises:
            OutOfTime: the deadline came first.
        """
        loss = self.judge(self.moving.midpoint(found))
        if loss < self.done.best_loss and self.moving.allowed(found):
            self.best, self.done.best_loss, self.done.best_name = dict(found), loss, name
            self.done.best_step = self.done.step
        return loss

    def begin(self, facts: Mapping[str, Any], given: Mapping[str, Tensor]) -> None:
        """Start from the best candidate offered.

        Args:
            facts, given: saved with the state: what a run that continues need not find again.
        """
        self._facts, self._given = facts, given
        self.moving.begin(self.best)
        self._judged = self.best
        self.done.target, self.done.target_step = self.done.best_loss * (1 - IMPROVES), 0
        self.done.curve.append(CurvePoint(0, self.done.best_loss, None))
        self._stream = Stream(self.data, self.course.seed)

    def resume(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved state."""
        saved = dict(facts["progress"])
        saved["curve"] = [CurvePoint(**point) for point in saved["curve"]]
        saved["sums"] = tuple(saved["sums"])
        self.done = Progress(**saved)
        self._facts, self._given = facts["given"], under(GIVEN, tensors)
        self.moving.restore(under(_MOVING, tensors))
        self.best, self._judged = under(_BEST, tensors), under(_JUDGED, tensors)
        self._stream = Stream(self.data, self.course.seed, self.done.round, self.done.place)

    @property
    def given(self) -> Found:
        """What was saved with the state when the learning began."""
        return dict(self._given)

    def run(self) -> None:
        """Learn to the end, which `done.over` names: `patience`, `bound` or `time`."""
        while self.done.over is None:
            self._advance()
            if self.journal.due and self.done.over is None:
                self.save()
        if self.done.over != "time":
            self.save()

    def save(self) -> None:
        """Write the state; only between judgements, where it is whole."""
        self.done.round, self.done.place = self._stream.round, self._stream.place
        tensors = {
            **{_MOVING + name: tensor for name, tensor in self.moving.state().items()},
            **{_BEST + name: tensor for name, tensor in self.best.items()},
            **{_JUDGED + name: tensor for name, tensor in self._judged.items()},
            **{GIVEN + name: tensor for name, tensor in self._given.items()},
        }
        self.journal.save({"progress": asdict(self.done), "given": self._facts}, tensors)

    def _advance(self) -> None:
        """The steps up to the next judgement, and the judgement."""
        done, course = self.done, self.course
        stop = min(course.steps, done.step + self.every)
        while done.step < stop:
            if self.clock.late("step"):
                done.over = "time"
                break
            began = time.monotonic()
            self._step()
            self.clock.took("step", time.monotonic() - began)
        try:
            self._judge()
        except OutOfTime:
            done.over = "time"
        if done.over is None and done.step >= course.steps:
            done.over = "bound"
        if done.over is None and done.step - done.target_step >= course.patience:
            self._lose_patience()
        self._on_judged(done)

    def _lose_patience(self) -> None:
        """Nothing has improved for long: take smaller steps, or end."""
        done = self.done
        if done.slowed == SLOWED:
            done.over = "patience"
            return
        self.moving.slow(SLOWER)
        done.slowed, done.target_step = done.slowed + 1, done.step

    def _step(self) -> None:
        course, done = self.course, self.done
        lam = float(np.random.default_rng((course.seed, done.step)).uniform(*LAMS))
        between = self.moving.interpolated(lam)
        batches = [next(self._stream) for _ in range(course.batches)]
        loss, size, gradients = self._gradients(between, lam, batches)
        done.step += 1
        if not isfinite(loss) or not all(bool(torch.isfinite(one).all()) for one in gradients if one is not None):
            return
        done.sums = (done.sums[0] + loss * size, done.sums[1] + size)
        self.moving.step(gradients)
        if done.step % course.project_every == 0:
            self.moving.project()

    def _gradients(
        self, between: Interpolated, lam: float, batches: Sequence[Batch]
    ) -> tuple[float, float, list[Tensor | None]]:
        """The mean loss over the samples of some batches, their number, and the gradients; the same in all processes.

        Sums over several batches are in float64, so that their order does not show in float32.
        """
        alone = len(batches) == 1 and self.ranks.world == 1
        totals = torch.zeros(2, dtype=torch.float64)
        sums: list[Tensor | None] = [None] * len(between.leaves)
        error = None
        for number, batch in enumerate(batches):
            if number % self.ranks.world != self.ranks.rank or error is not None:
                continue
            try:
                loss = self.loss.of(between.network, batch, lam)
            except RebasinError as caught:
                error = caught
                continue
            found = torch.autograd.grad(
                loss, between.leaves, allow_unused=True, retain_graph=number + self.ranks.world < len(batches)
            )
            totals += torch.tensor([float(loss.detach()) * batch.size, batch.size], dtype=torch.float64)
            if alone:
                sums = list(found)
                continue
            for place, gradient in enumerate(found):
                if gradient is not None:
                    weighted, before = gradient.double() * batch.size, sums[place]
                    sums[place] = weighted if before is None else before.add_(weighted)
        self.ranks.agree(error)
        if not alone:
            totals = self.ranks.total(totals)
            sums = self._shared(between.leaves, sums, float(totals[1]))
        return float(totals[0] / totals[1]), float(totals[1]), sums

    def _shared(self, leaves: Sequence[Tensor], sums: list[Tensor | None], size: float) -> list[Tensor | None]:
        """The means over all processes' samples, tensor by tensor; None where no process has a gradient."""
        has = torch.tensor([float(one is not None) for one in sums], dtype=torch.float64)
        anywhere = self.ranks.total(has) > 0
        found: list[Tensor | None] = []
        for leaf, mine, any_ in zip(leaves, sums, anywhere.tolist(), strict=True):
            if not any_:
                found.append(None)
                continue
            own = torch.zeros(leaf.shape, dtype=torch.float64) if mine is None else mine
            found.append((self.ranks.total(own) / size).to(leaf.dtype))
        return found

    def _judge(self) -> None:
        """Judge the present candidate, if it is another one than the last, and note a point of the curve."""
        done = self.done
        if done.step % self.course.project_every:
            self.moving.project()
        found = self.moving.found()
        last = done.curve[-1]
        if last.step == done.step:
            return
        held = last.held_loss if same(found, self._judged) else self.offer(done.best_name, found)
        self._judged = found
        learned = done.sums[0] / done.sums[1] if done.sums[1] else None
        done.curve.append(CurvePoint(done.step, held, learned))
        done.sums = (0.0, 0.0)
        if done.best_loss < done.target:
            done.target, done.target_step = done.best_loss * (1 - IMPROVES), done.step

    def end(self) -> LearningEnd:
        """How it ended."""
        done = self.done
        assert done.over is not None
        return LearningEnd(
            stopped=done.over,
            steps=done.step,
            best_step=done.best_step,
            first_loss=done.curve[0].held_loss,
            best_loss=done.best_loss,
            last_tenth=last_tenth(done.curve),
            held_samples=sum(batch.size for batch in self.judge.held),
            curve=tuple(done.curve),
        )


def last_tenth(curve: Sequence[CurvePoint]) -> float:
    """How far the lowest held loss fell in the last tenth of the steps."""
    if len(curve) < 2:
        return 0.0
    border = 0.9 * curve[-1].step
    before = min(point.held_loss for point in curve if point.step <= border)
    return max(0.0, before - min(point.held_loss for point in curve))


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state whose names begin so, by the rest of their names."""
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
