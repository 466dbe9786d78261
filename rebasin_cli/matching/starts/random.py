"""Random: a uniformly random permutation of every group, from the seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.matching.start import Descend, Phase, Start

if TYPE_CHECKING:
    from rebasin_cli.matching.descent import Descent
    from rebasin_cli.matching.portfolio import Portfolio


def _place(descent: Descent, seed: int) -> None:
    from rebasin_cli.permutation import random

    descent.arrangement.load(random(descent.problem.spec, seed))


def _run(portfolio: Portfolio) -> None:
    """One start; asked for alone, as many as there are restarts."""
    from rebasin_cli.permutation import random

    plan, spec = portfolio.plan, portfolio.problem.spec
    for number in range(max(1, plan.restarts or 0) if plan.repeats else 1):
        if portfolio.exhausted:
            return
        seed = portfolio.seed + number
        portfolio.follow(START.name, seed, random(spec, seed))


START = Start(
    name="random",
    help="Random permutations.",
    rank=50,
    efforts=frozenset({"thorough"}),
    descend=Descend(_place),
    phases=(Phase(10, _run),),
    repeats=True,
)
