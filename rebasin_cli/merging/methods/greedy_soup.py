"""Greedy soup (Wortsman et al. 2022, "Model soups", recipe 1).

The networks are sorted by their score on held-out data, the best first. Each is added to the mean if that does not
lower the score of the mean.
"""

from __future__ import annotations

from rebasin_cli.merging.method import Candidates, MergeMethod, Need, Weighting
from rebasin_cli.merging.methods.linear import weighted_sum


def choose(candidates: Candidates) -> tuple[float, ...]:
    """The share of each network: equal for those that are chosen, 0 for the others."""

    def shares(chosen: list[int]) -> list[float]:
        return [1 / len(chosen) if number in chosen else 0.0 for number in range(candidates.count)]

    alone = [candidates.score(shares([number])) for number in range(candidates.count)]
    order = sorted(range(candidates.count), key=lambda number: -alone[number])
    chosen, best = [order[0]], alone[order[0]]
    for number in order[1:]:
        score = candidates.score(shares([*chosen, number]))
        if score >= best:
            chosen, best = [*chosen, number], score
    return tuple(shares(chosen))


METHOD = MergeMethod(
    name="greedy-soup",
    help="Mean of those networks that do not lower its score on held-out data (Wortsman et al. 2022).",
    combine=weighted_sum,
    needs=frozenset({Need.DATA}),
    weighting=Weighting.NONE,
    choose=choose,
)
