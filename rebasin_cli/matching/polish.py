"""Run coordinate descent from a start to its end, pass by pass, within the time there is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.descent import Descent
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.result import OnPass, PassReport

Order = Literal["random", "path", "fixed"]

_ROUNDING = 1e-5
"""How far the objective followed gain by gain may stray from the true one, in units of `|A| |B|`."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How descents run.

    Attributes:
        order: `random` (a new seeded order for every pass), `path` (as the data meets the groups, there and back by
            turns), `fixed` (as the data meets them).
        deadline: on the clock of `time.monotonic`.
        began: on the same clock, for reports.
    """

    order: Order = "random"
    max_passes: int | None = None
    tolerance: float = 1e-7
    deadline: float | None = None
    began: float = 0.0
    on_pass: OnPass | None = None

    @property
    def out_of_time(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


@dataclass(frozen=True, slots=True)
class Polished:
    """Where a descent ended: `value` is the true objective, computed anew."""

    start: str
    seed: int
    arrangement: Arrangement
    value: float
    per_pass: tuple[float, ...]
    converged: bool
    seconds: float
    work: int


def forward(problem: Problem, descent: Descent) -> None:
    """Visit the groups along the data's path; match each on the tiles whose other folds are pinned or matched."""
    matched: set[int] = set()
    for number, cluster in enumerate(problem.clusters):
        known = [
            index
            for index, tile in enumerate(cluster.tiles)
            if not tile.coupled
            and all(
                set(problem.families.places.get((tile.key, fold), ())) <= matched
                for fold in range(len(problem.families.shapes[tile.key].sizes))
                if fold != tile.fold
            )
        ]
        if known:
            descent.place(number, known)
            matched.update(cluster.families)


def polish(
    problem: Problem,
    start: str,
    seed: int,
    settings: Settings,
    initial: Mapping[str, Tensor] | None = None,
) -> Polished:
    """Coordinate descent from `initial` (the identity if None; built along the path where the start is `forward`)."""
    began = time.monotonic()
    arrangement = Arrangement(problem.families, initial)
    descent = Descent(problem, arrangement, settings.tolerance)
    if start == "forward":
        forward(problem, descent)
        descent.value = problem.value(arrangement)
    generator = np.random.default_rng(seed)
    per_pass: list[float] = []
    converged = False
    while (settings.max_passes is None or len(per_pass) < settings.max_passes) and not settings.out_of_time:
        waiting = descent.unsettled()
        if not waiting:
            converged = True
            break
        visited, moved = _one_pass(descent, _ordered(waiting, settings.order, len(per_pass), generator), settings)
        per_pass.append(descent.value)
        if settings.on_pass is not None:
            elapsed = time.monotonic() - settings.began
            settings.on_pass(PassReport(start, len(per_pass), visited, moved, descent.value, elapsed))
    true = problem.value(arrangement)
    if abs(true - descent.value) > _ROUNDING * problem.norms.scale:
        raise AssertionError(f"the objective followed is {descent.value!r}, the true one {true!r}")
    seconds = time.monotonic() - began
    return Polished(start, seed, arrangement, true, tuple(per_pass), converged, seconds, descent.similarity.work)


def _one_pass(descent: Descent, order: list[int], settings: Settings) -> tuple[int, int]:
    """Visit these clusters; the numbers of groups visited and moved."""
    visited = moved = 0
    for number in order:
        if settings.out_of_time:
            break
        groups = sum(descent.problem.families.all[f].members for f in descent.problem.clusters[number].families)
        before = descent.value
        visited += groups
        moved += groups if descent.step(number) else 0
        if descent.value < before:
            raise AssertionError(f"the objective fell from {before!r} to {descent.value!r}")
    return visited, moved


def _ordered(waiting: list[int], order: Order, number: int, generator: np.random.Generator) -> list[int]:
    if order == "random":
        return [waiting[place] for place in generator.permutation(len(waiting))]
    return waiting[::-1] if order == "path" and number % 2 else waiting
