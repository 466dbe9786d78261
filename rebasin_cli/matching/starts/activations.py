"""Starts from activations: the permutations that activation matching finds on noise, and on data where there is some.

On a trained ResNet20 pair this raises the accuracy of the midpoint from 49 % to 68 % without any data. A start that
fails is left out, and the result says so: the search needs none of them.
"""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from rebasin_cli.matching.method import MatchTask, Need
from rebasin_cli.matching.start import Makers, Phase, Start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rebasin_cli.matching.portfolio import Portfolio
    from rebasin_cli.model.example_input import ExampleInput
    from rebasin_cli.permutation import Permutations

_LARGEST_UNASKED = 1 << 24
"""Largest number of parameters of a model that is run on noise where nobody asked for it: for a ResNet-50 pair this
start made `standard` half as long again and did not win."""


def _makers(task: MatchTask) -> Makers:
    """Noise of every kind that fits the input, and the data."""
    from rebasin_cli.data.ranks import ALONE
    from rebasin_cli.execution.activations import LARGEST, can_record
    from rebasin_cli.matching.activation_matching import ENOUGH, sources

    limit = task.matching.time_limit
    deadline = None if limit is None else time.monotonic() + limit
    asked = task.matching.effort == "thorough" or START.name in (task.matching.starts or ())
    noisy = can_record(task.pair, task.understood, LARGEST if asked else _LARGEST_UNASKED)
    makers: dict[str, Callable[[], Permutations]] = {}
    for name, inputs in sources(replace(task, ranks=ALONE, shuffle=True), ENOUGH).items():
        if noisy or (name == "data" and can_record(task.pair, task.understood)):
            makers[name] = partial(_matched_on, task, inputs, deadline)
    return makers


def _matched_on(task: MatchTask, inputs: Callable[[], Iterable[ExampleInput]], deadline: float | None) -> Permutations:
    """What activation matching finds on these inputs.

    Raises:
        RebasinError: the networks cannot be run on them as they were traced, or give numbers that are not finite.
    """
    from rebasin_cli.execution.activations import pair_likenesses
    from rebasin_cli.matching.activation_matching import DEFAULT, match_activations

    assert task.understood.derivation is not None
    found = pair_likenesses(task.pair, task.understood, inputs(), DEFAULT, deadline=deadline)
    return match_activations(task.understood.spec, task.understood.derivation.taps, found, seed=task.matching.seed)


def _run(portfolio: Portfolio) -> None:
    from rebasin_cli.errors import DataError, RebasinError
    from rebasin_cli.matching.arrangement import Arrangement

    for name, make in portfolio.makers.get(START.name, {}).items():
        if portfolio.perfect or (portfolio.ends and portfolio.settings.out_of_time):
            return
        try:
            initial = make()
        except RebasinError as error:
            if isinstance(error, DataError) and name == "data":
                raise  # the data are the user's, who should know
            portfolio.notes.append(f"the start from activations on {name} was left out: {error.message}")
            continue
        portfolio.follow(name, portfolio.seed, initial)
    if not portfolio.ends:
        portfolio.follow("identity", portfolio.seed, Arrangement(portfolio.problem.families).permutations())


START = Start(
    name="activations",
    help="Activation matching on noise, and on --data where given.",
    rank=40,
    efforts=frozenset({"standard", "thorough"}),
    phases=(Phase(30, _run),),
    makers=_makers,
    needs=frozenset({Need.TRACE}),
)
