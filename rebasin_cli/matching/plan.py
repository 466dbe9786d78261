"""What an effort allows the search by weights: which starts, and how much work. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.starts import find_start, starts_of

Effort = Literal["auto", "fast", "standard", "thorough"]
EFFORTS: tuple[str, ...] = get_args(Effort)
EFFORT_HELP: Mapping[str, str] = {
    "auto": "Standard, or fast for large models.",
    "fast": "Few starting points, coarse convergence.",
    "standard": "More starting points, and restarts from perturbed solutions.",
    "thorough": "The largest search.",
}


@dataclass(frozen=True, slots=True)
class Allowance:
    """What an effort may cost.

    Attributes:
        passes_of_work, work: once the products have cost this many full passes, and this many multiply-adds, nothing
            further begins. Small networks are searched long, since it costs seconds.
        frugal: leave out the starts that a few groups show to lead nowhere.
    """

    passes_of_work: float
    work: float
    frugal: bool = False


ALLOWANCES: Mapping[str, Allowance] = {
    "fast": Allowance(4, 0.0, frugal=True),
    "standard": Allowance(14, 1e11),
    "thorough": Allowance(100, 2e12),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """A search as planned. How much of each start an effort includes stands in the start's file.

    Attributes:
        starts: names of starts.
        asked: the starts are the user's, not the effort's.
        restarts: how often the search restarts from its best end, or how many of the repeatable start there are where
            it is asked for alone; None for the effort's own numbers.
        repeats: one repeatable start is asked for, alone.
    """

    effort: str
    starts: tuple[str, ...]
    asked: bool
    restarts: int | None
    repeats: bool
    passes_of_work: float
    work: float
    frugal: bool


def make_plan(effort: str, starts: Sequence[str] | None, restarts: int | None) -> Plan:
    """The plan of an effort, with these starts and restarts in place of its own.

    Raises:
        UsageError: an unknown effort or start.
    """
    if effort not in ALLOWANCES:
        raise UsageError(f"unknown effort {effort!r}", hint=f"efforts are: {', '.join(EFFORTS)}")
    allowed, chosen = ALLOWANCES[effort], tuple(starts_of(effort) if starts is None else starts)
    known = [find_start(name) for name in chosen]
    return Plan(
        effort=effort,
        starts=chosen,
        asked=starts is not None,
        restarts=restarts,
        repeats=len(known) == 1 and known[0].repeats,
        passes_of_work=allowed.passes_of_work,
        work=allowed.work,
        frugal=allowed.frugal and starts is None,
    )
