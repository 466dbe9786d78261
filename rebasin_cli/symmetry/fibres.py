"""What every fibre moves among some ids: for each of its units, the places where it lies.

Mostly these are a *run*: one segment `(outer, units, inner)` of the places, from an offset on.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rebasin_cli.symmetry.families import Family
from rebasin_cli.symmetry.positions import Ids
from rebasin_cli.symmetry.solver import Closure

Run = tuple[int, int, int]
"""Offset, outer, inner."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What one fibre of one family moves.

    Args:
        family, fibre: their numbers.
        rows: for each unit, the places that it moves: (units, places).
        run: the same as a run, where it is one.
    """

    family: int
    fibre: int
    rows: Ids
    run: Run | None


def moved_by_fibres(closure: Closure, ids: Ids) -> list[Moved]:
    """What the fibres of all moving families move among these ids, family by family."""
    family_of = closure.family[ids]
    owners = np.unique(family_of).tolist()
    return [
        moved
        for which in _moving(closure, owners)
        for moved in _moved_by_family(closure, ids, family_of, which, owners)
    ]


def _moving(closure: Closure, owners: list[int]) -> list[int]:
    """The moving families among the given ones and all above them."""
    families = closure.families
    return sorted({a for owner in owners for a in families[owner].ancestors if families[a].moves})


def _moved_by_family(closure: Closure, ids: Ids, family_of: Ids, which: int, owners: list[int]) -> Iterator[Moved]:
    family = closure.families[which]
    places, units, keys = [], [], []
    for owner in owners:
        source = closure.families[owner]
        if which not in source.ancestors:
            continue
        here = np.flatnonzero(family_of == owner)
        number = closure.unit[ids[here]]
        places.append(here)
        units.append(source.ancestors[which][number])
        keys.append(_relative_keys(closure.families, source, which, number, closure.colour[ids[here]]))
    place, unit, key = places[0], units[0], keys[0]
    if len(places) > 1:
        place, unit = np.concatenate(places), np.concatenate(units)
        width = max(len(key) for key in keys)
        padded = [[*key, *[np.full(len(key[0]), -1)] * (width - len(key))] for key in keys]
        key = [np.concatenate(columns) for columns in zip(*padded, strict=True)]
    order = np.lexsort((*reversed(key), family.local[unit], family.fibre[unit]))
    place, fibre = place[order], family.fibre[unit][order]
    size = int(family.local.max()) + 1
    cuts = [0, *(np.flatnonzero(fibre[1:] != fibre[:-1]) + 1).tolist(), len(fibre)]
    alike = len({end - start for start, end in itertools.pairwise(cuts)}) == 1
    fibres = [place.reshape(len(cuts) - 1, size, -1)] if alike else _apart(place, cuts, size)
    numbers = iter(fibre[cuts[:-1]].tolist())
    for rows in fibres:
        for own, run in zip(rows, runs(rows), strict=True):
            yield Moved(which, next(numbers), own, run)


def _apart(place: Ids, cuts: list[int], size: int) -> list[Ids]:
    return [place[start:end].reshape(1, size, -1) for start, end in itertools.pairwise(cuts)]


def _relative_keys(families: list[Family], source: Family, which: int, number: Ids, colour: Ids) -> list[Ids]:
    """What tells apart the places that one unit of family `which` moves, alike for all units of its fibre."""
    others = [ancestor for ancestor in source.ancestors if ancestor != which]
    return [colour, *(families[ancestor].local[source.ancestors[ancestor][number]] for ancestor in others)]


def runs(rows: Ids) -> list[Run | None]:
    """For every fibre, its rows as a run, where they are one.

    Args:
        rows: for each fibre and unit, the places that it moves: (fibres, units, places).
    """
    count, units, width = rows.shape
    order = np.argsort(rows[:, :1], axis=2)
    rows = np.take_along_axis(rows, order, axis=2) if width > 1 else rows
    offset, inner = rows[:, 0, 0], rows[:, 1, 0] - rows[:, 0, 0]
    found: list[Run | None] = [None] * count
    for step in set(inner.tolist()):
        if step < 1 or width % step:
            continue
        outer = width // step
        segment = np.arange(outer * units * step).reshape(outer, units, step)
        expected = segment.transpose(1, 0, 2).reshape(units, width)
        regular = np.all(rows == offset[:, None, None] + expected, axis=(1, 2)) & (inner == step)
        for number in np.flatnonzero(regular).tolist():
            found[number] = int(offset[number]), outer, step
    return found
