"""Activation matching (Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2022, section 3.1).

It maximises the sum of the correlations of paired units on the same inputs; with `mix` below 1 the weights count too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.matching.method import MatchTask, Method, Need
from rebasin_cli.options import option, options_class

if TYPE_CHECKING:
    from rebasin_cli.matching.result import MatchResult


@options_class
class ActivationOptions:
    """The options of activation matching."""

    mix: float = option(
        "Share of activations against weights in activation matching.",
        group="Matching",
        at_least=0.001,
        at_most=1,
        default=1.0,
    )


def _match(task: MatchTask) -> MatchResult:
    from rebasin_cli.matching.activation_matching import match_recorded, record

    return match_recorded(task, record(task), task.options(ActivationOptions).mix)


def _assist(task: MatchTask) -> None:
    """Record activations on this process's share of the data, and add them to those of the others."""
    from rebasin_cli.matching.activation_matching import record

    record(task)


METHOD = Method(
    name="activation",
    help="Maximize the correlation of the units' activations on --data, or on noise without data.",
    match=_match,
    needs=frozenset({Need.TRACE}),
    options=ActivationOptions,
    assist=_assist,
    unused=("starts", "restarts", "max_passes"),  # activations alone take one descent, a mixture starts of its own
)
