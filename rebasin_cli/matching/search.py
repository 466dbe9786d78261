"""The search for permutations by weights: a portfolio of starts, as planned for an effort.

All choices depend on the seed and on the work done in products, and on the clock only with a time limit.
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
from rebasin_cli.matching.plan import EFFORTS, Effort, make_plan
from rebasin_cli.matching.polish import Order, Settings
from rebasin_cli.matching.portfolio import Portfolio
from rebasin_cli.matching.problem import prepare
from rebasin_cli.matching.result import MatchResult, OnPass
from rebasin_cli.matching.start import Makers
from rebasin_cli.matching.starts import STARTS, find_start
from rebasin_cli.matching.weighing import PLAIN, weigh
from rebasin_cli.spec import PermutationSpec

SECONDS_OF_WORK = 4e9
"""Multiply-adds of a full pass, and steps of its assignments, below which the standard search takes seconds."""
SMALL = 2e9
"""Multiply-adds of a full pass below which one thread computes it."""


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
        makers={start.name: start.makers(task) for start in STARTS if start.makers is not None},
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
    makers: Mapping[str, Makers] | None = None,
    on_pass: OnPass | None = None,
    budget: int | None = None,
    memory: int | None = None,
    device: torch.device | str = "cpu",
) -> MatchResult:
    """Find the permutations that bring B closest to A, with a chosen effort.

    Args:
        spec, a, b, parameters, max_passes, time_limit, on_pass, budget, device: as for `weight_matching`.
        objective: what is maximised: see `weighing`. The result also states the plain objective.
        order: by default `random`, and `path` where `fast` has a large network: a third of the passes less.
        relative_tolerance: by default 1e-6, and 3e-5 for `fast`.
        effort: decides the starts and the work: `fast` is descents only, `standard` and `thorough` are more; `auto` is
            `standard` where that costs seconds, and `fast` for larger networks.
        starts: names of starts to use instead of the effort's own.
        restarts: how often the search restarts from the best end so far, or how many starts there are of one that
            repeats and is asked for alone; by default the effort's own numbers. With 0 the seed decides nothing but
            the order of visits.
        makers: for starts that run the networks, by the start's name; the inner names are those that the result shows.
        memory: bytes that each phase of the search may use; phases that need more are left out. By default as much as
            the parameters of one side take, at least 2 GiB.

    Raises:
        ModelError, NumericalError: as for `weight_matching`.
        UsageError: an unknown start, effort or objective.
    """
    began = time.monotonic()
    if effort not in EFFORTS:
        raise UsageError(f"unknown effort {effort!r}", hint=f"efforts are: {', '.join(EFFORTS)}")
    for name in starts or ():
        find_start(name)
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
    plan = make_plan(effort, starts, restarts)
    if memory is None:
        memory = max(1 << 31, sum(a[key].nbytes for key in problem.keys))
    portfolio = Portfolio(problem, settings, plan, seed, makers or {}, memory)
    with _fitting_threads(problem.full_pass):
        ends = portfolio.run()
        found = conclude(problem, ends, seed, settings, objective=objective, plain=plain, stopped=portfolio.stopped)
        return replace(found, notes=tuple(portfolio.notes))


@contextmanager
def _fitting_threads(work: float) -> Iterator[None]:
    """Use one thread for products so small that distributing them costs more than computing them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if work < SMALL else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
