"""The search for permutations by weights: what an effort buys, and the call that runs it.

All choices hang on the seed and on the work done in products, never on the clock, unless a time limit is set.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.outcome import conclude
from rebasin_cli.matching.plan import Effort
from rebasin_cli.matching.polish import Order, Settings
from rebasin_cli.matching.portfolio import BuildStart, Plan, Portfolio
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import MatchResult, OnPass
from rebasin_cli.matching.starts.activations import activation_starts
from rebasin_cli.matching.weighing import PLAIN, weigh
from rebasin_cli.spec import PermutationSpec

STARTS = ("identity", "forward", "annealing", "barycentre", "random", "activations")

SECONDS_OF_WORK = 4e9
"""Multiply-adds of a full pass, and steps of its assignments, below which the standard search takes seconds."""
SMALL = 2e9
"""Multiply-adds of a full pass below which one thread computes it."""

PLANS: Mapping[str, Plan] = {
    "fast": Plan(("identity", "forward"), passes_of_work=4, work=0.0, frugal=True),
    "standard": Plan(
        ("identity", "forward", "annealing", "activations", "barycentre"),
        passes_of_work=14,
        work=1e11,
        replicas=32,
        sweeps=200,
        reheats=12,
        barycentres=1,
    ),
    "thorough": Plan(
        ("identity", "forward", "annealing", "activations", "random", "barycentre"),
        passes_of_work=100,
        work=2e12,
        replicas=64,
        sweeps=800,
        reheats=40,
        barycentres=8,
    ),
}


def match_weights(task: MatchTask) -> MatchResult:
    """`search` on the task's pair, with all starts that its model and its data allow.

    Raises:
        ModelError, NumericalError, UsageError: as for `search`.
        DataError: the data cannot be read, or do not fit the model.
    """
    matching = task.matching
    return search(
        task.understood.spec,
        task.pair.a,
        task.pair.b,
        parameters=task.pair.subject.parameters,
        objective=matching.objective,
        seed=matching.seed,
        effort=matching.effort,
        starts=matching.starts,
        restarts=matching.restarts,
        max_passes=matching.max_passes,
        time_limit=matching.time_limit,
        device=task.device,
        on_pass=task.on_pass,
        activations=activation_starts(task),
    )


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
        effort: `fast` is descents only; `standard` adds annealing, starts from activations and Frank–Wolfe; `thorough`
            has more of each; `auto` is `standard` where that costs seconds, and `fast` for larger networks.
        starts: only these instead of the effort's own: names in `STARTS`.
        restarts: how often the search is taken up again from the best so far (or how many random starts there are, if
            they are asked for alone), instead of the effort's number. With 0 nothing is left to the seed but the order
            of visits.
        activations: makers of starts from activations, by the name that the result shows (`noise`, `images`, …).
        memory: bytes that annealing and Frank–Wolfe may use; where they do not suffice these are left out. By default
            as much as the parameters of one side take, at least 2 GiB.

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
        memory = max(1 << 31, sum(a[key].nbytes for key in problem.keys))
    portfolio = Portfolio(problem, settings, plan, seed, activations or {}, memory)
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
    if starts is not None:
        centres = max(1, plan.barycentres) if "barycentre" in starts else 0
        plan = replace(plan, starts=tuple(starts), replicas=0, reheats=0, barycentres=centres, frugal=False)
    if restarts is not None:
        replicas = min(plan.replicas, restarts) if starts is None else restarts
        plan = replace(plan, reheats=restarts, replicas=replicas)
    return plan
