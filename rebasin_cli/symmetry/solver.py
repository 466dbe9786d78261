"""Closes the relations: finds the units, the families they form, and the blocks of other families they lie in.

The solution is the group of permutations of ids that preserves all relations. It is found in three steps:

1. Colour refinement gives the coarsest equitable colouring. Ids of different colours are never exchanged, so every
   permutation in the group maps each colour to itself.
2. Between two colours of equal size, a relation pairs ids one to one, because in an equitable colouring all ids of a
   colour have equally many partners of the other. Paired ids move together: they are one *unit*. Colours connected by
   such pairings form a *family*, all of whose colours are permuted by one permutation of its units.
3. Between colours of different size, a relation maps a child family to a parent family. The child's units over one
   parent unit are a *fibre*: they stay together when the parent moves, and each fibre is a symmetric group of its own.
   A family with two parents is their product and moves with them.

Refinement is necessary, not sufficient: an equitable colouring may join what no permutation exchanges (the classic
example are regular graphs). So what does not have the form above is pinned, and everything is solved again. Each round
pins or names something new, of which there are finitely many, so the loop ends; and pins only shrink the group, so the
result is sound.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rebasin_cli.symmetry.colouring import Edges, first_places, in_order, refine
from rebasin_cli.symmetry.families import UnitFamily, assign_fibres, rank_within, repair_blocks
from rebasin_cli.symmetry.positions import Ids
from rebasin_cli.symmetry.relations import Relations

SORTED = "the order of rows sorted by it matters"
TWISTED = "units coupled to each other in another order"


@dataclass(frozen=True, slots=True)
class Closure:
    """The solution.

    Args:
        family: family number by id.
        unit: unit number within its family, by id.
        colour: colour by id; the ids of one unit all differ in colour.
        families: all families; the last one holds all ids whose colour is theirs alone.
        reason: number of the pin's reason by id, -1 where none is known.
        reasons: the reasons.
    """

    family: Ids
    unit: Ids
    colour: Ids
    families: list[UnitFamily]
    reason: Ids
    reasons: list[str]

    def moves(self, ids: Ids) -> bool:
        """Whether any of these ids can move."""
        owners = np.unique(self.family[ids])
        return any(self.families[above].moves for owner in owners for above in self.families[owner].ancestors)


def solve(relations: Relations) -> Closure:
    """Close the relations; ids without a solution in families and blocks are pinned on the way."""
    colour: Ids | None = None
    while True:
        edges = Edges.of(relations)
        colour = refine(relations, edges, colour)
        size_of = np.bincount(colour)
        # The colouring is equitable: by one relation, all ids of a colour have equally many partners of another colour.
        # Each source has one target, so between colours of equal size that number is one in both directions.
        one_to_one = size_of[colour[edges.source]] == size_of[colour[edges.target]]
        source, target = edges.source[one_to_one], edges.target[one_to_one]
        unit = _components(relations.size, source, target)
        family_of_colour = _components(len(size_of), colour[source], colour[target])
        # A unit must hold exactly one id of each colour of its family. A component with more of them couples units to
        # each other (`x + x.flip(0)`, u to n - u): their ids look alike, but no permutation of units exchanges them.
        twisted = np.bincount(unit)[unit] != np.bincount(family_of_colour)[family_of_colour[colour]]
        if np.any(twisted):
            relations.pin(np.flatnonzero(twisted), TWISTED)
            continue
        if _pin_what_sorts(relations, colour, size_of):
            continue
        family = _in_order(family_of_colour[colour], size_of[colour] == 1)
        number = np.where(size_of[colour] == 1, 0, _number_units(family, unit))
        families = [UnitFamily(int(last) + 1) for last in _largest(number, family)]
        _find_parents(families, edges, ~one_to_one, family, number)
        if repair_blocks(relations, families, family, number, colour):
            continue
        assign_fibres(families)
        reason, reasons = _reasons(relations, edges, size_of[colour] == 1)
        return Closure(family, number, colour, families, reason, reasons)


def _pin_what_sorts(relations: Relations, colour: Ids, size_of: Ids) -> bool:
    """Pin positions that could still move although rows were sorted by them that cannot all be exchanged.

    When the positions move, the sorted rows are permuted in some way that depends on the data. That is harmless only
    where every permutation of these rows is in the group: where all of them have one colour.
    """
    bad = [
        by.ids
        for rows, by in relations.sortings
        if rows.ids is not None and by.ids is not None
        if len(np.unique(colour[rows.ids])) > 1 and np.any(size_of[colour[by.ids]] > 1)
    ]
    for ids in bad:
        relations.pin(ids, SORTED)
    return bool(bad)


def _in_order(family: Ids, alone: NDArray[np.bool_]) -> Ids:
    """Families numbered in the order of their smallest ids, so that names do not depend on how colours were found.

    All ids with a colour of their own are the last family together: nothing can move there.
    """
    first = first_places(family)
    trivial = alone[first]
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(np.where(trivial, len(family), first), kind="stable")] = np.arange(len(first))
    return np.minimum(rank, np.count_nonzero(~trivial))[family]


def _largest(values: Ids, groups: Ids) -> Ids:
    """For every group from 0 on, the largest of its values."""
    largest = np.zeros(int(groups.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(largest, groups, values)
    return largest


def _components(count: int, source: Ids, target: Ids) -> Ids:
    graph = coo_array((np.ones(len(source), dtype=np.int8), (source, target)), shape=(count, count))
    component: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
    return component


def _number_units(family: Ids, unit: Ids) -> Ids:
    """Units numbered within their family, in the order of their smallest id."""
    unit = in_order(unit)
    return rank_within(family[first_places(unit)])[unit]


def _find_parents(families: list[UnitFamily], edges: Edges, many: NDArray[np.bool_], family: Ids, number: Ids) -> None:
    """Distinct maps from the units of a family to those of its parents; parents of one unit are left out."""
    sizes = np.array([entry.size for entry in families], dtype=np.int64)
    kept = many & (sizes[family[edges.target]] > 1)
    source, target, label = edges.source[kept], edges.target[kept], edges.label[kept]
    keys = np.c_[label, family[source], family[target]]
    order = np.lexsort(keys.T[::-1])
    keys, source, target = keys[order], source[order], target[order]
    cuts = np.r_[0, np.flatnonzero(np.any(np.diff(keys, axis=0), axis=1)) + 1, len(keys)]
    seen: set[tuple[int, int, bytes]] = set()
    for start, end in itertools.pairwise(cuts):
        if start == end:
            continue
        child, parent = int(keys[start, 1]), int(keys[start, 2])
        if child == parent:
            continue
        upward = np.full(families[child].size, -1, dtype=np.int64)
        upward[number[source[start:end]]] = number[target[start:end]]
        if np.any(upward < 0):
            continue
        key = (child, parent, upward.tobytes())
        if key not in seen:
            seen.add(key)
            families[child].parents.append((parent, upward))


def _reasons(relations: Relations, edges: Edges, alone: Ids) -> tuple[Ids, list[str]]:
    """For every id with a colour of its own, the reason of a pin from which a chain of relations reaches it."""
    reasons: list[str] = []
    reason = np.full(relations.size, -1, dtype=np.int64)
    for ids, why in relations.pins:
        if why not in reasons:
            reasons.append(why)
        fresh = ids[reason[ids] < 0]
        reason[fresh] = reasons.index(why)
    both = ((edges.source, edges.target), (edges.target, edges.source))
    while True:
        before = int(np.count_nonzero(reason >= 0))
        for source, target in both:
            reached = (reason[source] >= 0) & (reason[target] < 0) & alone[target]
            reason[target[reached]] = reason[source[reached]]
        if int(np.count_nonzero(reason >= 0)) == before:
            return reason, reasons
