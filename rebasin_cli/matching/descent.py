"""Coordinate descent: solve one cluster at a time, with all others fixed, until none can improve.

Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2022), Algorithm 1, with three differences: a cluster is visited again
only if its similarity has changed, a cluster is a group with all groups nested in its blocks, and a move is made only
if the true objective rises.

With the others fixed the objective is linear in a cluster: `f(P) = <S, P> + const`. The assignment gives the best P, so
no improvement by this cluster alone exists beyond the one that is made, and the objective never falls.

A cluster is *curved* where it acts on two axes of one tensor (recurrent weights, square residual maps): `<A, P B P^T>`
is quadratic in P, and S is its gradient at the present P0. With `D = P - P0`, the remainder `<A, D B D^T>` is at most
`2 |A| |B| m` in size, where m units of P differ from P0. So with b at least that factor, `<S, P> - b m` is a lower
bound of the objective, up to a constant, and exact at P0: what improves the bound improves the objective. It is
maximised by an assignment with the bonus b for every unit that stays. Small bonuses are tried first, since they allow
larger steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.assignment import Deferred, Matrix, deferred
from rebasin_cli.matching.clusters import Cluster
from rebasin_cli.matching.families import Index
from rebasin_cli.matching.nesting import NestedProblem, coupled_views, worth
from rebasin_cli.matching.problem import Problem, objective
from rebasin_cli.matching.similarity import Sums

_PULLS = (0.0, 0.5, 2.0, 8.0)
"""Bonuses for staying at the present permutation of a curved cluster, in mean absolute similarities; tried in turn."""


@dataclass(frozen=True, slots=True)
class Step:
    """A cluster that is being solved: its similarities, and a function that waits for its best permutations.

    Attributes:
        found: None for a curved cluster, which is solved in `end`.
    """

    number: int
    sums: Sums
    found: Deferred[dict[int, Index]] | None

    @property
    def bytes(self) -> int:
        return sum(total.numel() * total.element_size() for total in self.sums.values())


class Descent:
    """A coordinate descent: the present permutations and their objective.

    Args:
        problem: the pair.
        arrangement: where to start; changed in place.
        tolerance: a cluster moves only for a gain of more than this times the norms of the tensors that it touches.

    Attributes:
        value: the objective, updated by the gain of every move.
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
        """Make a cluster's products and begin to solve it; clusters that are `apart` may begin before it ends.

        Args:
            at_a_time: how many are solved at the same time; more than one are solved in threads.
        """
        cluster = self.problem.clusters[number]
        sums = self.similarity.of(cluster)
        if cluster.curved:
            return Step(number, sums, None)
        return Step(number, sums, deferred(lambda: self._solver(cluster, sums).solve(), at_a_time))

    def end(self, step: Step) -> bool:
        """Move the cluster if the objective rises by more than the tolerance; True if it moved."""
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
        """Whether a cluster and those of `steps` act on no common tensor, and fit into memory together."""
        ahead = sum(step.bytes for step in steps) + self.problem.bytes_of(self.problem.clusters[number])
        mine = self.problem.touched[number]
        return ahead <= self.problem.budget and all(
            set(mine).isdisjoint(self.problem.touched[step.number]) for step in steps
        )

    def place(self, number: int, tiles: Sequence[int]) -> None:
        """Solve one cluster on some of its tiles alone; the objective may fall."""
        cluster = self.problem.clusters[number]
        found = self._solver(cluster, self.similarity.of(cluster, tiles)).solve()
        self.arrangement.set(found)

    def _curved_step(self, cluster: Cluster, sums: Sums, keys: Sequence[str], least: float) -> bool:
        """A step of a curved cluster: the first of the pulled-back optima that improves the true objective.

        An optimum equal to the present permutations ends the search, since more pull cannot move them either.
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
