"""Coordinate descent: solve one cluster at a time with all others as they stand, until none can improve.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2022), Algorithm 1, with three differences: only clusters with a
neighbour that moved are looked at again, a cluster is a group with all that is nested in its blocks, and a move is made
only if the true objective rises.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.assignment import Matrix
from rebasin_cli.matching.clusters import Cluster
from rebasin_cli.matching.folds import Index
from rebasin_cli.matching.nesting import NestedProblem, coupled_views, worth
from rebasin_cli.matching.objective import objective
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.similarity import Sums
from rebasin_cli.matching.workers import Deferred, deferred

_PULLS = (0.0, 0.5, 2.0, 8.0)
"""How strongly a group on two axes of one tensor is held back, in mean absolute similarities, until a step helps."""


@dataclass(frozen=True, slots=True)
class Step:
    """A cluster that is being solved: its similarities, and its best permutations when they are asked for.

    Attributes:
        found: None for a cluster whose objective is not linear, which is solved at the end.
    """

    number: int
    sums: Sums
    found: Deferred[dict[int, Index]] | None

    @property
    def bytes(self) -> int:
        return sum(total.numel() * total.element_size() for total in self.sums.values())


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
        """Solve one cluster; True if it moved."""
        return self.end(self.begin(number))

    def begin(self, number: int, at_a_time: int = 1) -> Step:
        """Make a cluster's products and begin to solve it; others may begin before it ends, if it is `apart` of them.

        Args:
            at_a_time: how many are in flight; more than one are solved in threads.
        """
        cluster = self.problem.clusters[number]
        sums = self.similarity.of(cluster)
        if cluster.curved:
            return Step(number, sums, None)
        return Step(number, sums, deferred(lambda: self._solver(cluster, sums).solve(), at_a_time))

    def end(self, step: Step) -> bool:
        """Move the cluster; True if it moved. The objective rises by more than the tolerance, or nothing changes."""
        cluster, sums = self.problem.clusters[step.number], step.sums
        least = self.tolerance * self.problem.norms.part(self.problem.touched[step.number])
        if step.found is None:
            return self._curved_step(cluster, sums, self.problem.touched[step.number], least)
        found = step.found()
        families = self.problem.families
        gain = worth(families, sums, found) - worth(families, sums, self._current(cluster))
        if not gain > least:
            return False
        self.arrangement.set(found)
        self.value += gain
        return True

    def apart(self, number: int, steps: Collection[Step]) -> bool:
        """Whether a cluster and those of `steps` see nothing of each other, and fit into memory together."""
        ahead = sum(step.bytes for step in steps) + self.problem.bytes_of(self.problem.clusters[number])
        mine = self.problem.touched[number]
        return ahead <= self.problem.budget and all(
            set(mine).isdisjoint(self.problem.touched[step.number]) for step in steps
        )

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
