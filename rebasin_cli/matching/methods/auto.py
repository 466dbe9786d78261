"""Automatic choice: weight matching, or with data the best of several matchings by the loss of their midpoint.

The candidates are the identity, weight matching, activation matching and a mixture of both: those that learned matching
starts from, without the learning.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from rebasin_cli.matching.method import MatchTask, Method

if TYPE_CHECKING:
    from rebasin_cli.matching.result import MatchResult


def _match(task: MatchTask) -> MatchResult:
    from rebasin_cli.data.ranks import ALONE
    from rebasin_cli.matching.activation_matching import further_matchings
    from rebasin_cli.matching.search import match_weights
    from rebasin_cli.matching.straight_through import Learning, learn

    limit = task.matching.time_limit
    deadline = None if limit is None else time.monotonic() + limit
    if task.matching.data is None:
        return match_weights(task)
    task = replace(task, ranks=ALONE, shuffle=True)
    choice = Learning(steps=0, rate=0.0, seed=task.matching.seed, deadline=deadline)
    return learn(task, match_weights(task), further_matchings(task, deadline), choice, METHOD.name)


METHOD = Method(
    name="auto",
    help="Without data like weight; with data the best of several matchings by the loss of the midpoint.",
    match=_match,
    learns=True,
)
