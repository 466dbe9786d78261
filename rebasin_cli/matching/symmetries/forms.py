"""A pair in canonical form, and the objective of maps: how close B comes to A.

`F = sum over tensors <A, B'> - |B'|^2 / 2 + |B|^2 / 2`, where B' is B under the maps: `|A|^2 / 2 + |B|^2 / 2` minus
half the squared distance, and the plain inner product for maps that keep lengths. Scales and shifts that are folded
away are no part of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from math import sqrt

import torch
from torch import Tensor

from rebasin_cli.freedom import SymmetryClass
from rebasin_cli.maps import Gauges, GroupMap, Maps, mapped_along, sites_of
from rebasin_cli.matching.symmetries.closed_forms import keeps_lengths
from rebasin_cli.spec import AxisGroup, PermutationSpec


class Forms:
    """Both networks in canonical form, in float64, and what maps make of B.

    Args:
        spec: the groups with the classes that are searched.
        a, b: tensors by model key.
        parameters: the keys that count.
    """

    def __init__(
        self, spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor], parameters: Collection[str]
    ) -> None:
        self.spec = spec
        self.gauges = Gauges(spec, [group.name for group in spec.groups if group.symmetry.is_matrix])
        counted = frozenset(parameters)
        self.keys = tuple(
            key for key in a if key in counted and key not in self.gauges.gains and a[key].is_floating_point()
        )
        self.a = {key: self.gauges.canonical(key, a.__getitem__) for key in self.keys}
        self.b = {key: self.gauges.canonical(key, b.__getitem__) for key in self.keys}
        self.sites = sites_of(spec)
        self.square_a = {key: float(tensor.square().sum()) for key, tensor in self.a.items()}
        self.square_b = {key: float(tensor.square().sum()) for key, tensor in self.b.items()}
        self._isometric = {key: all(keeps_lengths(group) for group, _ in pairs) for key, pairs in self.sites.items()}

    @property
    def scale(self) -> float:
        """`|A| |B|`."""
        return sqrt(sum(self.square_a.values()) * sum(self.square_b.values()))

    def moved(self, key: str, maps: Mapping[str, GroupMap], without: Collection[tuple[str, int]] = ()) -> Tensor:
        """B's tensor under the maps, float64; what the named (group, site index) do is left out."""
        return self.mapped(self.b[key], key, maps, without)

    def mapped(
        self, tensor: Tensor, key: str, maps: Mapping[str, GroupMap], without: Collection[tuple[str, int]] = ()
    ) -> Tensor:
        """A canonical tensor of this name under the maps."""
        for group, place in self.sites.get(key, ()):
            one = maps.get(group.name)
            if one is not None and one.moves and (group.name, place) not in without:
                tensor = mapped_along(tensor, group, place, one)
        return tensor

    def value_of(self, key: str, maps: Mapping[str, GroupMap]) -> float:
        """What one tensor adds to F."""
        moved = self.moved(key, maps)
        found = float((self.a[key] * moved).sum())
        if self._isometric.get(key, True):
            return found
        return found - float(moved.square().sum()) / 2 + self.square_b[key] / 2

    def value(self, maps: Mapping[str, GroupMap], keys: Iterable[str] | None = None) -> float:
        """F of maps, over all tensors or some."""
        return sum(self.value_of(key, maps) for key in (self.keys if keys is None else keys))

    def touched(self, groups: Sequence[AxisGroup]) -> tuple[str, ...]:
        """The tensors that these groups move, and that count."""
        return tuple(dict.fromkeys(site.key for group in groups for site in group.sites if site.key in self.a))


def unmoved(spec: PermutationSpec) -> Maps:
    """The identity for every group: an index map or, where the class mixes units, the unit matrix."""
    return {
        group.name: GroupMap(matrix=torch.eye(group.size, dtype=torch.float64))
        if group.symmetry.is_matrix
        else GroupMap(
            torch.arange(group.size), tuple(torch.ones(group.size, dtype=torch.float64) for _ in group.scales)
        )
        for group in spec.groups
    }


def as_class(group: AxisGroup, perm: Tensor) -> GroupMap:
    """A permutation as a map of the group's class; the identity for planes."""
    if group.symmetry is SymmetryClass.PLANES:
        return GroupMap(matrix=torch.eye(group.size, dtype=torch.float64))
    if group.symmetry.is_matrix:
        return GroupMap(matrix=torch.eye(group.size, dtype=torch.float64)[perm])
    return GroupMap(perm, tuple(torch.ones(group.size, dtype=torch.float64) for _ in group.scales))
