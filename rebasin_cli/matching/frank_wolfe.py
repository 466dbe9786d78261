"""Frank–Wolfe over all groups at once, on doubly stochastic matrices, from the barycentre or near it.

The objective is multilinear in the groups, so its gradient for one group is the similarity with its neighbours mixed,
and that is *linear in the mixture*: after a step `X' = (1 - t) X + t D` it is `(1 - t) S(X) + t S(D)`. So an iteration
costs the similarities of one arrangement D, mended from those of the last, and no doubly stochastic matrix is ever
multiplied. The step on the line is exact: along `D - X` the objective is a parabola with slope `<S(X), D - X>` and
curvature `<S(D) - S(X), D - X> / 2` (for a tensor with three permuted axes, up to its cubic term). Frank–Wolfe for
re-basin: Crisostomi et al., "C2M3: Cycle-Consistent Multi-Model Merging" (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Cluster
from rebasin_cli.matching.families import Families
from rebasin_cli.matching.folds import Index
from rebasin_cli.matching.mixture import MixedArrangement, Mixture, Vertex
from rebasin_cli.matching.nesting import NestedProblem, worth
from rebasin_cli.matching.polish import Settings
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.similarity import Sums
from rebasin_cli.matching.workers import at_a_time, deferred
from rebasin_cli.permutation import Permutations

ITERATIONS = 24
_LEAST_SLOPE = 3e-4
"""Where the gap to the optimum of the linearisation falls below this cosine, rounding and descent do the rest."""
_RANDOM_VERTICES = 4


def memory_needed(problem: Problem) -> int:
    """Bytes that the mixed similarities of all clusters take."""
    return sum(map(problem.bytes_of, problem.clusters))


def near_barycentre(problem: Problem, seed: int, perturbation: float) -> Mixture:
    """The barycentre, moved by `perturbation` towards the mean of a few random arrangements."""
    if perturbation == 0.0:
        return Mixture(1.0, ())
    generator = np.random.default_rng(seed)
    weight = perturbation / _RANDOM_VERTICES
    vertices = tuple((weight, _random_vertex(problem.families, generator)) for _ in range(_RANDOM_VERTICES))
    return Mixture(1.0 - perturbation, vertices)


def frank_wolfe(
    problem: Problem, settings: Settings, start: Mixture, *, iterations: int = ITERATIONS
) -> tuple[Permutations, int]:
    """Follow the objective inside the polytope from `start`, then round group by group.

    Args:
        settings: the tolerance and the deadline count; past the deadline what there is is rounded.

    Returns:
        The rounded permutations, to be polished by coordinate descent, and the multiply-adds spent in products.
    """
    families, clusters = problem.families, [c for c in problem.clusters if c.tiles]
    mixture = start
    mixed = MixedArrangement(problem, mixture)
    gradient = [mixed.similarity(cluster) for cluster in clusters]
    starting = mixed.work
    arrangement = Arrangement(families)
    similarity = problem.similarity(arrangement)
    for _ in range(iterations):
        if settings.out_of_time:
            break
        vertex = _solved(problem, clusters, gradient)
        slope = sum(worth(families, sums, vertex) - mixture.product(families, sums) for sums in gradient)
        if slope <= _LEAST_SLOPE * problem.norms.scale:
            break
        arrangement.set(vertex)
        bend = 0.0
        for cluster in clusters:
            there = similarity.of(cluster)
            bend += worth(families, there, vertex) - mixture.product(families, there)
        step = _step(slope, (bend - slope) / 2)
        for cluster, sums in zip(clusters, gradient, strict=True):
            _move(sums, similarity.of(cluster), step)
        mixture = mixture.towards(vertex, step)
    rounded, rounding = _round(problem, mixture)
    return rounded, starting + similarity.work + rounding


def _solved(problem: Problem, clusters: Sequence[Cluster], gradient: Sequence[Sums]) -> Vertex:
    """The vertex to which the gradient points: every cluster's best permutations."""
    most = at_a_time(problem.device)

    def solve(cluster: Cluster, sums: Sums) -> Vertex:
        return NestedProblem(problem.families, cluster, sums).solve()

    found = [deferred(partial(solve, *pair), most) for pair in zip(clusters, gradient, strict=True)]
    return {index: perm for one in found for index, perm in one().items()}


def _step(slope: float, curvature: float) -> float:
    """The best t in [0, 1] for `slope * t + curvature * t^2` with a positive slope."""
    return 1.0 if curvature >= 0 else min(1.0, -slope / (2 * curvature))


def _move(sums: Sums, there: Sums, step: float) -> None:
    for axes, matrix in sums.items():
        matrix.lerp_(there[axes].to(matrix.dtype), step)  # wide clusters are kept in float32


def _round(problem: Problem, mixture: Mixture) -> tuple[Permutations, int]:
    """One group after the other to its best permutation with the others as they are: never lowers the objective."""
    if mixture.centre == 0.0 and len(mixture.vertices) == 1:
        arrangement = Arrangement(problem.families)
        arrangement.set(mixture.vertices[0][1])
        return arrangement.permutations(), 0
    mixed = MixedArrangement(problem, mixture)
    for cluster in problem.clusters:
        if cluster.tiles:
            mixed.fix(cluster, NestedProblem(problem.families, cluster, mixed.similarity(cluster)).solve())
    return mixed.fixed.permutations(), mixed.work


def _random_vertex(families: Families, generator: np.random.Generator) -> dict[int, Index]:
    return {
        family.index: np.stack([generator.permutation(family.size) for _ in family.names]) for family in families.all
    }
