"""Learning through the projection (Ainsworth et al. 2022, Algorithm 2): the loss of the midpoint decides.

A *shadow* of B, free to take any values, starts at A. Its projection is the permutation of B nearest to it, found by
weight matching of B to the shadow, starting from the last projection. The midpoint of A and the projection has a loss;
its gradient moves the shadow as if there were no projection in between (the straight-through estimator: Bengio,
Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013). Every `EVERY` steps the
present permutations are evaluated on the same held batches as the starts and the identity, and the best of all is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, repeat
from math import inf, isfinite

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.errors import DataError, NumericalError, about
from rebasin_cli.execution.midpoint_loss import CROSS_ENTROPY, MidpointLoss
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.scores import Values
from rebasin_cli.execution.weights import Weights
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.descent import Descent
from rebasin_cli.matching.families import Index
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.outcome import evaluated
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import Criterion, MatchResult, PassReport
from rebasin_cli.model.state import load_state
from rebasin_cli.permutation import Permutations, gathers, identity, permute_tensor
from rebasin_cli.spec import PermutationSpec

CRITERION = "midpoint loss"
HELD, HELD_BATCHES = 2048, 8
"""Samples and batches on which permutations are evaluated, whichever is more; the same ones throughout."""
EVERY = 10
"""Steps between one evaluation and the next."""

MOMENTUM = 0.9
HOLD = 0.3
"""Where between A (0) and B permuted (1) the shadow begins, for permutations that are not the projection of A."""
PASSES = 3
"""Passes of coordinate descent for one projection, which starts from the last one."""
PULL = 0.1
"""How far the shadow is moved back to A after a step whose projection has too little similarity."""
_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Learning:
    """Steps of one batch each (0 only chooses the best start), their length in norms of the tensors, and the deadline.

    Attributes:
        keep: the share of weight matching's objective that the result must have; None for no less than B as it is.
    """

    steps: int
    rate: float
    seed: int
    deadline: float | None
    keep: float | None = None


def learn(
    task: MatchTask,
    start: MatchResult,
    further: Mapping[str, Callable[[], Permutations]],
    learning: Learning,
    method: str,
) -> MatchResult:
    """Improve on weight matching's result.

    Memory holds both networks, the shadow, its momentum, the midpoint and its gradient in float32.

    Args:
        task: the pair and its data. `on_pass` is called after every evaluation, with the lowest loss so far.
        start: of weight matching; also one of the candidates.
        further: makers of further permutations to start from, by name; learning begins at the best of all.
        method: the name that the reports of passes give to the method.

    Raises:
        DataError: there are no data, or the model does not accept them.
        NumericalError: the midpoint's loss is not finite from the start.
    """
    try:
        return _learned(task, start, further, learning, method)
    except DataError as error:
        raise about(error, str(task.matching.data)) from error


def _learned(
    task: MatchTask,
    start: MatchResult,
    further: Mapping[str, Callable[[], Permutations]],
    learning: Learning,
    method: str,
) -> MatchResult:
    began = time.monotonic()
    run = _LearningRun(task, start, further, learning)
    while not run.finished:
        run.advance()
        elapsed = time.monotonic() - began
        left = elapsed * (learning.steps - run.done) / max(1, run.done)
        words = f"{method}, step {run.done}, {CRITERION} {run.best_loss:.5g}"
        groups = len(start.permutations)
        task.on_pass(PassReport(method, run.done, groups, run.moved, run.best_loss, elapsed, left, words))
    return run.result(start.seconds + time.monotonic() - began)


class _LearningRun:
    """Learning in progress: the candidates so far, and the best of them."""

    def __init__(
        self,
        task: MatchTask,
        start: MatchResult,
        further: Mapping[str, Callable[[], Permutations]],
        learning: Learning,
    ) -> None:
        pair = task.pair
        self.found, self.learning, self.spec = start, learning, task.understood.spec
        self.a, self.b = (_widened(weights, pair) for weights in (pair.a, pair.b))
        module = load_state(pair.subject.factory.build_weightless(), self.a)
        loss = None if task.matching.loss is None else load_callable(task.matching.loss)
        self.loss = MidpointLoss(module, (self.a, self.b), task.device, loss)
        self.held = _first(filter(self.loss.fits, task.batches()))
        self.kind = self.loss.kind(self.held[0])
        self.ends = self._score_ends() if self.kind == CROSS_ENTROPY else ()
        self.cut_short = False
        self.stream = filter(self.loss.fits, chain.from_iterable(task.batches() for _ in repeat(None)))
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
            raise NumericalError("the midpoint's loss is not finite, neither with B as it is nor after weight matching")
        for name, make in further.items():
            if self.out_of_time:
                self.cut_short = True
                break
            self._offer(name, make())
        if self.start != "weight matching":
            self.learner.begin(self.best, HOLD)

    def _score_ends(self) -> tuple[Values, ...]:
        found = (self.loss.score(end, self.held) for end in (0, 1))
        return tuple(score for score in found if score is not None)

    @property
    def out_of_time(self) -> bool:
        return self.learning.deadline is not None and time.monotonic() >= self.learning.deadline

    @property
    def finished(self) -> bool:
        return self.out_of_time or self.done >= self.learning.steps

    def advance(self) -> None:
        """`EVERY` steps, and an evaluation where a unit has moved."""
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
        """Evaluate these permutations; keep them if they are the best so far and have enough similarity to A."""
        loss = self._evaluate(permutations)
        if loss < self.best_loss and self.learner.objective(permutations) >= self.floor:
            self.best, self.best_loss, self.start = permutations, loss, start
        return loss

    @torch.no_grad()
    def _evaluate(self, permutations: Permutations) -> float:
        """The loss of the midpoint over the held batches; infinite where it is not finite."""
        network = merged(self.spec, self.a, self.b, permutations)
        losses = [(batch.size, float(self.loss.of(network, batch))) for batch in self.held]
        mean = sum(size * loss for size, loss in losses) / sum(size for size, _ in losses)
        return mean if isfinite(mean) else inf

    def result(self, seconds: float) -> MatchResult:
        late = self.done < self.learning.steps or self.cut_short
        return replace(
            evaluated(self.learner.problem, self.found, self.best),
            criterion=Criterion(CRITERION, self.identity, self.best_loss, self.weight_matching),
            per_pass=tuple(self.losses),
            passes=self.done,
            converged=not late,
            start=self.start,
            timed_out=late,
            seconds=seconds,
            learned_on=self.kind,
            ends=self.ends,
        )


def _first(batches: Iterator[Batch]) -> list[Batch]:
    """The batches that permutations are evaluated on."""
    held: list[Batch] = []
    for batch in batches:
        held.append(batch)
        if len(held) >= HELD_BATCHES and sum(one.size for one in held) >= HELD:
            break
    if not held:
        raise DataError("there is no data to learn on", hint="BatchNorm layers need batches of at least two samples")
    return held


def _widened(weights: Weights, pair: Pair) -> dict[str, Tensor]:
    """A network's tensors in float32, tied ones once; in memory, because every step needs them all."""
    kept = (key for key in weights if key not in pair.subject.ties)
    return {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in _read(weights, kept)}


def _read(weights: Weights, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    for key in keys:
        yield key, weights[key]


class StraightThrough:
    """A shadow of B and its projection.

    Args:
        spec: the groups.
        a, b: tensors by key; float32 copies of A's parameters are the shadow and its momentum, B is read when needed.
        parameters: the keys that are learned; all other floating tensors are only averaged.
        start: the permutations to start from.
        hold: where between A and B permuted by `start` the shadow begins; 0 for what weight matching found, which is
            A's projection, else `HOLD`.
        rate: how far the shadow moves in a step, in units of each tensor's norm.
        seed: of the visiting orders.
        floor: the least objective of a projection, if that of `start` has it. A step that leads below is undone and the
            shadow moved towards A: the nearer it is to A, the larger is the objective of its projection.

    Attributes:
        problem: weight matching's, of B and A.
        permutations: the projection of the shadow.
    """

    def __init__(
        self,
        spec: PermutationSpec,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        *,
        parameters: Collection[str],
        start: Permutations,
        rate: float,
        hold: float = 0.0,
        seed: int = 0,
        floor: float | None = None,
    ) -> None:
        self.spec, self.a, self.b, self.rate, self.floor = spec, a, b, rate, floor
        self.problem = prepare(spec, a, b, parameters)
        self._generator = np.random.default_rng(seed)
        self.begin(start, hold)

    def begin(self, start: Permutations, hold: float) -> None:
        """Restart from these permutations, without momentum."""
        self.permutations = dict(start)
        self._arrangement = Arrangement(self.problem.families, start)
        self._shadow = {
            key: torch.lerp(self.a[key].detach().float(), permuted(self.spec, self.b, start, key).float(), hold)
            for key in self.problem.keys
        }
        self._momentum = {key: torch.zeros_like(tensor) for key, tensor in self._shadow.items()}

    def midpoint(self) -> dict[str, Tensor]:
        """`(A + B permuted) / 2` by key, float32; parameters are leaves that require a gradient."""
        return merged(self.spec, self.a, self.b, self.permutations, learned=self._shadow)

    def step(self, gradients: Mapping[str, Tensor]) -> int:
        """Move the shadow against the gradients at the midpoint and project it again; how many units moved."""
        for key, gradient in gradients.items():
            momentum = self._momentum[key].mul_(MOMENTUM).add_(gradient)
            length = float(torch.linalg.vector_norm(momentum))
            if length > 0.0:
                self._shadow[key].add_(momentum, alpha=-self.rate * self.problem.norms.a[key] ** 0.5 / length)
        before = [perm.copy() for perm in self._arrangement.perms]
        self._project()
        if self.floor is not None and self.problem.value(self._arrangement) < self.floor:
            self._undo(before)
        moved = sum(int((now != then).sum()) for now, then in zip(self._arrangement.perms, before, strict=True))
        if moved:
            self.permutations = self._arrangement.permutations()
        return moved

    def _undo(self, perms: Sequence[Index]) -> None:
        self._arrangement.set(dict(enumerate(perms)))
        for key, shadow in self._shadow.items():
            shadow.lerp_(self.a[key].detach().float(), PULL)

    def objective(self, permutations: Permutations) -> float:
        """The inner product of A's parameters with B's, permuted."""
        return self.problem.value(Arrangement(self.problem.families, permutations))

    @property
    def objective_before(self) -> float:
        return self.problem.identity

    def _project(self) -> None:
        """Coordinate descent of B towards the shadow, from the present permutations."""
        descent = Descent(replace(self.problem, a=self._shadow), self._arrangement, _TOLERANCE)
        for _ in range(PASSES):
            waiting = descent.unsettled()
            if not waiting:
                return
            moves = [descent.step(waiting[place]) for place in self._generator.permutation(len(waiting))]
            if not any(moves):
                return


def merged(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    permutations: Permutations,
    *,
    learned: Collection[str] = (),
) -> dict[str, Tensor]:
    """The mean of A and B permuted, float32 where it is floating, else A's; `learned` keys require a gradient."""
    found = {}
    for key in a:
        mine = a[key].detach()
        if not mine.is_floating_point():
            found[key] = mine
            continue
        theirs = permuted(spec, b, permutations, key)
        found[key] = torch.lerp(mine.float(), theirs.float(), 0.5).requires_grad_(key in learned)
    return found


def permuted(spec: PermutationSpec, b: Mapping[str, Tensor], permutations: Permutations, key: str) -> Tensor:
    """One tensor of B permuted."""
    return permute_tensor(b[key].detach(), gathers(spec, permutations, key, b[key].shape))
