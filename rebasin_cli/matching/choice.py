"""A method chosen by measurement: several are tried, and the midpoint of each is judged on samples held back from all.

They are tried in the order of what they cost. The one whose midpoint has the lowest loss is kept, if B is not less
similar to A by it than as it was; see `midpoint_judge` for the loss.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from rebasin_cli.data.batch_sources import load_callable
from rebasin_cli.data.held_back import Kept, Rest, held_back
from rebasin_cli.errors import DataError, RebasinError, about
from rebasin_cli.execution.midpoint_judge import MidpointJudge
from rebasin_cli.execution.scores import Values
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.result import Criterion, MatchResult, PassReport, Tried

CRITERION = "midpoint loss"
HELD = 2048
"""Samples that judge, at most: a quarter of fewer than four times as many."""
MEASURED = 1024
"""Other samples that running statistics are measured on, about."""
FEWEST = 8
"""With fewer samples held back, all samples judge."""
IDENTITY, WEIGHT = "identity", "weight"


Results = Mapping[str, MatchResult]
"""What has been found so far, by the name of the method."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A method to try.

    Attributes:
        find: its result, given the task with the samples that it may use, and the results so far.
        needed: a failure is an error; else the method is left out, and the result says why.
    """

    name: str
    find: Callable[[MatchTask, Results], MatchResult]
    needed: bool = False


def choose(task: MatchTask, attempts: Sequence[Attempt], deadline: float | None) -> MatchResult:
    """The result of the best of several methods, with what the others gave in `tried`.

    Args:
        task: with data.
        attempts: in the order in which they are tried. One of them is needed.
        deadline: of `time.monotonic`; after it no method is begun, unless it is needed.

    Raises:
        DataError: the data do not fit the model, or there are none.
        RebasinError: a method that is needed fails.
    """
    began = time.monotonic()
    try:
        choice = _Choice(task)
        late = False
        for attempt in attempts:
            if not attempt.needed and deadline is not None and time.monotonic() >= deadline:
                late = True
                break
            choice.add(attempt)
        return replace(choice.result(late), seconds=time.monotonic() - began)
    except DataError as error:
        raise about(error, str(task.matching.data)) from error


class _Choice:
    """What has been tried so far, and what it is worth."""

    def __init__(self, task: MatchTask) -> None:
        self._began = time.monotonic()
        room = task.room
        source = room.open(shuffle=True)
        held, rest = held_back(source, HELD)
        self._notes: list[str] = []
        self._task = replace(task, data=replace(room, part=lambda data: Rest(data, rest.cuts)), shuffle=True)
        measured = Kept.first(rest, MEASURED)
        if held.samples < FEWEST:
            self._notes.append("the data are too few to hold some back: methods are judged on what they have seen")
            self._task = replace(task, data=room, shuffle=True)
            held = measured = Kept.first(source, HELD)
        if not held.samples:
            raise DataError("there is no data to judge by")
        loss = None if task.matching.loss is None else load_callable(task.matching.loss)
        self._judge = MidpointJudge(task.pair, task.understood.spec, held, measured, task.device, loss)
        self._found: dict[str, MatchResult] = {}
        self._scores: dict[str, Values] = {}

    def add(self, attempt: Attempt) -> None:
        """Try a method, and judge its midpoint."""
        try:
            found = attempt.find(self._task, self._found)
        except RebasinError as error:
            if attempt.needed or isinstance(error, DataError):
                raise
            self._notes.append(f"method {attempt.name} was left out: {error.message}")
            return
        self._found[attempt.name] = found
        self._scores[attempt.name] = self._judge.midpoint(found.permutations)
        self._notes += [note for note in found.notes if note not in self._notes]
        self._report(attempt.name)

    def _report(self, name: str) -> None:
        loss = self._loss(name)
        words = f"{name}: {CRITERION} {loss:.5g}"
        elapsed = time.monotonic() - self._began
        groups = len(self._found[name].permutations)
        self._task.on_pass(PassReport(name, len(self._found), groups, groups, loss, elapsed, None, words))

    def _loss(self, name: str) -> float:
        """Infinite where it is not finite."""
        loss = self._scores[name].loss if name in self._scores else None
        return inf if loss is None else loss

    @property
    def _best(self) -> str:
        """The method with the lowest loss among those that do not make B less similar to A."""
        fit = [name for name, found in self._found.items() if found.objective_after >= found.objective_before]
        return min(fit, key=self._loss)

    def result(self, late: bool) -> MatchResult:
        """The best result so far; `late`: methods were left out because time ran out."""
        best = self._best
        found = self._found[best]
        tried = (Tried(name, one.loss, one.accuracy, name == best) for name, one in self._scores.items())
        losses = [self._loss(name) for name in (IDENTITY, best, WEIGHT)]
        return replace(
            found,
            criterion=Criterion(CRITERION, *losses),
            start=best,
            timed_out=late or found.timed_out,
            converged=found.converged and not late,
            learned_on=self._judge.by,
            ends=self._judge.ends(),
            tried=tuple(tried),
            notes=tuple(self._notes),
        )
