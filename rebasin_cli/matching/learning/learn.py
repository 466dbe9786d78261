"""Learning for one pair: divide the data, find starts, run the loop, and say how it went.

The starts are the identity, weight matching, and activation matchings on the part of the data that is learned on. Under
`torchrun` the first process finds them, and all share the batches of the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import chain
from math import isfinite
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.data.ranks import ALONE
from rebasin_cli.errors import DataError, NumericalError, RebasinError, UsageError, about
from rebasin_cli.execution.midpoint_loss import CROSS_ENTROPY, MidpointLoss
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.scores import Values
from rebasin_cli.execution.weights import Weights
from rebasin_cli.matching.activation_matching import further_matchings
from rebasin_cli.matching.learning.batches import divided
from rebasin_cli.matching.learning.confirming import WORD, doubt, other_inputs, pieces
from rebasin_cli.matching.learning.judging import Clock, Judge, OutOfTime
from rebasin_cli.matching.learning.loop import GIVEN, Course, Loop, Progress, under
from rebasin_cli.matching.learning.moving import Found, Moving
from rebasin_cli.matching.learning.straight_through import StraightThrough, same
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.outcome import evaluated
from rebasin_cli.matching.result import Candidate, Criterion, MatchResult, PassReport
from rebasin_cli.matching.search import match_weights
from rebasin_cli.model.state import load_state
from rebasin_cli.permutation import identity

CRITERION = "midpoint loss"
IDENTITY, WEIGHTS = "identity", "weight matching"
SEARCH_SHARE, STARTS_SHARE = 0.4, 0.6
"""Shares of a time limit after which the search by weights, and the search for all starts, must end."""


@dataclass(frozen=True, slots=True)
class Learning:
    """What a method that learns was asked for.

    Attributes:
        course: how long and in which steps; no steps only choose the best start.
        rate: length of a step in norms of the tensors.
        keep: the share of weight matching's objective that the result must have; None for no less than B as it is.
        labels: class numbers are learned from where the data have them.
        checkpointing: recompute activations in the backward pass.
        amp: run networks in bfloat16 where PyTorch considers it safe.
    """

    course: Course
    rate: float
    keep: float | None = None
    labels: bool = True
    checkpointing: bool = False
    amp: bool = False


@dataclass(frozen=True, slots=True)
class Starts:
    """Candidates by name, and the search by weights that one of them is from; the same in all processes."""

    matched: MatchResult
    found: Mapping[str, Found]
    cut_short: bool


def learn(task: MatchTask, learning: Learning, method: str, given: Starts | None = None) -> MatchResult:
    """Match by the loss of the midpoint.

    Memory holds both networks, the shadow, its momentum, one network between and its gradients, in float32.

    Args:
        task: the pair and its data. `on_pass` is called after every judgement, with the lowest loss so far.
        method: the name that the reports of passes give to the method.
        given: candidates that are known already, instead of a search for them.

    Raises:
        DataError: there are no data, or the model does not accept them.
        NumericalError: the midpoint's loss is not finite from the start.
        OutputError: beside the output lies the state of another run.
    """
    try:
        return LearningRun(task, learning, method, given).result()
    except DataError as error:
        raise about(error, str(task.matching.data)) from error


class LearningRun:
    """A learning of permutations: it finds starts, runs the loop, and makes a result of its end."""

    def __init__(self, task: MatchTask, learning: Learning, method: str, given: Starts | None = None) -> None:
        if task.matching.loss is not None and not learning.labels:
            raise UsageError("--unlabelled has no effect with --loss, which says itself what it compares")
        self.task, self.learning, self.method, self.given = task, learning, method, given
        self.began = time.monotonic()
        self.ranks = task.ranks
        limit = task.matching.time_limit
        self.clock = Clock(None if limit is None else self.began + limit, self.ranks)
        pair = task.pair
        self.a, self.b = (_widened(weights, pair) for weights in (pair.a, pair.b))
        module = load_state(pair.subject.factory.build_weightless(), self.a)
        loss = None if task.matching.loss is None else load_callable(task.matching.loss)
        self.loss = MidpointLoss(
            module,
            (self.a, self.b),
            task.device,
            loss,
            labels=learning.labels,
            checkpointing=learning.checkpointing,
            amp=learning.amp,
        )
        if learning.checkpointing and not self.loss.checkpointed:
            raise UsageError("--gradient-checkpointing has no effect: no part of this model has modules inside")
        source = task.room.open(shuffle=True)
        self.data = divided(source, self.loss.fits, hold=learning.course.steps > 0)
        self.generated: str | None = getattr(getattr(source, "generated", None), "kind", None)
        self.kind = self.loss.kind(self.data.held[0])
        self.journal = task.journal({"data": source.fingerprint, "learning": asdict(learning)})

    def result(self) -> MatchResult:
        """Learn, and the result."""
        saved = self.ranks.shared(self._attempted(self.journal.load))
        starts = self._starts() if saved is None else _starts_from(saved[0]["given"], saved[1])
        judge = Judge(self.loss, self.data.held, self.clock, self.ranks)
        loop = Loop(
            self._moving(starts.matched),
            self.loss,
            judge,
            self.data,
            self.learning.course,
            clock=self.clock,
            journal=self.journal,
            ranks=self.ranks,
            on_judged=self._show,
        )
        if saved is None:
            facts = self._begin(loop, starts)
        else:
            loop.resume(*saved)
            facts = saved[0]["given"]
        loop.run()
        self.given_up = self._doubt(loop, starts) if self.data.rest else None
        return self._conclude(loop, starts, facts)

    def _attempted(self, work: Callable[[], Any]) -> Any:
        """What only the first process does; an error of it is raised in all of them."""
        found, error = None, None
        if self.ranks.first:
            try:
                found = work()
            except RebasinError as caught:
                error = caught
        self.ranks.agree(error)
        return found

    def _starts(self) -> Starts:
        if self.given is not None:
            return self.given
        found: Starts = self.ranks.shared(self._attempted(self._find_starts))
        return found

    def _find_starts(self) -> Starts:
        """Search by weights and by activations, on the data that are learned on."""
        task = replace(self.task, ranks=ALONE, own_batches=self._own_batches)
        limit = task.matching.time_limit
        share = None if limit is None else max(0.0, self.began + SEARCH_SHARE * limit - time.monotonic())
        matched = match_weights(replace(task, matching=replace(task.matching, time_limit=share)))
        found: dict[str, Found] = {IDENTITY: identity(task.understood.spec), WEIGHTS: matched.permutations}
        deadline = None if limit is None else self.began + STARTS_SHARE * limit
        cut_short = False
        for name, make in further_matchings(task, deadline).items():
            if deadline is not None and time.monotonic() >= deadline:
                cut_short = True
                break
            found[name] = make()
        return Starts(matched, found, cut_short)

    def _own_batches(self) -> Iterator[Batch]:
        """The data for matchings by activations; at least one batch, and none begun after the time for starts."""
        limit = self.task.matching.time_limit
        for number, batch in enumerate(self.data.one_round() if self.data.rest else chain(self.data.held)):
            if number and limit is not None and time.monotonic() >= self.began + SEARCH_SHARE * limit:
                return
            yield batch

    def _moving(self, matched: MatchResult) -> Moving:
        task, learning = self.task, self.learning
        moving = StraightThrough(
            task.understood.spec,
            self.a,
            self.b,
            parameters=task.pair.subject.parameters,
            start=matched.permutations,
            rate=learning.rate,
            seed=task.matching.seed,
        )
        if learning.keep is not None:
            most = moving.objective(matched.permutations)
            moving.floor = max(moving.problem.identity, most - (1 - learning.keep) * abs(most))
        self.moving = moving
        return moving

    def _begin(self, loop: Loop, starts: Starts) -> dict[str, Any]:
        """Judge the starts, and begin at the best; what a run that continues needs to know of it.

        Raises:
            NumericalError: no start has a finite loss.
        """
        losses: dict[str, float] = {}
        cut_short = starts.cut_short
        try:
            for name, found in starts.found.items():
                losses[name] = loop.offer(name, found)
        except OutOfTime:
            cut_short = True
        if not isfinite(loop.done.best_loss):
            raise NumericalError("the midpoint's loss is not finite, neither with B as it is nor after weight matching")
        ends = loop.judge.ends() if self.kind == CROSS_ENTROPY and self.task.matching.loss is None else ()
        facts = {
            "losses": losses,
            "cut_short": cut_short,
            "ends": [asdict(end) for end in ends],
            "matched": _plain(starts.matched),
            "seconds": time.monotonic() - self.began,
        }
        loop.begin(facts, self._given(starts))
        return facts

    def _given(self, starts: Starts) -> Found:
        """What is saved with the state, for a run that continues."""
        return starts.matched.permutations

    def _doubt(self, loop: Loop, starts: Starts) -> str | None:
        """Why what was learned without data is given up, if it is."""
        weights = self._by_weights(loop, starts)
        if self.generated is None or same(loop.best, weights):
            return None
        unlimited = Clock(None, self.ranks)
        inputs = {f"{WORD}:{self.generated}": loop.judge.held}
        other = other_inputs(self.task.room, self.generated, self.loss.fits)
        if other is not None:
            inputs[other[0]] = other[1]
        judges = {
            name: Judge(self.loss, pieces(held, self.loss.fits), unlimited, self.ranks) for name, held in inputs.items()
        }
        midpoints = loop.moving.midpoint(loop.best), loop.moving.midpoint(weights)
        return doubt(*midpoints, judges, (self._similarity(loop.best), self._similarity(weights)))

    def _by_weights(self, loop: Loop, starts: Starts) -> Found:
        """What the search by weights found."""
        return starts.matched.permutations

    def _similarity(self, found: Found) -> float:
        """The objective of the weights."""
        return self.moving.objective(dict(found))

    def _show(self, done: Progress) -> None:
        elapsed = time.monotonic() - self.began
        left = elapsed * (self.learning.course.steps - done.step) / max(1, done.step)
        words = f"{self.method}, step {done.step}, {CRITERION} {done.best_loss:.5g}"
        groups = len(self.task.understood.spec.groups)
        self.task.on_pass(PassReport(self.method, done.step, groups, 0, done.best_loss, elapsed, left, words))

    def _conclude(self, loop: Loop, starts: Starts, facts: Mapping[str, Any]) -> MatchResult:
        done, losses = loop.done, facts["losses"]
        late = done.over == "time" or facts["cut_short"]
        learned = self.learning.course.steps > 0
        best, loss, name = dict(loop.best), done.best_loss, done.best_name
        if self.given_up is not None:
            best, loss, name = starts.matched.permutations, losses.get(WEIGHTS, done.best_loss), WEIGHTS
        return replace(
            evaluated(self.moving.problem, starts.matched, best),
            criterion=Criterion(CRITERION, losses[IDENTITY], loss, losses.get(WEIGHTS)),
            per_pass=tuple(lowest(loop)),
            passes=done.step,
            converged=not late and (done.over == "patience" or not learned),
            start=name,
            timed_out=late,
            seconds=time.monotonic() - self.began,
            learned_on=self.kind,
            ends=tuple(Values(**end) for end in facts["ends"]),
            learning=replace(loop.end(), given_up=self.given_up) if learned else None,
        )


def lowest(loop: Loop) -> Iterator[float]:
    """The lowest held loss after each judgement."""
    best = loop.done.curve[0].held_loss
    for point in loop.done.curve[1:]:
        best = min(best, point.held_loss)
        yield best


def _plain(matched: MatchResult) -> dict[str, Any]:
    """A search's result without its permutations, as JSON."""
    return {name: value for name, value in asdict(replace(matched, permutations={})).items() if name != "permutations"}


def _starts_from(given: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Starts:
    """The search of a run that is continued."""
    facts = dict(given["matched"])
    facts["criterion"] = Criterion(**facts["criterion"])
    facts["candidates"] = tuple(Candidate(**one) for one in facts["candidates"])
    facts["per_pass"], facts["ends"] = tuple(facts["per_pass"]), ()
    return Starts(MatchResult(permutations=under(GIVEN, tensors), **facts), {}, bool(given["cut_short"]))


def _widened(weights: Weights, pair: Pair) -> dict[str, Tensor]:
    """A network's tensors in float32, tied ones once; in memory, because every step needs them all."""
    kept = (key for key in weights if key not in pair.subject.ties)
    found = {key: weights[key] for key in kept}
    return {key: tensor.to(torch.float32) if tensor.is_floating_point() else tensor for key, tensor in found.items()}
