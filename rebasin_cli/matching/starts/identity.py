"""The identity: B as it is. The right start for a fine-tuned copy, and a useless one for unrelated weights.

Where two networks have nothing in common unit by unit, a group matched with all others as they are keeps about one unit
in its place, by chance; in a fine-tuned copy it keeps nearly all of them. A few of the cheapest groups tell which.
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING

from rebasin_cli.matching.start import Descend, Start

if TYPE_CHECKING:
    from rebasin_cli.matching.problem import Problem

SHARE_OF_WORK = 0.04
"""Largest share of the work of one full pass that the question may cost; one group is asked whatever it costs."""
ENOUGH = 256
"""Number of units after which no further group is asked."""
LEAST_KEPT = 0.1
"""Share of the units, beyond those that stay by chance, that must stay in place for the identity to be promising."""


def near_identity(problem: Problem) -> bool:
    """Whether more units than by chance are matched with the one in the same place, all other groups unpermuted."""
    from rebasin_cli.matching.arrangement import Arrangement
    from rebasin_cli.matching.nesting import NestedProblem

    arrangement = Arrangement(problem.families)
    similarity = problem.similarity(arrangement)
    kept = asked = groups = 0
    for cluster in sorted(problem.clusters, key=lambda one: (problem.work(one), one.root)):
        if not cluster.tiles or cluster.curved or problem.families.all[cluster.root].size < 8:
            continue
        if asked >= ENOUGH or (asked and similarity.work + problem.work(cluster) > SHARE_OF_WORK * problem.full_pass):
            break
        found = NestedProblem(problem.families, cluster, similarity.of(cluster)).solve()[cluster.root]
        kept += int((found == arrangement.perms[cluster.root]).sum())
        asked += found.size
        groups += 1
    # A random permutation has one fixed point on average, with variance one; so have `groups` of them `groups` each.
    by_chance = groups + 2 * sqrt(groups)
    return not asked or kept - by_chance >= LEAST_KEPT * (asked - groups)


START = Start(
    name="identity",
    help="B as it is.",
    rank=10,
    efforts=frozenset({"fast", "standard", "thorough"}),
    descend=Descend(promising=near_identity),
)
