"""Coordinate descent over the groups of all classes: one group, with all that is nested in it, after another.

Every visit takes the best maps while the others stand still, and keeps them only if the true objective does not fall.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from rebasin_cli.maps import Maps
from rebasin_cli.matching.symmetries.closed_forms import Terms, best_map
from rebasin_cli.matching.symmetries.forms import Forms
from rebasin_cli.matching.symmetries.nested import Node, Products, RootSite, build_tree, solve
from rebasin_cli.spec import AxisGroup


@dataclass(frozen=True, slots=True)
class Cluster:
    """An outermost group and all that is nested in it."""

    root: Node
    sites: tuple[RootSite, ...]
    keys: tuple[str, ...]

    @property
    def group(self) -> AxisGroup:
        return self.root.group

    @property
    def groups(self) -> list[AxisGroup]:
        return [node.group for node in self.root.descendants]


def clusters_of(forms: Forms) -> tuple[Cluster, ...]:
    """All clusters of a pair, in the order of the spec."""
    children: dict[str, list[AxisGroup]] = defaultdict(list)
    for group in forms.spec.groups:
        if group.parent is not None:
            children[group.parent.group].append(group)
    shapes = {key: tuple(tensor.shape) for key, tensor in forms.a.items()}
    found = []
    for group in forms.spec.groups:
        if group.parent is None:
            root, sites = build_tree(group, children, shapes, forms.spec)
            if sites:
                groups = [node.group for node in root.descendants]
                found.append(Cluster(root, sites, forms.touched(groups)))
    return tuple(found)


class Descent:
    """One descent: maps, and the clusters that are visited.

    Args:
        maps: where it begins; changed as it goes.
    """

    def __init__(self, forms: Forms, clusters: Sequence[Cluster], maps: Maps) -> None:
        self.forms, self.clusters, self.maps = forms, clusters, dict(maps)

    def visit(self, cluster: Cluster, *, keys: Sequence[str] | None = None) -> float:
        """Take the best maps of a cluster; by how much the objective rose.

        Args:
            keys: only these tensors decide, and the maps are taken even if others lose.
        """
        before = self.forms.value(self.maps, cluster.keys)
        found = self._solved(cluster, keys)
        after = self.forms.value({**self.maps, **found}, cluster.keys)
        if keys is None and after <= before:
            return 0.0
        self.maps.update(found)
        return after - before

    def _solved(self, cluster: Cluster, keys: Sequence[str] | None) -> Maps:
        if any(cluster.root.blocks):
            products = [self._products(cluster, number) for number in range(len(cluster.sites))]
            return solve(cluster.root, products, now=self.maps)
        terms = self._terms(cluster, keys)
        return {cluster.group.name: best_map(cluster.group, terms, self.maps.get(cluster.group.name))}

    def _terms(self, cluster: Cluster, keys: Sequence[str] | None) -> list[Terms]:
        """The products of units that decide a group without anything inside."""
        found = []
        group = cluster.group
        for site, part in zip(cluster.sites, cluster.root.parts, strict=True):
            if keys is not None and site.key not in keys:
                continue
            moved = self.forms.moved(site.key, self.maps, {(group.name, part.place)})
            ours, theirs = (site.units(tensor).reshape(group.size, -1) for tensor in (self.forms.a[site.key], moved))
            own = None if cluster.root.keeps_lengths else theirs @ theirs.T
            found.append(Terms(part.place, part.dual, ours @ theirs.T, own))
        return found

    def _products(self, cluster: Cluster, number: int) -> Products:
        """The products of all rows of one site of a cluster."""
        site = cluster.sites[number]
        axis = cluster.group.sites[cluster.root.parts[number].place].axis
        inside = {
            (node.group.name, place)
            for node in cluster.root.descendants
            for place, one in enumerate(node.group.sites)
            if one.key == site.key and one.axis == axis
        }
        moved = self.forms.moved(site.key, self.maps, inside)
        ours, theirs = site.units(self.forms.a[site.key]), site.units(moved)
        return Products(ours @ theirs.T, None if cluster.root.keeps_lengths else theirs @ theirs.T)

    def passes(
        self,
        most: int,
        tolerance: float,
        generator: torch.Generator,
        on_pass: Callable[[int, float], None] | None = None,
        out_of_time: Callable[[], bool] = lambda: False,
    ) -> tuple[bool, list[float]]:
        """Visit all clusters in a random order until a pass gains less than the tolerance.

        Args:
            tolerance: relative to `Forms.scale`.
            on_pass: called with the number of a pass and the objective after it.

        Returns:
            whether it converged, and the objective after every pass.
        """
        reached: list[float] = []
        for number in range(most):
            gained = 0.0
            for place in torch.randperm(len(self.clusters), generator=generator).tolist():
                if out_of_time():
                    return False, reached
                gained += self.visit(self.clusters[place])
            reached.append(self.forms.value(self.maps))
            if on_pass is not None:
                on_pass(number + 1, reached[-1])
            if gained <= tolerance * self.forms.scale:
                return True, reached
        return False, reached
