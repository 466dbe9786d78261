"""The portfolio: many starts, each followed to its end by coordinate descent, the best end kept.

Descents from the identity and along the path cost a few passes and settle pairs that are nearly aligned. Otherwise
annealing finds what no descent finds, once as it is and then many times side by side with noise; and the best so far is
heated a little and cooled again. Frank–Wolfe from the barycentre is another way to a start, and usually a worse one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from rebasin_cli.matching import annealing
from rebasin_cli.matching.annealing import Annealed, anneal, sweep_work
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.contest import Start, contest, is_fixed, resume
from rebasin_cli.matching.forecast import seconds_ahead
from rebasin_cli.matching.frank_wolfe import ITERATIONS, frank_wolfe, memory_needed, near_barycentre
from rebasin_cli.matching.polish import Polished, Run, Settings
from rebasin_cli.matching.probe import near_identity
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.result import OnPass, PassReport
from rebasin_cli.permutation import Permutations, random

BuildStart = Callable[[], Permutations]

_PERFECT = 1e-12
"""How near to `(|A|^2 + |B|^2) / 2`, where B permuted is A, an objective must be for the search to be over."""
_PATIENCE = 2
"""Rounds in vain after which no more of their kind are run."""
_NOISE = (0.35, 0.7, 1.4, 2.0)
"""Of annealings side by side, by turns: little is best where much is told by few numbers, much on rugged ground."""
_REHEATED, _HOTTER, _HOTTEST = 0.35, 1.5, 2.0
"""To what temperature the best so far is heated; by what that is raised where most find their way back; up to what."""
_BACK = 0.6
"""The share of replicas that find their way back to the best from which on the heat was too little."""
_LONGEST, _SHORTEST, _SHORT = 40, 3, 8
"""Sweeps of the annealing without noise: at the most, at the least, and where no more is affordable."""
_FIRST_SWEEPS, _FEWEST = 25, 2
"""Sweeps of the first round of annealings with noise, and how many side by side are worth it."""
_REHEATED_SWEEPS, _REHEATED_REPLICAS = 40, 16


@dataclass(frozen=True, slots=True)
class Plan:
    """What an effort buys.

    Attributes:
        starts: names of starts.
        passes_of_work, work: once the products have cost this many full passes, and this many multiply-adds, nothing
            further begins. Small networks are searched long, since it costs seconds.
        replicas, sweeps: annealings with noise side by side, and sweeps of each, at the most.
        reheats: rounds of heating and cooling the best so far, at the most.
        barycentres: Frank–Wolfe runs: the first from the barycentre itself, the others from near it.
        frugal: leave out the identity where a few groups show that it leads nowhere.
    """

    starts: tuple[str, ...]
    passes_of_work: float
    work: float
    replicas: int = 0
    sweeps: int = 0
    reheats: int = 0
    barycentres: int = 0
    frugal: bool = False


class Portfolio:
    """A search as planned.

    Args:
        activations: makers of starts from activations, by name.
        memory: bytes that annealing and Frank–Wolfe may use each.
    """

    def __init__(
        self,
        problem: Problem,
        settings: Settings,
        plan: Plan,
        seed: int,
        activations: Mapping[str, BuildStart],
        memory: int,
    ) -> None:
        self.problem, self.settings, self.plan, self.seed = problem, settings, plan, seed
        self.activations, self.memory = activations, memory
        self.ends: list[Polished] = []
        self._seconds: list[float] = []
        if settings.on_pass is not None:
            self.settings = replace(settings, on_pass=partial(self._forecast, settings.on_pass))

    def run(self) -> list[Polished]:
        """All ends, of runs side by side the best; the best of all has converged, unless time or passes ran out."""
        deep = "annealing" in self.plan.starts or "barycentre" in self.plan.starts
        names = [name for name in self.plan.starts if name in ("identity", "forward")]
        if len(names) > 1 and self.plan.frugal and not near_identity(self.problem):
            names.remove("identity")
        simple = [Start(name, self.seed) for name in names]
        if simple:
            heat = 1 if len(simple) > 1 and not deep else None  # a bad beginning may have the better end
            self.ends += contest(self.problem, simple, self.settings, heat=heat)
            self._seconds += [end.seconds for end in self.ends]
        if not any(is_fixed(end) for end in self.ends):
            self._random_starts()
            self._annealing()
            self._activation_starts()
            self._replicas()
            self._reheats()
            self._barycentres()
        self._settle()
        return self.ends

    def _random_starts(self) -> None:
        count = max(1, self.plan.reheats if self.plan.starts == ("random",) else 1)
        for number in range(count if "random" in self.plan.starts else 0):
            if self._exhausted:
                return
            self._follow("random", self.seed + number, random(self.problem.spec, self.seed + number))

    def _activation_starts(self) -> None:
        for name, build in self.activations.items() if "activations" in self.plan.starts else ():
            if self._perfect or (self.ends and self.settings.out_of_time):
                return
            self._follow(name, self.seed, build())

    def _annealing(self) -> None:
        """Without noise, which is the same for every seed."""
        if "annealing" not in self.plan.starts or self._exhausted or not self._room:
            return
        affordable = self._sweeps_left
        sweeps = min(_LONGEST, max(int(affordable / 4), min(int(affordable) - 1, _SHORT)))
        if sweeps < _SHORTEST and self.ends:
            return
        began = time.monotonic()
        found = anneal(self.problem, self.settings, sweeps=max(sweeps, _SHORTEST), seed=self.seed)
        self._keep_best("annealing", found, began)

    def _replicas(self) -> None:
        """With noise, side by side, each round twice as slow as the one before."""
        sweeps, in_vain, number = _FIRST_SWEEPS, 0, 0
        while "annealing" in self.plan.starts and sweeps <= self.plan.sweeps and in_vain < _PATIENCE:
            count = min(self.plan.replicas, self._room, int(self._sweeps_left / 4 / sweeps))
            if self._exhausted or count < _FEWEST:
                return
            noise = [_NOISE[replica % len(_NOISE)] for replica in range(count)]
            began, before = time.monotonic(), max((end.value for end in self.ends), default=float("-inf"))
            found = anneal(self.problem, self.settings, sweeps=sweeps, noise=noise, seed=self.seed + 1000 * number)
            values = self._keep_best(f"annealing with noise, {number + 1}", found, began)
            in_vain = 0 if max(values, default=before) > before + self._least else in_vain + 1
            sweeps, number = 2 * sweeps, number + 1

    def _reheats(self) -> None:
        """From the best so far, as hot as it takes to find something else."""
        in_vain, heat = 0, _REHEATED
        sweeps = min(_REHEATED_SWEEPS, max(_SHORT, int(self._sweeps_left / 6 / _REHEATED_REPLICAS)))
        for number in range(0 if self.plan.starts == ("random",) else self.plan.reheats):
            count = min(_REHEATED_REPLICAS, self._room, int(self._sweeps_left / sweeps))
            if self._exhausted or not self.ends or in_vain == _PATIENCE or heat > _HOTTEST or count < _FEWEST:
                return
            best, began = max(self.ends, key=lambda end: end.value), time.monotonic()
            found = anneal(
                self.problem,
                self.settings,
                sweeps=sweeps,
                noise=[_NOISE[replica % len(_NOISE)] for replica in range(count)],
                seed=self.seed + 1000 * (number + 1),
                start=best.arrangement,
                hottest=heat,
            )
            values = self._keep_best(f"annealing again, {number + 1}", found, began)
            back = sum(abs(value - best.value) <= self._least for value in values)
            if max(values, default=0.0) > best.value + self._least:
                in_vain = 0
            elif back >= _BACK * count:
                heat *= _HOTTER
            else:
                in_vain += 1

    def _barycentres(self) -> None:
        for number in range(self.plan.barycentres if memory_needed(self.problem) <= self.memory else 0):
            ahead = (self._iterations + 2) * self.problem.full_pass if self._is_large and self.ends else 0
            if self._exhausted or self._spent + ahead > self._work:
                return
            began = time.monotonic()
            mixture = near_barycentre(self.problem, self.seed + number, 0.1 if number else 0.0)
            initial, work = frank_wolfe(self.problem, self.settings, mixture, iterations=self._iterations)
            name = "barycentre" if number == 0 else f"near the barycentre, {number}"
            self._follow(name, number, initial, work, began)

    def _keep_best(self, name: str, found: Annealed, began: float) -> list[float]:
        """Follow every replica to its end, and keep the best of the ends; without time only where there is no other.

        Returns:
            The objectives of all replicas that were followed.
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
                run = Run(self.problem, name, self.seed, self.settings, arrangement.permutations())
                run.advance(None)
                ends[where] = run.finish()
            values.append(ends[where].value)
        self._seconds += [end.seconds for end in ends.values()]
        work = found.work + sum(end.work for end in ends.values())
        best = max(ends.values(), key=lambda end: end.value)
        self.ends.append(replace(best, work=work, seconds=time.monotonic() - began))
        return values

    def _follow(self, name: str, seed: int, initial: Permutations, work: int = 0, began: float | None = None) -> None:
        run = Run(self.problem, name, seed, self.settings, initial, spent=work, began=began)
        run.advance(None)
        self.ends.append(run.finish())
        self._seconds.append(self.ends[-1].seconds)

    def _settle(self) -> None:
        if self.ends and not self.settings.out_of_time:
            best = max(range(len(self.ends)), key=lambda number: self.ends[number].value)
            if not self.ends[best].converged:
                self.ends[best] = resume(self.problem, self.ends[best], self.settings)

    def _forecast(self, on_pass: OnPass, done: PassReport) -> None:
        """Pass a report on, what comes after this descent added to the time left."""
        left = done.left or 0.0
        plan = self.plan
        planned = plan.replicas + plan.reheats * _REHEATED_REPLICAS + plan.barycentres + ("annealing" in plan.starts)
        if planned:
            spent = max(self._spent, self.problem.full_pass)
            runs = self._seconds or [done.elapsed + left]
            left += seconds_ahead(spent, self._work, done.elapsed, runs, max(0, planned - len(self._seconds)))
        if self.settings.deadline is not None:
            left = min(left, max(0.0, self.settings.deadline - time.monotonic()))
        on_pass(replace(done, left=left))

    @property
    def _least(self) -> float:
        """A gain that a descent would ask for."""
        return self.settings.tolerance * self.problem.norms.scale

    @property
    def _room(self) -> int:
        """Annealings that fit into memory side by side."""
        return self.memory // max(1, annealing.memory_needed(self.problem))

    @property
    def _sweeps_left(self) -> float:
        """Sweeps that the work left allows."""
        return max(0.0, self._work - self._spent) / max(1, sweep_work(self.problem))

    @property
    def _is_large(self) -> bool:
        """Is the search bounded by full passes, because these are dear?"""
        return self.plan.passes_of_work * self.problem.full_pass > self.plan.work

    @property
    def _iterations(self) -> int:
        """Of Frank–Wolfe, each of which costs a full pass: all that help, or what is affordable in large networks."""
        return min(ITERATIONS, max(4, int(self.plan.passes_of_work) - 6)) if self._is_large else ITERATIONS

    @property
    def _exhausted(self) -> bool:
        """Is there something to return, and nothing left to gain, or neither time nor work?"""
        return self._perfect or (bool(self.ends) and (self.settings.out_of_time or self._spent > self._work))

    @property
    def _perfect(self) -> bool:
        """Is B A, its units put back in order?"""
        return any(end.value >= (1 - _PERFECT) * self.problem.norms.bound for end in self.ends)

    @property
    def _spent(self) -> float:
        return sum(end.work for end in self.ends)

    @property
    def _work(self) -> float:
        return max(self.plan.passes_of_work * self.problem.full_pass, self.plan.work)
