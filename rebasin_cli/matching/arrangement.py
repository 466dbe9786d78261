"""The present permutations of a search, and the composed gather on every fold of every tensor.

Only this object changes during a search; no tensor is copied to evaluate a candidate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.families import GroupFamilies, GroupFamily, Index, TensorFold
from rebasin_cli.permutation import Permutations


class Arrangement:
    """Current permutations by family, each (members, size), and the composed gather of every place.

    A gather that has not changed is the same object as before, so that an identity test usually tells.
    """

    def __init__(self, families: GroupFamilies, start: Mapping[str, Tensor] | None = None) -> None:
        self.families = families
        self.perms: list[Index] = [_initial(family, start or {}) for family in families.all]
        self._gathers: dict[TensorFold, Index | None] = {place: self._compose(place, ()) for place in families.places}

    def gather(self, place: TensorFold) -> Index | None:
        """`new = old[gather]` on this fold of this tensor; None where nothing moves."""
        return self._gathers.get(place)

    def set(self, changes: Mapping[int, Index]) -> None:
        """Replace the permutations of some families."""
        moved: dict[TensorFold, None] = {}
        for index, perm in changes.items():
            if not np.array_equal(self.perms[index], perm):
                self.perms[index] = perm
                moved.update(dict.fromkeys(self.families.all[index].rows))
        for place in moved:
            self._gathers[place] = self._compose(place, ())

    def load(self, permutations: Mapping[str, Tensor]) -> None:
        """Replace all permutations by those of named groups; groups without a name there return to the identity."""
        self.set({family.index: _initial(family, permutations) for family in self.families.all})

    def around(self, place: TensorFold, own: Sequence[int]) -> tuple[Index | None, Index | None]:
        """The gathers of other families on a fold, before and after the families `own` (a root last) act there."""
        here = self.families.places[place]
        if set(here) <= set(own):
            return None, None
        root = here.index(own[-1])
        before = self._compose(place, [f for f in here if f in own or here.index(f) > root])
        after = self._compose(place, [f for f in here if f in own or here.index(f) < root])
        return before, after

    def _compose(self, place: TensorFold, without: Collection[int]) -> Index | None:
        """The gather of all families on a fold except some; None for the identity."""
        key, fold = place
        total: Index | None = None
        for index in self.families.places[place]:
            perm = self.perms[index]
            if index in without or (perm == np.arange(perm.shape[1])).all():
                continue
            rows = self.families.all[index].rows[place]
            step = np.arange(self.families.shapes[key].sizes[fold])
            step[rows.reshape(-1)] = np.take_along_axis(rows, perm[:, :, None], axis=1).reshape(-1)
            total = step if total is None else total[step]
        return total

    @property
    def moved_units(self) -> int:
        """Number of units that are not in their own place."""
        return sum(int((perm != np.arange(perm.shape[1])).sum()) for perm in self.perms)

    @property
    def is_identity(self) -> bool:
        return self.moved_units == 0

    def permutations(self) -> Permutations:
        """One int64 tensor for every group of the spec."""
        return {
            name: torch.from_numpy(perm[member].copy())
            for family, perm in zip(self.families.all, self.perms, strict=True)
            for member, name in enumerate(family.names)
        }


def _initial(family: GroupFamily, start: Mapping[str, Tensor]) -> Index:
    rows = [start[name].cpu().numpy() if name in start else np.arange(family.size) for name in family.names]
    return np.stack(rows).astype(np.int64)
