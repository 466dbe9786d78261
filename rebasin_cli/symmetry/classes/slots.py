"""Where the units of moving families lie in a value: one slot for each family, its axes, and each copy of its units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from rebasin_cli.symmetry.positions import AxisLayout, Entry, IdBlock
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure


@dataclass(frozen=True, slots=True)
class Slot:
    """One copy of a family's units in a value.

    Args:
        family: number of the family.
        dims: the dimensions along which the units of one block differ.
        tag: the ids' colour: equal for the same copy in values that share ids.
        first: where the copy begins, to compare copies in one value.
        covers: whether the family's units are all that its positions hold.
        size: length of a block, in positions along those dimensions.
    """

    family: int
    dims: tuple[int, ...]
    tag: int
    first: int
    covers: bool
    size: int


_Copy = tuple[int, tuple[int, ...], int, int, bool, int]
"""Family, places of the factors along which its units differ, colour, first position, covers, size."""


@dataclass(slots=True)
class SlotReader:
    """Reads slots out of layouts; many values share ids, so what was found for these is kept."""

    relations: Relations
    closure: Closure
    _known: dict[tuple[IdBlock, int, tuple[int, ...]], tuple[Entry, list[_Copy]]] = field(default_factory=dict)

    def slots(self, layout: AxisLayout) -> tuple[Slot, ...]:
        """All slots of moving families in a tensor of this layout."""
        if not layout.entries:
            return ()
        place = {factor: dim for dim, factors in enumerate(layout.dims) for factor in factors}
        found: dict[tuple[int, tuple[int, ...], int], Slot] = {}
        for entry in layout.entries:
            for family, axes, tag, first, covers, size in self._copies(entry):
                factors = [entry.factors[axis] for axis in axes]
                dims = tuple(sorted({place[factor] for factor in factors if factor in place}))
                found.setdefault((family, dims, tag), Slot(family, dims, tag, first, covers, size))
        return tuple(found.values())

    def _copies(self, entry: Entry) -> list[_Copy]:
        key = (entry.block, id(entry.order), entry.shape)
        if key not in self._known:
            self._known[key] = entry, list(_copies(self.closure, self.relations, entry))
        return self._known[key][1]


def _copies(closure: Closure, relations: Relations, entry: Entry) -> Sequence[_Copy]:
    ids = relations.ids(entry)
    owner_of, number, colour = closure.family[ids], closure.unit[ids], closure.colour[ids]
    owners = np.unique(owner_of).tolist()
    held = {
        family: [owner for owner in owners if family in closure.families[owner].ancestors]
        for family in {above for owner in owners for above in closure.families[owner].ancestors}
        if closure.families[family].moves
    }
    found: list[_Copy] = []
    for family in sorted(held):
        covers = len(held[family]) == len(owners) or bool(np.all(np.isin(owner_of, held[family])))
        local = closure.families[family].local
        for owner in held[family]:
            mask = owner_of == owner
            unit = np.where(mask, closure.families[owner].ancestors[family][np.where(mask, number, 0)], 0)
            for tag in np.unique(colour[mask]).tolist():
                here = mask & (colour == tag)
                place = np.where(here, local[unit], -1)
                above = np.where(here, local[unit], len(local))
                axes = tuple(
                    axis
                    for axis in range(ids.ndim)
                    if np.any((place.max(axis) >= 0) & (place.max(axis) > above.min(axis)))
                )
                found.append((family, axes, int(tag), int(np.argmax(here)), covers, int(place.max()) + 1))
    return found


def paired(left: Sequence[Slot], right: Sequence[Slot]) -> list[tuple[Slot, Slot]]:
    """Which slots of two values hold the same copy of one family's units.

    Copies that share ids do; else as many copies are the same one by one, in order. Where neither tells, all of them
    are taken for the same, which allows fewer maps and is as sound.
    """
    by_tag = {slot.tag: slot for slot in right}
    pairs = [(slot, by_tag[slot.tag]) for slot in left if slot.tag in by_tag]
    if pairs:
        return pairs
    if len(left) == len(right):
        return list(zip(sorted(left, key=_first), sorted(right, key=_first), strict=True))
    return [(left[0], other) for other in right] + [(one, right[0]) for one in left[1:]] if left and right else []


def _first(slot: Slot) -> int:
    return slot.first
