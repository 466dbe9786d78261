"""Activation matching: pair the units whose activations on the same inputs go together.

For every group, an assignment on the cross-correlation (or covariance) of its units in A and in B; inside heads and
other blocks together with the blocks, as in weight matching. On real inputs this finds basins that the weights alone do
not show; on synthetic inputs it makes a start for weight matching that needs no data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from rebasin_cli.errors import DataError
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Axes, Cluster
from rebasin_cli.matching.covariance import CrossCovariance
from rebasin_cli.matching.families import Families, Family
from rebasin_cli.matching.nesting import NestedProblem
from rebasin_cli.matching.problem import Problem
from rebasin_cli.permutation import Permutations

GroupActivations = Mapping[str, Tensor]
"""By group name, (samples, units); positions within a sample count as samples. Groups may be missing."""
RunBatches = Callable[[], Iterable[tuple[GroupActivations, GroupActivations]]]
"""Runs A and B on the same inputs, batch by batch, and yields the activations of both."""
Measure = Literal["correlation", "covariance"]


def activation_matching(problem: Problem, run: RunBatches, *, measure: Measure = "correlation") -> Permutations:
    """Match every group by its units' activations, in one pass over the inputs.

    Args:
        run: yields (activations of A, activations of B) batch by batch; never more than one batch is held.
        measure: `correlation` weighs all units alike; `covariance` weighs them by how much they vary.

    Returns:
        Permutations for every group; groups without activations keep their order.

    Raises:
        DataError: no batch came, or the two sides differ in their groups or shapes.
        NumericalError: an activation is not finite.
    """
    found = _collect(problem.families, run)
    arrangement = Arrangement(problem.families)
    for cluster in problem.clusters:
        sums = _similarities(problem.families, cluster, found, measure)
        if sums:
            arrangement.set(NestedProblem(problem.families, cluster, sums).solve())
    return arrangement.permutations()


def _collect(families: Families, run: RunBatches) -> dict[int, CrossCovariance]:
    """Cross-covariances by family, over all members' units side by side."""
    found: dict[int, CrossCovariance] = {}
    for ours, theirs in run():
        if ours.keys() != theirs.keys():
            odd = sorted(ours.keys() ^ theirs.keys())
            raise DataError(f"activations of {', '.join(odd)} came from one of the two networks only")
        for family in families.all:
            if all(name in ours for name in family.names):
                if family.index not in found:
                    found[family.index] = CrossCovariance(family.title, family.members * family.size)
                found[family.index].add(_side_by_side(family, ours), _side_by_side(family, theirs))
    if not any(one.count for one in found.values()):
        raise DataError("no activations came: the data is empty, or no group's units are seen")
    return found


def _side_by_side(family: Family, activations: GroupActivations) -> Tensor:
    return torch.cat([activations[name] for name in family.names], dim=1)


def _similarities(
    families: Families, cluster: Cluster, found: Mapping[int, CrossCovariance], measure: Measure
) -> dict[Axes, Tensor]:
    """The measure for every family of the cluster, in the cells of its chain of parents."""
    sums: dict[Axes, Tensor] = {}
    for index in cluster.families:
        if index in found:
            axes = [index]
            while (parent := families.all[axes[0]].parent) is not None:
                axes.insert(0, parent)
            sums[tuple(axes)] = getattr(found[index], measure)()
    return sums
