"""The portfolio: many starts, each followed to convergence by coordinate descent, the best end kept.

Starts that are a single descent (the identity, along the path of the data) cost a few passes and settle pairs that are
nearly aligned. Then come the phases of the other starts; each adds ends, within the work that the plan allows.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.certainty import agreed
from rebasin_cli.matching.families import Index
from rebasin_cli.matching.multistart import StartEntry, is_fixed, multistart, resume
from rebasin_cli.matching.plan import Plan
from rebasin_cli.matching.polish import DescentRun, Polished, Settings
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.result import OnPass, PassReport, Stopped
from rebasin_cli.matching.start import Descend, Makers, Phase, Start
from rebasin_cli.matching.starts import STARTS, find_start
from rebasin_cli.permutation import Permutations

_PERFECT = 1e-12
"""How near to `(|A|^2 + |B|^2) / 2`, where B permuted is A, an objective must be for the search to be over."""
NEARLY_EQUAL = 0.9
"""Cosine of weights, in their own order, from which B is a fine-tuned copy of A and not a network trained apart."""


class SideBySide(Protocol):
    """Points that were found together, permutations by family, and the multiply-adds that they took."""

    work: int

    @property
    def vertices(self) -> Sequence[Mapping[int, Index]]: ...


class Portfolio:
    """A search as planned, and what it has found so far.

    Args:
        makers: of permutations to start from, by the name of the start that runs the networks.
        memory: bytes that each phase may use.

    Attributes:
        ends: where descents ended.
        stopped: why the search ended, see `Stopped`; known once it has run.
        notes: which starts were left out, and why.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        plan: Plan,
        seed: int,
        makers: Mapping[str, Makers],
        memory: int,
    ) -> None:
        self.problem, self.settings, self.plan, self.seed = problem, settings, plan, seed
        self.makers, self.memory = makers, memory
        self.ends: list[Polished] = []
        self.stopped: Stopped = "effort"
        self.notes: list[str] = []
        self._seconds: list[float] = []
        self._starts = [find_start(name) for name in plan.starts]
        if settings.on_pass is not None:
            self.settings = replace(settings, on_pass=partial(self._forecast, settings.on_pass))

    def run(self) -> list[Polished]:
        """All ends, of runs side by side the best; the best of all has converged, unless time or passes ran out."""
        self._descend()
        done = self._is_done()
        if done is None:
            for phase in self._phases:
                phase.run(self)
        self._settle()
        self.stopped = "time" if self.settings.out_of_time else "bound" if self.perfect else done or "effort"
        return self.ends

    def follow(self, name: str, seed: int, initial: Permutations, work: int = 0, began: float | None = None) -> None:
        """Run a descent from these permutations to convergence, and add its end.

        Args:
            work, began: multiply-adds spent to find the permutations, and when that began.
        """
        run = DescentRun(self.problem, name, seed, self.settings, initial, spent=work, began=began)
        run.advance(None)
        self.ends.append(run.finish())
        self._seconds.append(self.ends[-1].seconds)

    def keep_best(self, name: str, found: SideBySide, began: float) -> list[float]:
        """Run descents from all points, and add the best end; with no time left only if there is no end yet.

        Returns:
            The objectives of the ends, for every point that was followed.
        """
        if self.ends and self.settings.out_of_time:
            return []
        ends: dict[bytes, Polished] = {}
        values: list[float] = []
        for vertex in found.vertices:
            if ends and self.settings.out_of_time:
                break
            arrangement = Arrangement(self.problem.families)
            arrangement.set(vertex)
            where = b"".join(perm.tobytes() for perm in arrangement.perms)
            if where not in ends:
                run = DescentRun(self.problem, name, self.seed, self.settings, arrangement.permutations())
                run.advance(None)
                ends[where] = run.finish()
            values.append(ends[where].value)
        self._seconds += [end.seconds for end in ends.values()]
        work = found.work + sum(end.work for end in ends.values())
        best = max(ends.values(), key=lambda end: end.value)
        self.ends.append(replace(best, work=work, seconds=time.monotonic() - began))
        return values

    @property
    def least(self) -> float:
        """The smallest gain that counts, as in a descent."""
        return self.settings.tolerance * self.problem.norms.scale

    @property
    def is_large(self) -> bool:
        """Whether the number of full passes bounds the search, and not the multiply-adds."""
        return self.plan.passes_of_work * self.problem.full_pass > self.plan.work

    @property
    def exhausted(self) -> bool:
        """Whether there is an end, and nothing left to gain, or no time or work left."""
        return self.perfect or (bool(self.ends) and (self.settings.out_of_time or self.spent > self.allowed))

    @property
    def perfect(self) -> bool:
        """Whether B is an exact permutation of A."""
        return any(end.value >= (1 - _PERFECT) * self.problem.norms.bound for end in self.ends)

    @property
    def spent(self) -> float:
        """Multiply-adds so far."""
        return sum(end.work for end in self.ends)

    @property
    def allowed(self) -> float:
        """Multiply-adds that the plan allows."""
        return max(self.plan.passes_of_work * self.problem.full_pass, self.plan.work)

    def _descend(self) -> None:
        """Run the starts that are a single descent against each other."""
        simple = [(start, start.descend) for start in self._starts if start.descend is not None and not start.phases]
        if len(simple) > 1 and self.plan.frugal:
            simple = [(start, descend) for start, descend in simple if self._is_promising(descend)]
        if not simple:
            return
        deep = any(start.deep for start in self._starts)
        heat = 1 if len(simple) > 1 and not deep else None  # a start that is behind after one pass may end ahead
        entries = [StartEntry(start.name, self.seed, descend.place) for start, descend in simple]
        self.ends += multistart(self.problem, entries, self.settings, heat=heat, thorough=not self.is_large)
        self._seconds += [end.seconds for end in self.ends]

    def _is_done(self) -> Stopped | None:
        """Why nothing more can be gained, as far as the descents show; None to go on."""
        if self.perfect:
            return "bound"
        if self._is_settled:
            return "agreement"
        ahead = any(phase.runs(self.plan) for phase in self._phases)  # nothing is saved where nothing follows
        if not ahead or self.plan.asked or self.settings.out_of_time:
            return None
        return None if agreed(self.problem, self.ends, self.least) is None else "margin"

    @property
    def _is_settled(self) -> bool:
        """Whether B's own order is a local optimum, and the best one as far as the search goes.

        In a large network, or if the weights are nearly equal, further phases would cost much and find nothing.
        """
        least = 0.0 if self.is_large else NEARLY_EQUAL * self.problem.norms.scale
        fixed = [end for end in self.ends if is_fixed(end) and end.value >= least]
        return bool(fixed) and max(end.value for end in self.ends) <= fixed[0].value + self.least

    def _is_promising(self, descend: Descend) -> bool:
        return descend.promising is None or descend.promising(self.problem)

    @property
    def _phases(self) -> list[Phase]:
        phases = [phase for start in STARTS for phase in start.phases if phase.always or self._has(start)]
        return sorted(phases, key=lambda phase: phase.stage)

    def _has(self, start: Start) -> bool:
        return start.name in self.plan.starts

    def _settle(self) -> None:
        if self.ends and not self.settings.out_of_time:
            best = max(range(len(self.ends)), key=lambda number: self.ends[number].value)
            if not self.ends[best].converged:
                self.ends[best] = resume(self.problem, self.ends[best], self.settings)

    def _forecast(self, on_pass: OnPass, done: PassReport) -> None:
        """Pass a report on, with the time for what comes after this descent added to the time left."""
        left = done.left or 0.0
        planned = sum(phase.runs(self.plan) for phase in self._phases)
        if planned:
            spent = max(self.spent, self.problem.full_pass)
            runs = self._seconds or [done.elapsed + left]
            left += seconds_ahead(spent, self.allowed, done.elapsed, runs, max(0, planned - len(self._seconds)))
        if self.settings.deadline is not None:
            left = min(left, max(0.0, self.settings.deadline - time.monotonic()))
        on_pass(replace(done, left=left))


def seconds_ahead(spent: float, allowed: float, elapsed: float, runs: Sequence[float], planned: int) -> float:
    """Seconds that a search goes on after the present descent: bounded by its work, and by the runs to come.

    Args:
        spent, allowed: multiply-adds in products so far, and in all.
        elapsed: seconds so far.
        runs: seconds of every run that has ended, or the estimate for the first one.
        planned: runs to come at most.
    """
    return min(elapsed * max(0.0, allowed - spent) / spent, planned * sum(runs) / len(runs))
