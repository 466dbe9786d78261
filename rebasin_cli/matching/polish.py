"""Polishing: coordinate descent from a start to convergence, pass by pass, within the time limit.

A pass visits every cluster whose similarity has changed since its last visit. Where none is left, every cluster is at
the optimum of its assignment given the others: no single group can gain more than the tolerance, which is what
*converged* states. Every move gains more than a fixed positive amount and the objective is bounded, so this takes
finitely many passes. Clusters that act on no common tensor are solved at the same time; since none of them depends on
the others' moves, the result is that of one after the other.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log
from typing import Literal

import numpy as np
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.assignment import at_a_time
from rebasin_cli.matching.descent import Descent, Step
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.result import OnPass, PassReport

Order = Literal["random", "path", "fixed"]

_SHRINKING = 0.5
"""Estimate of the ratio of a pass's gain to that of the pass before, while there is only one."""
_SLOWEST, _FASTEST = 0.9, 0.02
"""Bounds of that ratio."""
_ROUNDING = 1e-5
"""Largest difference between the objective summed from gains and the true one, in units of `|A| |B|`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How descents run.

    Attributes:
        order: `random` (a new seeded order for every pass), `path` (along the path of the data, and back in every
            second pass), `fixed` (along the path of the data).
        deadline: on the clock of `time.monotonic`.
        began: on the same clock, for reports.
    """

    order: Order = "random"
    max_passes: int | None = None
    tolerance: float = 1e-6
    deadline: float | None = None
    began: float = 0.0
    on_pass: OnPass | None = None

    @property
    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True, slots=True)
class Polished:
    """Where a descent ended, or was interrupted.

    Attributes:
        value: the true objective, computed from the permutations.
        from_identity: the descent began at the identity.
    """

    start: str
    seed: int
    arrangement: Arrangement
    value: float
    per_pass: tuple[float, ...]
    passes_that_moved: int
    converged: bool
    seconds: float
    work: int
    from_identity: bool = False


class DescentRun:
    """A descent from a start, which can be interrupted after some passes and resumed.

    Args:
        start: the name that results show.
        initial: where to begin; None for the identity.
        place: moves the descent from there to the start, given the seed.
        earlier: the end of this descent's earlier part, where it is resumed.
        spent, began: work done to make `initial`, and when that began.
    """

    def __init__(
        self,
        problem: Problem,
        start: str,
        seed: int,
        settings: Settings,
        initial: Mapping[str, Tensor] | None = None,
        *,
        place: Callable[[Descent, int], None] | None = None,
        earlier: Polished | None = None,
        spent: int = 0,
        began: float | None = None,
    ) -> None:
        self.problem, self.start, self.seed, self.settings = problem, start, seed, settings
        self.began = (began or time.monotonic()) - (0.0 if earlier is None else earlier.seconds)
        self.arrangement = Arrangement(problem.families, initial)
        self.descent = Descent(problem, self.arrangement, settings.tolerance)
        if place is not None:
            place(self.descent, seed)
            self.descent.value = problem.value(self.arrangement)
        begins_here = initial is None and place is None
        self.from_identity = begins_here if earlier is None else earlier.from_identity
        self.per_pass = [] if earlier is None else list(earlier.per_pass)
        self.gains: list[float] = []
        self.passes_that_moved = 0 if earlier is None else earlier.passes_that_moved
        self.earlier_work = spent if earlier is None else earlier.work
        self.generator = np.random.default_rng([seed, len(self.per_pass)])
        self.converged = False

    @property
    def value(self) -> float:
        return self.descent.value

    def advance(self, passes: int | None) -> None:
        """Run so many passes more, or to convergence; stops early when nothing can improve, or time is out."""
        limit = self.settings.max_passes
        last = None if passes is None else len(self.per_pass) + passes
        while not self.settings.out_of_time:
            waiting = self.descent.unsettled()
            if not waiting:
                self.converged = True
                return
            if len(self.per_pass) in (limit, last):
                return
            self._pass(_ordered(waiting, self.settings.order, len(self.per_pass), self.generator))

    def finish(self) -> Polished:
        """The present end, with its objective computed again and compared with the one summed from gains."""
        true = self.problem.value(self.arrangement)
        if abs(true - self.value) > _ROUNDING * self.problem.norms.scale:
            raise AssertionError(f"the objective summed from gains is {self.value!r}, the true one {true!r}")
        return Polished(
            self.start,
            self.seed,
            self.arrangement,
            true,
            tuple(self.per_pass),
            self.passes_that_moved,
            self.converged,
            time.monotonic() - self.began,
            self.earlier_work + self.descent.similarity.work,
            self.from_identity,
        )

    def _pass(self, order: Sequence[int]) -> None:
        """Visit these clusters once, in this order."""
        began = time.monotonic()
        before, visited, moved = self.value, 0, 0
        for number, has_moved in self._steps(order):
            groups = sum(self.problem.families.all[f].members for f in self.problem.clusters[number].families)
            visited += groups
            moved += groups if has_moved else 0
        self.gains.append(self.value - before)
        self.per_pass.append(self.value)
        self.passes_that_moved += moved > 0
        if self.settings.on_pass is not None:
            self.settings.on_pass(self._report(visited, moved, time.monotonic() - began))

    def _report(self, visited: int, moved: int, seconds: float) -> PassReport:
        elapsed = time.monotonic() - self.settings.began
        left = seconds * passes_left(self.gains, self.settings.tolerance * self.problem.norms.scale)
        return PassReport(self.start, len(self.per_pass), visited, moved, self.value, elapsed, left)

    def _steps(self, order: Sequence[int]) -> Iterator[tuple[int, bool]]:
        """Every cluster that was solved, in order, and whether it moved; those that are apart are solved together."""
        most = at_a_time(self.problem.device)
        begun: deque[Step] = deque()
        for number in order:
            if self.settings.out_of_time:
                break
            while begun and (len(begun) >= most or not self.descent.apart(number, begun)):
                yield self._end(begun.popleft())
            begun.append(self.descent.begin(number, most))
        while begun:
            yield self._end(begun.popleft())

    def _end(self, step: Step) -> tuple[int, bool]:
        before = self.value
        moved = self.descent.end(step)
        if self.value < before:
            raise AssertionError(f"the objective fell from {before!r} to {self.value!r}")
        return step.number, moved


def _ordered(waiting: list[int], order: Order, number: int, generator: np.random.Generator) -> list[int]:
    if order == "random":
        return [waiting[place] for place in generator.permutation(len(waiting))]
    return waiting[::-1] if order == "path" and number % 2 else waiting


def passes_left(gains: Sequence[float], least: float) -> int:
    """Estimate of the passes until one gains nothing that counts, that last one included.

    The gains of a descent's passes shrink about geometrically: after n more passes of ratio r the gain is `g r^n`, so
    `n = log(least / g) / log(r)`.

    Args:
        gains: of the passes so far, the first one first.
        least: a gain that does not count any more.
    """
    if not gains or gains[-1] <= least or least <= 0:
        return 0 if gains and gains[-1] <= 0 else 1
    ratio = gains[-1] / gains[-2] if len(gains) > 1 and gains[-2] > 0 else _SHRINKING
    return max(1, ceil(log(least / gains[-1]) / log(min(max(ratio, _FASTEST), _SLOWEST))))
