"""Permutations of nested groups, composed and inverted.

A group inside a block names the block where it lay in the original network. After a first permutation of the blocks
the units of block o lie elsewhere, so that groups cannot be composed one by one. What is composed instead is the gather
of each fold of each tensor: `new = old[first][then]`. From a total gather G the permutations follow from the outermost
groups inwards: with U the gather of the groups outside, `G[x] = I[U[x]]`, so `I = G[U^-1]` is what acts inside, and row
u of a group gathers from its row q[u].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.families import GroupFamilies, GroupFamily, Index, TensorFold
from rebasin_cli.matching.problem import families_and_clusters
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import PermutationSpec


class Composition:
    """Composes and inverts the permutations of one model.

    Args:
        shapes: shape by tensor name, at least of one tensor that each group acts on.
    """

    def __init__(self, spec: PermutationSpec, shapes: Mapping[str, Sequence[int]]) -> None:
        found = {key: tuple(shape) for key, shape in shapes.items()}
        self._families: GroupFamilies = families_and_clusters(spec, found)[0]

    def composed(self, first: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> Permutations:
        """The permutations that equal `first` and, on its result, `then`."""
        one, two = (Arrangement(self._families, perms) for perms in (first, then))

        def total(place: TensorFold) -> Index:
            total: Index = self._gather(one, place)[self._gather(two, place)]
            return total

        return self._from_gathers(total)

    def inverted(self, permutations: Mapping[str, Tensor]) -> Permutations:
        """The permutations that undo these."""
        arrangement = Arrangement(self._families, permutations)
        return self._from_gathers(lambda place: _inverse(self._gather(arrangement, place)))

    def moved(self, permutations: Mapping[str, Tensor]) -> int:
        """Number of units that do not keep their place."""
        return Arrangement(self._families, permutations).moved_units

    def _gather(self, arrangement: Arrangement, place: TensorFold) -> Index:
        found = arrangement.gather(place)
        key, fold = place
        return np.arange(self._families.shapes[key].sizes[fold]) if found is None else found

    def _from_gathers(self, total: Callable[[TensorFold], Index]) -> Permutations:
        """The permutations whose gather on every fold is this one."""
        result = Arrangement(self._families)
        for family in sorted(self._families.all, key=lambda one: one.depth):
            if family.rows:
                place = next(iter(family.rows))
                inside = total(place)[_inverse(self._gather(result, place))]
                result.set({family.index: _permutation(family, place, inside)})
        return result.permutations()


def _permutation(family: GroupFamily, place: TensorFold, inside: Index) -> Index:
    """Permutations (members, size) of a family, given what acts inside of the groups around it."""
    rows = family.rows[place]
    owner = np.full(len(inside), -1, dtype=np.int64)
    owner[rows] = np.arange(family.size)[None, :, None]
    found: Index = owner[inside[rows[:, :, 0]]]
    return found


def _inverse(gather: Index) -> Index:
    inverse = np.empty_like(gather)
    inverse[gather] = np.arange(len(gather))
    return inverse
