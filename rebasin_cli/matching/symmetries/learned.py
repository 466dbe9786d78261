"""Maps of all classes learned by the loss of the midpoint, for `--method learned --symmetries all`.

The starts are B as it is, the maps that the weights lead to, and every descent that was begun for them; learning begins
at the one whose midpoint has the lowest loss on data that are held back.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rebasin_cli.data.ranks import ALONE
from rebasin_cli.errors import DataError, about
from rebasin_cli.execution.scores import Values
from rebasin_cli.matching.learning.learn import (
    CRITERION,
    IDENTITY,
    SEARCH_SHARE,
    WEIGHTS,
    Learning,
    LearningRun,
    Starts,
    lowest,
)
from rebasin_cli.matching.learning.loop import Loop
from rebasin_cli.matching.learning.moving import Found
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.result import Criterion, MatchResult
from rebasin_cli.matching.symmetries.match import Symmetric, closeness, prepared, result_of, searched_maps
from rebasin_cli.matching.symmetries.moving_maps import MovingMaps, as_found, as_maps

PASSES = 3
"""Passes of the descents that learning begins from."""
PROJECT_EVERY = 2


def learn_maps(task: MatchTask, learning: Learning, method: str) -> MatchResult:
    """Match by the loss of the midpoint, with maps of all classes.

    Raises:
        DataError: there are no data, or the model does not accept them.
        NumericalError: the midpoint's loss is not finite from the start.
        OutputError: beside the output lies the state of another run.
    """
    course = replace(learning.course, project_every=PROJECT_EVERY)
    try:
        return _LearningMaps(task, replace(learning, course=course), method).result()
    except DataError as error:
        raise about(error, str(task.matching.data)) from error


class _LearningMaps(LearningRun):
    """A learning of maps."""

    def __init__(self, task: MatchTask, learning: Learning, method: str) -> None:
        super().__init__(task, learning, method)
        self.ready: Symmetric = prepared(task)
        self.weights: Found = {}

    def _find_starts(self) -> Starts:
        task = replace(self.task, ranks=ALONE, own_batches=self._own_batches)
        limit = task.matching.time_limit
        share = None if limit is None else max(0.0, self.began + SEARCH_SHARE * limit - time.monotonic())
        passes = min(PASSES, task.matching.max_passes or PASSES)
        matching = replace(task.matching, time_limit=share, max_passes=passes)
        ended, matched = searched_maps(replace(task, matching=matching), self.ready)
        self.weights = as_found(ended.maps)
        found: dict[str, Found] = {IDENTITY: {}, WEIGHTS: self.weights}
        found.update({name: as_found(maps) for name, maps in ended.ends.items() if name != ended.start})
        return Starts(replace(matched, maps=None, frame=None, searched=None), found, ended.timed_out)

    def _moving(self, matched: MatchResult) -> MovingMaps:
        before = closeness(self.task, self.task.pair.b).distance
        self.mapping = MovingMaps(self.ready.forms, self.a, self.b, rate=self.learning.rate, farthest=before)
        return self.mapping

    def _given(self, starts: Starts) -> Found:
        return starts.found.get(WEIGHTS, {})

    def _by_weights(self, loop: Loop, starts: Starts) -> Found:
        return loop.given or self.weights

    def _similarity(self, found: Found) -> float:
        return self.ready.forms.value(as_maps(found))

    def _conclude(self, loop: Loop, starts: Starts, facts: Mapping[str, Any]) -> MatchResult:
        done, losses = loop.done, facts["losses"]
        late = done.over == "time" or facts["cut_short"]
        learned = self.learning.course.steps > 0
        best, loss, name = loop.best, done.best_loss, done.best_name
        if self.given_up is not None:
            best, loss, name = self._by_weights(loop, starts), losses.get(WEIGHTS, done.best_loss), WEIGHTS
        return replace(
            result_of(self.task, self.ready, as_maps(best), starts.matched),
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
