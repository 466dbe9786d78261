"""A point between permutations: the same convex combination of arrangements in every group.

`X_g = w_0 J_g + sum_k w_k P_k,g` with J the barycentre (every cell equally likely) and P_k arrangements. It is never
stored as a matrix: a doubly stochastic matrix of width n would cost n^2 and a product to apply; a few gathers do both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Cluster
from rebasin_cli.matching.families import Families, Place
from rebasin_cli.matching.folds import Index
from rebasin_cli.matching.nesting import worth
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.products import Products
from rebasin_cli.matching.similarity import Sums
from rebasin_cli.matching.slabs import column_pieces, gathered, slab

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

    def product(self, families: Families, sums: Sums) -> float:
        """`<S, X>` over the cells of one cluster."""
        total = sum(
            self.centre * float(matrix.sum()) / matrix.shape[0] if self.centre else 0.0 for matrix in sums.values()
        )
        return total + sum(weight * worth(families, sums, vertex) for weight, vertex in self.vertices)


def average_labels(clusters: tuple[Cluster, ...], families: Families) -> dict[Place, Index]:
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
    """A mixture of which some clusters are permutations already.

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
        """Let a cluster be a permutation from now on."""
        self.fixed.set(vertex)
        for _, part in self._parts:
            part.set(vertex)
        for tile in cluster.tiles:
            self._labels[tile.place][tile.positions] = tile.positions

    def similarity(self, cluster: Cluster) -> Sums:
        """Similarities of a cluster's cells with all others as they are here: the gradient of the objective.

        One tensor of B at a time is held in float32. Coupled tiles are left out.
        """
        products = Products((self.problem.a, self.problem.b), self.fixed, self.problem.device)
        shapes = self.problem.families.shapes
        sums: Sums = {}
        for tile in cluster.tiles:
            if tile.coupled:
                continue
            rows_a, rows_b = products.rows(tile, products.look(cluster, tile))
            view = self.problem.b[tile.key].detach().reshape(shapes[tile.key].sizes)
            view = view.to(device=self.problem.device, dtype=torch.float32)
            for fold in range(view.dim()):
                if fold != tile.fold and (tile.key, fold) in self.problem.families.places:
                    view = self._seen_through(view, (tile.key, fold))
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

    def _seen_through(self, view: Tensor, place: Place) -> Tensor:
        """The tensor with the mixture applied on one fold."""
        total = None
        if self.mixture.centre:
            average = averaged(view, place[1], self._labels[place])
            total = _gathered(average, place, self.fixed).mul(self.mixture.centre)
        for weight, part in self._parts:
            seen = _gathered(view, place, part)
            total = seen * weight if total is None else total.add_(seen, alpha=weight)
        return view if total is None else total


def _gathered(view: Tensor, place: Place, arrangement: Arrangement) -> Tensor:
    gather = arrangement.gather(place)
    return view if gather is None else gathered(view, place[1], gather)
