"""Coordinate descent: solve one cluster at a time with all others as they stand, until none can improve.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2022), Algorithm 1, with three differences: only clusters with a
neighbour that moved are looked at again, a cluster is a group with all that is nested in its blocks, and a move is made
only if the true objective rises.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.assignment import Matrix
from rebasin_cli.matching.clusters import Cluster
from rebasin_cli.matching.folds import Index
from rebasin_cli.matching.nesting import NestedProblem, coupled_views, worth
from rebasin_cli.matching.objective import objective
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.similarity import Sums

_PULLS = (0.0, 0.5, 2.0, 8.0)
"""How strongly a group on two axes of one tensor is held back, in mean absolute similarities, until a step helps."""


class Descent:
    """A coordinate descent under way.

    Args:
        problem: the pair.
        arrangement: where to start; changed in place.
        tolerance: a cluster moves only for a gain of more than this times the norms of the tensors that it touches.

    Attributes:
        value: the objective, followed gain by gain.
    """

    def __init__(self, problem: Problem, arrangement: Arrangement, tolerance: float) -> None:
        self.problem, self.arrangement, self.tolerance = problem, arrangement, tolerance
        self.similarity = problem.similarity(arrangement)
        self.value = problem.value(arrangement)

    def unsettled(self) -> list[int]:
        """The clusters whose similarity has changed since they were last solved."""
        return [
            i for i, cluster in enumerate(self.problem.clusters) if cluster.tiles and self.similarity.moved(cluster)
        ]

    def step(self, number: int) -> bool:
        """Solve one cluster; True if it moved. The objective rises by more than the tolerance, or nothing changes."""
        cluster = self.problem.clusters[number]
        sums = self.similarity.of(cluster)
        least = self.tolerance * self.problem.norms.part(self.problem.touched[number])
        if cluster.curved:
            return self._curved_step(cluster, sums, self.problem.touched[number], least)
        found = self._solver(cluster, sums).solve()
        families = self.problem.families
        gain = worth(families, sums, found) - worth(families, sums, self._current(cluster))
        if not gain > least:
            return False
        self.arrangement.set(found)
        self.value += gain
        return True

    def place(self, number: int, tiles: Sequence[int]) -> None:
        """Solve one cluster on some of its tiles alone, whatever that does to the objective."""
        cluster = self.problem.clusters[number]
        found = self._solver(cluster, self.similarity.of(cluster, tiles)).solve()
        self.arrangement.set(found)

    def _curved_step(self, cluster: Cluster, sums: Sums, keys: Sequence[str], least: float) -> bool:
        """A step judged by the true objective, because the similarity is only its linearisation here.

        Where the linearised optimum overshoots, it is pulled back towards the present permutation: with enough pull the
        linearisation is a lower bound of the objective.
        """
        current = self._current(cluster)
        before = self._true(keys)
        solver = self._solver(cluster, sums)
        for pull in _PULLS:
            found = solver.solve(self._bonus(cluster, sums, pull))
            if all(np.array_equal(found[index], current[index]) for index in found):
                return False
            self.arrangement.set(found)
            gain = self._true(keys) - before
            if gain > least:
                self.value += gain
                return True
            self.arrangement.set(current)
        return False

    def _solver(self, cluster: Cluster, sums: Sums) -> NestedProblem:
        families = self.problem.families
        shared = [
            views
            for tile in cluster.tiles
            if tile.coupled
            and (views := coupled_views(families, tile.axes, *self.similarity.views(cluster, tile))) is not None
        ]
        return NestedProblem(families, cluster, sums, shared, self._current(cluster))

    def _bonus(self, cluster: Cluster, sums: Sums, pull: float) -> Matrix | None:
        if pull == 0.0:
            return None
        current = self.arrangement.perms[cluster.root][0]
        means = (float(total.abs().mean()) * total.shape[0] / len(current) for total in sums.values())
        size = max(means, default=1.0)
        bonus = np.zeros((len(current), len(current)))
        bonus[np.arange(len(current)), current] = pull * size
        return bonus

    def _current(self, cluster: Cluster) -> dict[int, Index]:
        return {index: self.arrangement.perms[index] for index in cluster.families}

    def _true(self, keys: Sequence[str]) -> float:
        return objective(self.problem.a, self.problem.b, keys, self.arrangement)
