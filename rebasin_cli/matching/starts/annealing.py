"""Annealing: once without noise, then many runs side by side with noise; and the best end of all reheated.

Annealing finds optima that no descent finds. Without noise it is the same for every seed; with noise runs end in
different places; reheating the best end a little and cooling it again searches its neighbourhood.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rebasin_cli.matching.start import Phase, Start

if TYPE_CHECKING:
    from rebasin_cli.matching.plan import Plan
    from rebasin_cli.matching.portfolio import Portfolio

_REPLICAS = {"standard": 32, "thorough": 64}
"""Runs with noise side by side, at the most, by effort."""
_SWEEPS = {"standard": 200, "thorough": 800}
"""Sweeps of each of them, at the most, by effort."""
_REHEATS = {"standard": 12, "thorough": 40}
"""Rounds of reheating, at the most, by effort."""
_PATIENCE = 2
"""Rounds without a gain after which no more of their kind are run."""
_NOISE = (0.35, 0.7, 1.4, 2.0)
"""Noise of the runs side by side, in turn: little is best where few numbers decide much, much where there are many
local optima."""
_REHEATED, _HOTTER, _HOTTEST = 0.35, 1.5, 2.0
"""Temperature to which the best end is reheated; the factor by which that grows where most runs return to it; its
bound."""
_BACK = 0.6
"""Share of runs that return to the best end from which on the temperature was too low."""
_LONGEST, _SHORTEST, _SHORT = 40, 3, 8
"""Sweeps of the annealing without noise: at the most, at the least, and where no more is affordable."""
_FIRST_SWEEPS, _FEWEST = 25, 2
"""Sweeps of the first round with noise; the number of runs side by side below which a round is not worth it."""
_REHEATED_SWEEPS, _REHEATED_REPLICAS = 40, 16


def _replicas(plan: Plan) -> int:
    if plan.asked:
        return plan.restarts or 0
    own = _REPLICAS.get(plan.effort, 0)
    return own if plan.restarts is None else min(own, plan.restarts)


def _reheats(plan: Plan) -> int:
    if plan.repeats:
        return 0
    if plan.restarts is not None:
        return plan.restarts
    return 0 if plan.asked else _REHEATS.get(plan.effort, 0)


def _without_noise(portfolio: Portfolio) -> None:
    from rebasin_cli.matching.annealing import anneal

    if portfolio.exhausted or not _room(portfolio):
        return
    affordable = _sweeps_left(portfolio)
    sweeps = min(_LONGEST, max(int(affordable / 4), min(int(affordable) - 1, _SHORT)))
    if sweeps < _SHORTEST and portfolio.ends:
        return
    began = time.monotonic()
    found = anneal(portfolio.problem, portfolio.settings, sweeps=max(sweeps, _SHORTEST), seed=portfolio.seed)
    portfolio.keep_best(START.name, found, began)


def _with_noise(portfolio: Portfolio) -> None:
    """Rounds side by side, each twice as slow as the one before."""
    from rebasin_cli.matching.annealing import anneal

    sweeps, in_vain, number = _FIRST_SWEEPS, 0, 0
    while sweeps <= _SWEEPS.get(portfolio.plan.effort, 0) and in_vain < _PATIENCE:
        count = min(_replicas(portfolio.plan), _room(portfolio), int(_sweeps_left(portfolio) / 4 / sweeps))
        if portfolio.exhausted or count < _FEWEST:
            return
        began, before = time.monotonic(), max((end.value for end in portfolio.ends), default=float("-inf"))
        found = anneal(
            portfolio.problem,
            portfolio.settings,
            sweeps=sweeps,
            noise=_noise(count),
            seed=portfolio.seed + 1000 * number,
        )
        values = portfolio.keep_best(f"{START.name} with noise, {number + 1}", found, began)
        in_vain = 0 if max(values, default=before) > before + portfolio.least else in_vain + 1
        sweeps, number = 2 * sweeps, number + 1


def _reheated(portfolio: Portfolio) -> None:
    """From the best end so far, whatever start it is from; hotter where most runs return to it."""
    from rebasin_cli.matching.annealing import anneal

    in_vain, heat = 0, _REHEATED
    sweeps = min(_REHEATED_SWEEPS, max(_SHORT, int(_sweeps_left(portfolio) / 6 / _REHEATED_REPLICAS)))
    for number in range(_reheats(portfolio.plan)):
        count = min(_REHEATED_REPLICAS, _room(portfolio), int(_sweeps_left(portfolio) / sweeps))
        given_up = in_vain == _PATIENCE or heat > _HOTTEST or count < _FEWEST
        if portfolio.exhausted or not portfolio.ends or given_up:
            return
        best, began = max(portfolio.ends, key=lambda end: end.value), time.monotonic()
        found = anneal(
            portfolio.problem,
            portfolio.settings,
            sweeps=sweeps,
            noise=_noise(count),
            seed=portfolio.seed + 1000 * (number + 1),
            start=best.arrangement,
            hottest=heat,
        )
        values = portfolio.keep_best(f"{START.name} again, {number + 1}", found, began)
        back = sum(abs(value - best.value) <= portfolio.least for value in values)
        if max(values, default=0.0) > best.value + portfolio.least:
            in_vain = 0
        elif back >= _BACK * count:
            heat *= _HOTTER
        else:
            in_vain += 1


def _noise(count: int) -> list[float]:
    return [_NOISE[replica % len(_NOISE)] for replica in range(count)]


def _room(portfolio: Portfolio) -> int:
    """Number of runs that fit into memory side by side."""
    from rebasin_cli.matching.annealing import memory_needed

    return portfolio.memory // max(1, memory_needed(portfolio.problem))


def _sweeps_left(portfolio: Portfolio) -> float:
    """Sweeps that the work left allows."""
    from rebasin_cli.matching.annealing import sweep_work

    return max(0.0, portfolio.allowed - portfolio.spent) / max(1, sweep_work(portfolio.problem))


START = Start(
    name="annealing",
    help="Doubly stochastic matrices annealed to permutations, without and with noise.",
    rank=30,
    efforts=frozenset({"standard", "thorough"}),
    phases=(
        Phase(20, _without_noise, lambda plan: 1),
        Phase(40, _with_noise, _replicas),
        Phase(50, _reheated, lambda plan: _reheats(plan) * _REHEATED_REPLICAS, always=True),
    ),
    deep=True,
)
