"""Is B anywhere near A as it stands? Asked of the cheapest groups, before a descent from the identity is paid for.

Where two networks have nothing in common unit by unit, a group matched with all others as they are keeps about one unit
in its place, by chance; in a fine-tuned copy it keeps nearly all of them.
"""

from __future__ import annotations

from math import sqrt

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.nesting import NestedProblem
from rebasin_cli.matching.problem import Problem

SHARE_OF_WORK = 0.04
"""Of the products of all groups, what the question may cost (and one group whatever it costs)."""
ENOUGH = 256
"""Units after which nothing more is asked."""
LEAST_KEPT = 0.1
"""Units that stay where they are beyond those that do by chance, of all that could: from here on the identity is worth
following."""


def near_identity(problem: Problem) -> bool:
    """Whether more units than by chance are matched with the one in the same place, others being as they are."""
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
    by_chance = groups + 2 * sqrt(groups)  # one of each group, with as much variance, and two standard deviations
    return not asked or kept - by_chance >= LEAST_KEPT * (asked - groups)
