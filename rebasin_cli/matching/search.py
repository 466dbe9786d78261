"""The portfolio: many starts at the effort that is wanted, each followed to its end, the best end kept.

Descents from the identity and along the path cost a few passes and settle pairs that are nearly aligned. Otherwise
Frank–Wolfe from the barycentre finds a better region, and kicks search around the best so far: Frank–Wolfe again from
a mixture of it with random arrangements. On residual networks this is worth more than anything else that needs no data.
All choices hang on the seed and on the work done in products, never on the clock, unless a time limit is set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.contest import Start, contest, is_fixed, resume
from rebasin_cli.matching.forecast import seconds_ahead
from rebasin_cli.matching.frank_wolfe import ITERATIONS, frank_wolfe, kicked, memory_needed, near_barycentre
from rebasin_cli.matching.mixture import Mixture
from rebasin_cli.matching.outcome import conclude
from rebasin_cli.matching.polish import Order, Polished, Run, Settings
from rebasin_cli.matching.probe import near_identity
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.matching.result import MatchResult, OnPass, PassReport
from rebasin_cli.matching.weighing import PLAIN, weigh
from rebasin_cli.permutation import Permutations, random
from rebasin_cli.spec import PermutationSpec

Effort = Literal["auto", "fast", "standard", "thorough"]
STARTS = ("identity", "forward", "barycentre", "random", "activations")
BuildStart = Callable[[], Permutations]

SECONDS_OF_WORK = 4e9
"""Multiply-adds of a full pass, and steps of its assignments, below which the standard search takes seconds."""
SMALL = 2e9
"""Multiply-adds of a full pass below which one thread computes it."""
_KICKS = ((0.7, 4), (0.5, 1), (0.8, 4), (0.6, 2))
"""Strength and number of random arrangements of one kick after another."""
_PERFECT = 1e-12
"""How near to `(|A|^2 + |B|^2) / 2`, where B permuted is A, an objective must be for the search to be over."""
_PATIENCE = 8
"""Kicks in vain after which a search ends, at the least; a quarter of the plan's kicks if that is more."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an effort buys.

    Attributes:
        starts: names of starts, tried in this order.
        barycentres: Frank–Wolfe runs: the first from the barycentre itself, the others from near it.
        kicks: kicks at most.
        frugal: leave out the identity where a few groups show that it leads nowhere.
        passes_of_work, work: once the products have cost this many full passes, and this many multiply-adds, no further
            kick or run begins. Small networks are searched long, since it costs seconds.
    """

    starts: tuple[str, ...]
    barycentres: int
    kicks: int
    passes_of_work: float
    work: float
    frugal: bool = False


PLANS: Mapping[str, Plan] = {
    "fast": Plan(("identity", "forward"), 0, 0, 4, 0.0, frugal=True),
    "standard": Plan(("identity", "forward", "barycentre", "activations"), 3, 24, 12, 6e10),
    "thorough": Plan(("identity", "forward", "barycentre", "activations", "random"), 8, 120, 100, 1e12),
}


def search(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    *,
    parameters: Collection[str],
    objective: str = PLAIN,
    effort: Effort = "auto",
    starts: Sequence[str] | None = None,
    restarts: int | None = None,
    seed: int = 0,
    order: Order | None = None,
    max_passes: int | None = None,
    relative_tolerance: float | None = None,
    time_limit: float | None = None,
    activations: Mapping[str, BuildStart] | None = None,
    on_pass: OnPass | None = None,
    budget: int | None = None,
    memory: int | None = None,
    device: torch.device | str = "cpu",
) -> MatchResult:
    """Find the permutations that bring B closest to A, with as much effort as is wanted.

    Args:
        spec, a, b, parameters, max_passes, time_limit, on_pass, budget, device: as for `weight_matching`.
        objective: what is maximised: see `weighing`. The result states the plain one besides.
        order: by default `random`, and `path` where `fast` has a large network: a third of the passes less.
        relative_tolerance: by default 1e-6, and 3e-5 for `fast`.
        effort: `fast` is descents only; `standard` adds Frank–Wolfe and kicks; `thorough` has more of both; `auto` is
            `standard` where that costs seconds, and `fast` for larger networks.
        starts: only these instead of the effort's own: names in `STARTS`.
        restarts: kicks (or random starts, if they are asked for alone) instead of the effort's number.
        activations: makers of starts from activations, by the name that the result shows (`noise`, `images`, …).
        memory: bytes that Frank–Wolfe may use for mixed similarities; where they do not suffice it is left out. By
            default as much as the parameters of one side take, at least 512 MiB.

    Raises:
        ModelError, NumericalError: as for `weight_matching`.
        UsageError: an unknown start, effort or objective.
    """
    began = time.monotonic()
    if effort not in (*PLANS, "auto") or any(name not in STARTS for name in starts or ()):
        unknown = (
            effort if effort not in (*PLANS, "auto") else next(name for name in starts or () if name not in STARTS)
        )
        raise UsageError(f"unknown effort or start {unknown!r}: efforts are {', '.join(PLANS)}; {', '.join(STARTS)}")
    sides = weigh(objective, spec, a, b, parameters)
    problem = prepare(spec, sides.a, sides.b, sides.keys, budget=budget, device=device)
    plain = problem if objective == PLAIN else prepare(spec, a, b, parameters, budget=budget, device=device)
    deadline = None if time_limit is None else began + time_limit
    large = problem.full_pass + problem.assignments >= SECONDS_OF_WORK
    if effort == "auto":
        effort = "fast" if large else "standard"
    order = order or ("path" if effort == "fast" and large else "random")
    tolerance = relative_tolerance or (3e-5 if effort == "fast" else 1e-6)
    settings = Settings(order, max_passes, tolerance, deadline, began, on_pass)
    plan = _plan(PLANS[effort], starts, restarts)
    if memory is None:
        memory = max(1 << 29, sum(a[key].nbytes for key in problem.keys))
    portfolio = _Portfolio(problem, settings, plan, seed, activations or {}, memory_needed(problem) <= memory)
    with _fitting_threads(problem.full_pass):
        return conclude(problem, portfolio.run(), "weight", seed, settings, objective=objective, plain=plain)


@contextmanager
def _fitting_threads(work: float) -> Iterator[None]:
    """One thread for products so small that handing them out costs more than computing them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if work < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _plan(plan: Plan, starts: Sequence[str] | None, restarts: int | None) -> Plan:
    names = plan.starts if starts is None else tuple(starts)
    centres = (plan.barycentres or 1) if "barycentre" in names else 0
    kicks = plan.kicks if starts is None else 0
    frugal = plan.frugal and starts is None
    return Plan(names, centres, kicks if restarts is None else restarts, plan.passes_of_work, plan.work, frugal)


@dataclass
class _Portfolio:
    problem: Problem
    settings: Settings
    plan: Plan
    seed: int
    activations: Mapping[str, BuildStart]
    roomy: bool

    def run(self) -> list[Polished]:
        """All ends; the best one has converged, unless time or passes ran out."""
        self.ends: list[Polished] = []
        if self.settings.on_pass is not None:
            self.settings = replace(self.settings, on_pass=partial(self._forecast, self.settings.on_pass))
        deep = self.roomy and bool(self.plan.barycentres or self.plan.kicks)
        names = [name for name in self.plan.starts if name in ("identity", "forward")]
        if len(names) > 1 and self.plan.frugal and not near_identity(self.problem):
            names.remove("identity")
        simple = [Start(name, self.seed) for name in names]
        if simple:
            heat = 1 if len(simple) > 1 and not deep else None  # a bad beginning may have the better end
            self.ends += contest(self.problem, simple, self.settings, heat=heat)
        if not any(is_fixed(end) for end in self.ends):
            self._random_starts()
            self._activation_starts()
            if self.roomy:
                self._barycentres()
                self._kicks()
        self._settle()
        return self.ends

    def _random_starts(self) -> None:
        count = max(1, self.plan.kicks if self.plan.starts == ("random",) else 1) if "random" in self.plan.starts else 0
        for number in range(count):
            if self._exhausted:
                return
            self._follow("random", self.seed + number, random(self.problem.spec, self.seed + number))

    def _activation_starts(self) -> None:
        for name, build in self.activations.items() if "activations" in self.plan.starts else ():
            if self._perfect or (self.ends and self.settings.out_of_time):
                return
            self._follow(name, self.seed, build())

    def _barycentres(self) -> None:
        for number in range(self.plan.barycentres):
            if self._exhausted if number == 0 else self._cannot_explore:
                return
            mixture = near_barycentre(self.problem, self.seed + number, 0.1 if number else 0.0)
            self._explore("barycentre" if number == 0 else f"near the barycentre, {number}", number, mixture)

    def _kicks(self) -> None:
        if self.plan.starts == ("random",):
            return
        patience, in_vain = max(_PATIENCE, self.plan.kicks // 4), 0
        for number in range(self.plan.kicks):
            if self._cannot_explore or not self.ends or in_vain == patience:
                return
            strength, randoms = _KICKS[number % len(_KICKS)]
            best = max(self.ends, key=lambda end: end.value)
            vertex = dict(enumerate(best.arrangement.perms))
            mixture = kicked(self.problem, vertex, self.seed + 1000 * (number + 1), strength, randoms)
            self._explore(f"kick {number + 1}", self.seed + number, mixture)
            in_vain = 0 if self.ends[-1].value > best.value else in_vain + 1

    def _explore(self, name: str, seed: int, mixture: Mixture) -> None:
        began = time.monotonic()
        initial, work = frank_wolfe(self.problem, self.settings, mixture, iterations=self._iterations)
        self._follow(name, seed, initial, work, began)

    def _follow(self, name: str, seed: int, initial: Permutations, work: int = 0, began: float | None = None) -> None:
        run = Run(self.problem, name, seed, self.settings, initial, spent=work, began=began)
        run.advance(None)
        self.ends.append(run.finish())

    def _settle(self) -> None:
        if self.ends and not self.settings.out_of_time:
            best = max(range(len(self.ends)), key=lambda number: self.ends[number].value)
            if not self.ends[best].converged:
                self.ends[best] = resume(self.problem, self.ends[best], self.settings)

    def _forecast(self, on_pass: OnPass, done: PassReport) -> None:
        """Pass a report on, what comes after this descent added to the time left."""
        left = done.left or 0.0
        planned = self.plan.barycentres + self.plan.kicks if self.roomy else 0
        if planned:
            spent, runs = (
                max(self._spent, self.problem.full_pass),
                [end.seconds for end in self.ends] or [done.elapsed + left],
            )
            left += seconds_ahead(spent, self._work, done.elapsed, runs, max(0, planned - len(self.ends)))
        if self.settings.deadline is not None:
            left = min(left, max(0.0, self.settings.deadline - time.monotonic()))
        on_pass(replace(done, left=left))

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

    @property
    def _cannot_explore(self) -> bool:
        """As `_exhausted`, also where one more run of Frank–Wolfe would cost a large network more than is left."""
        ahead = (self._iterations + 2) * self.problem.full_pass if self._is_large and self.ends else 0
        return self._exhausted or self._spent + ahead > self._work
