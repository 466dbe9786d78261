"""The interface of a start of the search by weights: where it begins, when its turn is, and what it needs.

A start is one file in `starts/` that defines `START`; nothing else knows its name. Imports nothing heavy, because help
lists the starts: a start's file imports what it works with inside its functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rebasin_cli.matching.method import MatchTask, Need

if TYPE_CHECKING:
    from rebasin_cli.matching.descent import Descent
    from rebasin_cli.matching.plan import Plan
    from rebasin_cli.matching.portfolio import Portfolio
    from rebasin_cli.matching.problem import Problem
    from rebasin_cli.permutation import Permutations

Makers = Mapping[str, Callable[[], "Permutations"]]
"""Makers of permutations to start from, by the name that the result shows."""


@dataclass(frozen=True, slots=True)
class Descend:
    """A start that is nothing but the first point of one coordinate descent.

    Attributes:
        place: moves a descent, which stands at the identity, to the start, given the seed; None to stay there.
        promising: whether the start is worth its descent; asked where little work is allowed. None for always.
    """

    place: Callable[[Descent, int], None] | None = None
    promising: Callable[[Problem], bool] | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of a search that is more than one descent.

    Attributes:
        stage: phases run in ascending stages, after the descents of all starts without phases.
        run: adds ends to the portfolio.
        runs: how many descents the phase will follow at the most, for the estimate of the time left.
        always: the phase does not depend on its start being planned, only on what the plan says of restarts.
    """

    stage: int
    run: Callable[[Portfolio], None]
    runs: Callable[[Plan], int] = lambda plan: 0
    always: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """Where the search by weights may begin.

    Attributes:
        help: one line for the user.
        rank: its place among the starts of an effort, and in lists.
        efforts: those that include it without being asked.
        descend: for `weight_matching`, and for the portfolio where the start has no phases.
        phases: what the portfolio runs.
        makers: of permutations to start from, for starts that run the networks; the portfolio gets them by the start's
            name.
        deep: its phases go on from the ends of the descents before them, which therefore are followed to convergence.
        repeats: asked for alone, it is run as often as the plan has restarts.
        needs: what it needs besides the weights; without it the start is left out.
    """

    name: str
    help: str
    rank: int
    efforts: frozenset[str]
    descend: Descend | None = None
    phases: tuple[Phase, ...] = ()
    makers: Callable[[MatchTask], Makers] | None = None
    deep: bool = False
    repeats: bool = False
    needs: frozenset[Need] = frozenset()
