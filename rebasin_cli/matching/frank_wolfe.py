"""Frank–Wolfe over all groups at once, on doubly stochastic matrices, from the barycentre or near it.

Frank and Wolfe, "An algorithm for quadratic programming" (1956): the linearisation of the objective at X is maximised
at a vertex D of the polytope, and X moves towards D. The vertices are permutations (Birkhoff), so D is one assignment
per cluster. For matching weights: Crisostomi et al., "C2M3: Cycle-Consistent Multi-Model Merging" (2024).

The gradient for one group is its similarity S, with the other groups' matrices applied to B. A tensor with two permuted
axes gives a term that is linear in the neighbour's matrix, so after the step `X' = (1 - t) X + t D` the gradient is
`S(X') = (1 - t) S(X) + t S(D)`. An iteration costs the similarities of one arrangement D, updated from those of the
last one, and no doubly stochastic matrix is ever multiplied.

The step is an exact line search. Along `X + t (D - X)` the objective is `f(X) + t s + t^2 c` with `s = <S(X), D - X>`.
Its derivative at t = 1 is `<S(D), D - X> = s + 2 c`, so `c = (<S(D), D - X> - s) / 2`, and a parabola with `s > 0` is
largest on [0, 1] at `t = min(1, -s / (2 c))`, or at 1 where it is convex. (For tensors with three permuted axes both
formulas leave out a term of third order; descent from the rounded end evaluates the true objective.)

`s` is the Frank–Wolfe gap, which is zero exactly at stationary points: iterations stop where it is small.
The end is rounded group by group: with the others fixed the objective is linear in a group, so its best permutation is
at least as good as its matrix, and rounding never lowers the objective.

A point is stored as a *mixture*, a convex combination `X_g = w_0 J_g + sum_k w_k P_k,g` with the same weights in every
group, J the barycentre (every cell equally likely) and P_k arrangements. It is never stored as a matrix: that would
cost n^2 numbers for a width of n, and a product to apply; a few gathers do both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.assignment import at_a_time, deferred
from rebasin_cli.matching.clusters import Cluster
from rebasin_cli.matching.families import GroupFamilies, Index, TensorFold
from rebasin_cli.matching.nesting import NestedProblem, worth
from rebasin_cli.matching.polish import Settings
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.products import Products, column_pieces, gathered, slab
from rebasin_cli.matching.similarity import Sums
from rebasin_cli.permutation import Permutations

ITERATIONS = 24
_LEAST_SLOPE = 3e-4
"""Gap to the optimum of the linearisation, as a cosine, below which iterations stop."""
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
    """Maximise the objective inside the polytope from `start`, then round group by group.

    Args:
        settings: the deadline; after it the present point is rounded.

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
    """The vertex that maximises the linearisation: every cluster's best permutations."""
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
    """Replace one group after the other by its best permutation given the others: this never lowers the objective."""
    if mixture.centre == 0.0 and len(mixture.vertices) == 1:
        arrangement = Arrangement(problem.families)
        arrangement.set(mixture.vertices[0][1])
        return arrangement.permutations(), 0
    mixed = MixedArrangement(problem, mixture)
    for cluster in problem.clusters:
        if cluster.tiles:
            mixed.fix(cluster, NestedProblem(problem.families, cluster, mixed.similarity(cluster)).solve())
    return mixed.fixed.permutations(), mixed.work


def _random_vertex(families: GroupFamilies, generator: np.random.Generator) -> dict[int, Index]:
    return {
        family.index: np.stack([generator.permutation(family.size) for _ in family.names]) for family in families.all
    }


Vertex = Mapping[int, Index]
"""Permutations by family."""


@dataclass(frozen=True, slots=True)
class Mixture:
    """A convex combination of the barycentre (weight `centre`) and vertices."""

    centre: float
    vertices: tuple[tuple[float, Vertex], ...]

    def towards(self, vertex: Vertex, step: float) -> Mixture:
        """`(1 - step) X + step vertex`."""
        if step >= 1.0:
            return Mixture(0.0, ((1.0, vertex),))
        kept = tuple((weight * (1 - step), other) for weight, other in self.vertices)
        return Mixture(self.centre * (1 - step), (*kept, (step, vertex)))

    def product(self, families: GroupFamilies, sums: Sums) -> float:
        """`<S, X>` over the cells of one cluster."""
        total = sum(
            self.centre * float(matrix.sum()) / matrix.shape[0] if self.centre else 0.0 for matrix in sums.values()
        )
        return total + sum(weight * worth(families, sums, vertex) for weight, vertex in self.vertices)


def average_labels(clusters: tuple[Cluster, ...], families: GroupFamilies) -> dict[TensorFold, Index]:
    """For every place, which positions the barycentre averages: positions of equal label become their mean."""
    labels = {place: np.arange(families.shapes[place[0]].sizes[place[1]]) for place in families.places}
    for cluster in clusters:
        for tile in cluster.tiles:
            labels[tile.place][tile.positions] = tile.positions.min(axis=0)
    return labels


def averaged(view: Tensor, fold: int, labels: Index) -> Tensor:
    """The tensor with all positions of equal label on a fold replaced by their mean."""
    index = torch.from_numpy(labels).to(view.device)
    counts = torch.bincount(index, minlength=len(labels)).clamp(min=1)
    sums = torch.zeros_like(view).index_add_(fold, index, view)
    shape = [1] * view.dim()
    shape[fold] = -1
    return (sums / counts.view(shape)).index_select(fold, index)


class MixedArrangement:
    """A mixture in which some clusters are permutations already.

    Attributes:
        fixed: the permutations of the clusters that are; the identity elsewhere.
        work: multiply-adds spent in products so far.
    """

    def __init__(self, problem: Problem, mixture: Mixture) -> None:
        self.problem, self.mixture, self.work = problem, mixture, 0
        self.fixed = Arrangement(problem.families)
        self._labels = average_labels(problem.clusters, problem.families)
        self._parts = [(weight, Arrangement(problem.families)) for weight, _ in mixture.vertices]
        for (_, part), (_, vertex) in zip(self._parts, mixture.vertices, strict=True):
            part.set(vertex)

    def fix(self, cluster: Cluster, vertex: Vertex) -> None:
        """Make a cluster a permutation."""
        self.fixed.set(vertex)
        for _, part in self._parts:
            part.set(vertex)
        for tile in cluster.tiles:
            self._labels[tile.place][tile.positions] = tile.positions

    def similarity(self, cluster: Cluster) -> Sums:
        """Similarities of a cluster's cells with the mixture applied to all others: the gradient of the objective.

        One tensor of B at a time is held in float32. Coupled tiles are left out.
        """
        products = Products((self.problem.a, self.problem.b), self.fixed, self.problem.device)
        shapes = self.problem.families.shapes
        sums: Sums = {}
        for tile in cluster.tiles:
            if tile.coupled:
                continue
            rows_a, rows_b = products.rows(tile, products.gathers_of(cluster, tile))
            view = self.problem.b[tile.key].detach().reshape(shapes[tile.key].sizes)
            view = view.to(device=self.problem.device, dtype=torch.float32)
            for fold in range(view.dim()):
                if fold != tile.fold and (tile.key, fold) in self.problem.families.places:
                    view = self._mixed_on(view, (tile.key, fold))
            look = products.frame_of(tile)
            part = torch.zeros(len(rows_a), len(rows_a), device=self.problem.device)
            for piece in column_pieces(shapes[tile.key], look, rows_a.size, None):
                left, right = (
                    slab(side, shapes[tile.key], look, rows, piece, {}, self.problem.device)
                    for side, rows in ((self.problem.a[tile.key], rows_a), (view, rows_b))
                )
                part.addmm_(left, right.T)
                self.work += part.numel() * left.shape[1]
            sums[tile.axes] = sums[tile.axes].add_(part) if tile.axes in sums else part.double()
        return sums

    def _mixed_on(self, view: Tensor, place: TensorFold) -> Tensor:
        """The tensor with the mixture applied on one fold."""
        total = None
        if self.mixture.centre:
            average = averaged(view, place[1], self._labels[place])
            total = _gathered(average, place, self.fixed).mul(self.mixture.centre)
        for weight, part in self._parts:
            seen = _gathered(view, place, part)
            total = seen * weight if total is None else total.add_(seen, alpha=weight)
        return view if total is None else total


def _gathered(view: Tensor, place: TensorFold, arrangement: Arrangement) -> Tensor:
    gather = arrangement.gather(place)
    return view if gather is None else gathered(view, place[1], gather)
