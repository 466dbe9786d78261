"""`--method straight-through`: from what matching finds on, learn permutations whose midpoint has the lowest loss.

Every so many steps the present permutations are judged on the same batches as weight matching's and B as it is; the
best of all is kept, so the result is never worse by this measure than what it started from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, repeat
from math import inf, isfinite

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.errors import DataError, NumericalError
from rebasin_cli.execution.midpoint_loss import MidpointLoss
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.execution.weights import Weights
from rebasin_cli.matching.outcome import judged
from rebasin_cli.matching.result import Criterion, MatchResult, OnPass, PassReport
from rebasin_cli.matching.straight_through import HOLD, StraightThrough, merged
from rebasin_cli.model.state import load_state
from rebasin_cli.permutation import Permutations, identity

NAME = "straight-through"
CRITERION = "midpoint loss"
HELD, HELD_BATCHES = 2048, 8
"""Samples and batches on which permutations are judged, whichever is more; the same ones throughout."""
STEPS, RATE = 100, 0.03
EVERY = 10
"""Steps between one judgement and the next."""


@dataclass(frozen=True, slots=True)
class Learning:
    """Steps of one batch each; how far the shadow goes in each, in norms of its tensors; until when.

    Attributes:
        keep: the share of weight matching's objective that the result must have; None for no less than B as it is.
    """

    steps: int
    rate: float
    seed: int
    deadline: float | None
    keep: float | None = None


def learn(
    pair: Pair,
    understood: Understanding,
    start: MatchResult,
    further: Mapping[str, Callable[[], Permutations]],
    batches: Callable[[], Iterator[Batch]],
    learning: Learning,
    *,
    device: torch.device,
    on_pass: OnPass,
) -> MatchResult:
    """Go on from weight matching's result.

    Memory holds both networks, the shadow, its momentum, the midpoint and its gradient in float32.

    Args:
        start: of weight matching; also one of the candidates.
        further: makers of further permutations to start from, by name; learning begins at the best of all.
        batches: a fresh pass over the data, in the same order each time.
        on_pass: is told of every judgement; the objective is the lowest loss so far.

    Raises:
        DataError: there are no data, or the model does not accept them.
        NumericalError: the midpoint's loss is not finite from the start.
    """
    began = time.monotonic()
    run = _Run(pair, understood, start, further, batches, learning, device)
    while not run.finished:
        run.advance()
        elapsed = time.monotonic() - began
        left = elapsed * (learning.steps - run.done) / max(1, run.done)
        on_pass(PassReport(NAME, run.done, len(start.permutations), run.moved, run.best_loss, elapsed, left))
    return run.result(start.seconds + time.monotonic() - began)


class _Run:
    """Learning under way."""

    def __init__(
        self,
        pair: Pair,
        understood: Understanding,
        start: MatchResult,
        further: Mapping[str, Callable[[], Permutations]],
        batches: Callable[[], Iterator[Batch]],
        learning: Learning,
        device: torch.device,
    ) -> None:
        self.found, self.learning, self.spec = start, learning, understood.spec
        self.a, self.b = (_widened(weights, pair) for weights in (pair.a, pair.b))
        module = load_state(pair.subject.factory.build_weightless(), self.a)
        self.loss = MidpointLoss(module, (self.a, self.b), device)
        self.held = _first(filter(self.loss.fits, batches()))
        self.stream = filter(self.loss.fits, chain.from_iterable(batches() for _ in repeat(None)))
        self.learner = StraightThrough(
            self.spec,
            self.a,
            self.b,
            parameters=pair.subject.parameters,
            start=start.permutations,
            rate=learning.rate,
            seed=learning.seed,
        )
        self.floor = self.learner.objective_before
        if learning.keep is not None:
            matched = self.learner.objective(start.permutations)
            self.floor = max(self.floor, matched - (1 - learning.keep) * abs(matched))
            self.learner.floor = self.floor
        self.done = self.moved = 0
        self.losses: list[float] = []
        self.best, self.best_loss, self.start = dict(start.permutations), inf, "weight matching"
        self.identity = self._offer("identity", identity(self.spec))
        self.weight_matching = self._offer("weight matching", start.permutations)
        if not isfinite(self.best_loss):
            raise NumericalError("neither the midpoint as it is nor that of weight matching has a finite loss")
        for name, make in further.items():
            if not self.finished:
                self._offer(name, make())
        if self.start != "weight matching":
            self.learner.begin(self.best, HOLD)

    @property
    def finished(self) -> bool:
        late = self.learning.deadline is not None and time.monotonic() >= self.learning.deadline
        return late or self.done >= self.learning.steps

    def advance(self) -> None:
        """Some steps, and a judgement where a unit has moved."""
        self.moved = 0
        for _ in range(EVERY):
            if self.finished:
                break
            self.moved += self._step(next(self.stream))
        if self.moved:
            self._offer(self.start, self.learner.permutations)
        self.losses.append(self.best_loss)

    def _step(self, batch: Batch) -> int:
        midpoint = self.learner.midpoint()
        wanted = {key: tensor for key, tensor in midpoint.items() if tensor.requires_grad}
        loss = self.loss.of(midpoint, batch)
        gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
        self.done += 1
        if not bool(torch.isfinite(loss)):
            return 0
        pairs = zip(wanted, gradients, strict=True)
        return self.learner.step({key: gradient for key, gradient in pairs if gradient is not None})

    def _offer(self, start: str, permutations: Permutations) -> float:
        """Judge these, and keep them if they are the best so far and bring B near enough to A."""
        loss = self._judge(permutations)
        if loss < self.best_loss and self.learner.objective(permutations) >= self.floor:
            self.best, self.best_loss, self.start = permutations, loss, start
        return loss

    @torch.no_grad()
    def _judge(self, permutations: Permutations) -> float:
        """The loss of the midpoint over the held batches; infinite where it is not finite."""
        network = merged(self.spec, self.a, self.b, permutations)
        losses = [(batch.size, float(self.loss.of(network, batch))) for batch in self.held]
        mean = sum(size * loss for size, loss in losses) / sum(size for size, _ in losses)
        return mean if isfinite(mean) else inf

    def result(self, seconds: float) -> MatchResult:
        late = self.done < self.learning.steps
        return replace(
            judged(self.learner.problem, self.found, self.best),
            criterion=Criterion(CRITERION, self.identity, self.best_loss, self.weight_matching),
            per_pass=tuple(self.losses),
            passes=self.done,
            converged=not late,
            method=NAME,
            start=self.start,
            timed_out=late,
            seconds=seconds,
        )


def _first(batches: Iterator[Batch]) -> list[Batch]:
    """The batches that are held to judge by."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        if len(held) >= HELD_BATCHES and sum(one.size for one in held) >= HELD:
            break
    if not held:
        raise DataError("there is no data to learn on", hint="one sample at a time does not do for BatchNorm layers")
    return held


def _widened(weights: Weights, pair: Pair) -> dict[str, Tensor]:
    """A network's tensors in float32, tied ones once; in memory, because every step needs them all."""
    kept = (key for key in weights if key not in pair.subject.ties)
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in _read(weights, kept)}


def _read(weights: Weights, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    for key in keys:
        yield key, weights[key]
