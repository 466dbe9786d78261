"""Activation matching (Ainsworth, Hayase and Srinivasa, "Git Re-Basin", 2022, section 3.1).

It pairs the units that are most alike on the same inputs, in what the weights after them read; with `mix` below 1 the
weights count too.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rebasin_cli.matching.method import MatchTask, Method, Need
from rebasin_cli.options import option, options_class

if TYPE_CHECKING:
    from torch import Tensor

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
    likeness: str = option(
        "What of two units' activations is compared.",
        group="Matching",
        metavar="KIND",
        choices=("covariance", "correlation", "directions"),
        default="covariance",
    )


def _match(task: MatchTask) -> MatchResult:
    from rebasin_cli.matching.activation_matching import match_recorded

    deadline = _deadline(task)
    return match_recorded(task, _recorded(task, deadline), task.options(ActivationOptions).mix, deadline)


def _assist(task: MatchTask) -> None:
    """Record activations on this process's share of the data, and add them to those of the others."""
    _recorded(task, _deadline(task))


def _deadline(task: MatchTask) -> float | None:
    limit = task.matching.time_limit
    return None if limit is None else time.monotonic() + limit


def _recorded(task: MatchTask, deadline: float | None) -> list[Tensor]:
    from rebasin_cli.execution.activations import LIKENESSES
    from rebasin_cli.matching.activation_matching import record

    kind = LIKENESSES[LIKENESSES.index(task.options(ActivationOptions).likeness)]
    return record(task, kind, deadline)


METHOD = Method(
    name="activation",
    help="Match the units that are most alike on --data, or on noise without data.",
    match=_match,
    needs=frozenset({Need.TRACE}),
    options=ActivationOptions,
    assist=_assist,
    unused=("starts", "restarts", "max_passes"),  # activations alone take one descent, a mixture starts of its own
)
