"""Learned matching: permutations whose midpoint has the lowest loss, by the straight-through estimator.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2022), Algorithm 2. It starts from the best of weight matching,
activation matching and a mixture of both, so the result is never worse than these by its own measure.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rebasin_cli.matching.method import MatchTask, Method, Need
from rebasin_cli.options import option, options_class

if TYPE_CHECKING:
    from rebasin_cli.matching.result import MatchResult


@options_class
class LearnedOptions:
    """The options of learned matching."""

    learning_steps: int = option(
        "Number of batches to learn from.", group="Learning", metavar="N", at_least=1, default=100
    )
    learning_rate: float = option(
        "Step size of learning, relative to the norm of the weights.",
        group="Learning",
        metavar="R",
        at_least=1e-6,
        default=0.03,
    )
    keep_similarity: float | None = option(
        "Share of weight matching's similarity that learning must keep.",
        group="Learning",
        metavar="S",
        at_least=0,
        at_most=1,
        default=None,
        shown_default="at least that of B as it is",
    )


def _match(task: MatchTask) -> MatchResult:
    from rebasin_cli.data.ranks import ALONE
    from rebasin_cli.matching.activation_matching import further_matchings
    from rebasin_cli.matching.search import match_weights
    from rebasin_cli.matching.straight_through import Learning, learn

    options, limit = task.options(LearnedOptions), task.matching.time_limit
    task = replace(task, ranks=ALONE, shuffle=True)
    deadline = None if limit is None else time.monotonic() + limit
    learning = Learning(
        options.learning_steps, options.learning_rate, task.matching.seed, deadline, options.keep_similarity
    )
    return learn(task, match_weights(task), further_matchings(task, deadline), learning, METHOD.name)


METHOD = Method(
    name="learned",
    help="Learn from data the permutations whose midpoint with A has the lowest loss (straight-through estimator).",
    match=_match,
    learns=True,
    aliases=("straight-through",),
    needs=frozenset({Need.DATA, Need.GRADIENTS}),
    options=LearnedOptions,
)
