"""Starts from activations: the permutations that activation matching finds on noise, and on data where there is some.

On a trained ResNet20 pair this raises the accuracy of the midpoint from 49 % to 68 % without any data.
"""

from __future__ import annotations

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
    from rebasin_cli.execution.synthetic_inputs import is_image, natural_noise, white_noise

    pair, understood, matching = task.pair, task.understood, task.matching
    asked = matching.effort == "thorough" or START.name in (matching.starts or ())
    makers: dict[str, Callable[[], Permutations]] = {}
    if can_record(pair, understood, LARGEST if asked else _LARGEST_UNASKED):
        kinds = {"noise": white_noise, **({"natural noise": natural_noise} if is_image(understood.example) else {})}
        for name, make in kinds.items():
            makers[name] = partial(_matched_on, task, partial(make, understood.example, matching.seed))
    if matching.data is not None and can_record(pair, understood):
        makers["data"] = partial(_matched_on, task, replace(task, ranks=ALONE).inputs)
    return makers


def _matched_on(task: MatchTask, inputs: Callable[[], Iterable[ExampleInput]]) -> Permutations:
    """What activation matching finds on these inputs.

    The identity where the networks do not give finite numbers, or run other operations than when they were traced.
    """
    from rebasin_cli.errors import NumericalError
    from rebasin_cli.execution.activations import pair_correlations
    from rebasin_cli.matching.activation_matching import match_activations
    from rebasin_cli.permutation import identity
    from rebasin_cli.tracing.capture import OtherPath

    assert task.understood.derivation is not None
    try:
        found = pair_correlations(task.pair, task.understood, inputs())
    except (NumericalError, OtherPath):  # noise may drive a network out of range; then there is nothing to start from
        return identity(task.understood.spec)
    return match_activations(task.understood.spec, task.understood.derivation.taps, found, seed=task.matching.seed)


def _run(portfolio: Portfolio) -> None:
    for name, make in portfolio.makers.get(START.name, {}).items():
        if portfolio.perfect or (portfolio.ends and portfolio.settings.out_of_time):
            return
        portfolio.follow(name, portfolio.seed, make())


START = Start(
    name="activations",
    help="Activation matching on noise, and on --data where given.",
    rank=40,
    efforts=frozenset({"standard", "thorough"}),
    phases=(Phase(30, _run),),
    makers=_makers,
    needs=frozenset({Need.TRACE}),
)
