"""Closes the relations: which units there are, which families they form, and inside which blocks they live.

After colour refinement, ids that are linked one to one are one *unit*; the units of linked colours form a *family*. A
family
whose units follow another family's lives in its blocks: each fibre over a block is a symmetric group of its own. A
family
that follows two others is their product and moves with them. What has no such form is pinned, and the closure repeated.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rebasin_cli.symmetry.colouring import Edges, refine
from rebasin_cli.symmetry.families import Family, lay_out, mend
from rebasin_cli.symmetry.positions import Ids
from rebasin_cli.symmetry.relations import Relations

TWISTED = "its units are tied to each other in another order"


@dataclass(frozen=True, slots=True)
class Closure:
    """The solution.

    Args:
        family: family number by id.
        unit: unit number within its family, by id.
        colour: colour by id; the ids of one unit all differ in colour.
        families: all families, trivial ones included.
        reason: number of the pin's reason by id, -1 where none is known.
        reasons: the reasons.
    """

    family: Ids
    unit: Ids
    colour: Ids
    families: list[Family]
    reason: Ids
    reasons: list[str]


def solve(relations: Relations) -> Closure:
    """Close the relations; those that have no solution in blocks are pinned on the way."""
    while True:
        edges = Edges.of(relations)
        colour = refine(relations, edges)
        size_of = np.bincount(colour)
        one_to_one = _one_to_one(edges, colour, size_of)
        unit = _components(relations.size, edges.source[one_to_one], edges.target[one_to_one])
        twisted = _twisted(unit, colour)
        if len(twisted):
            relations.pin(twisted, TWISTED)
            continue
        pairs = np.unique(np.c_[colour[edges.source], colour[edges.target]][one_to_one], axis=0)
        family_of_colour = _components(len(size_of), pairs[:, 0], pairs[:, 1])
        family = _by_first_id(family_of_colour[colour])
        number = _number_units(family, unit)
        families = [Family(0) for _ in range(int(family.max()) + 1)] if len(family) else []
        _count_units(families, family, number)
        _find_parents(families, edges, ~one_to_one, family, number)
        if mend(relations, families, family, number, colour):
            continue
        lay_out(families)
        reason, reasons = _reasons(relations, edges, size_of[colour] == 1)
        return Closure(family, number, colour, families, reason, reasons)


def _by_first_id(family: Ids) -> Ids:
    """Families numbered in the order of their smallest ids, so that names do not depend on how colours were found."""
    _, first, index = np.unique(family, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[index.reshape(-1)]


def _one_to_one(edges: Edges, colour: Ids, size_of: Ids) -> Ids:
    """Which edges belong to a relation that pairs two colours one to one."""
    if not len(edges.source):
        return np.zeros(0, dtype=bool)
    source, target = colour[edges.source], colour[edges.target]
    _, group, count = np.unique(np.c_[edges.label, source, target], axis=0, return_inverse=True, return_counts=True)
    count = count[group.reshape(-1)]
    paired: Ids = (size_of[source] == size_of[target]) & (count == size_of[source])
    return paired


def _components(count: int, source: Ids, target: Ids) -> Ids:
    graph = coo_array((np.ones(len(source), dtype=np.int8), (source, target)), shape=(count, count))
    component: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
    return component


def _twisted(unit: Ids, colour: Ids) -> Ids:
    """Ids of components that hold one colour more than once."""
    if not len(unit):
        return unit
    _, index, count = np.unique(np.c_[unit, colour], axis=0, return_inverse=True, return_counts=True)
    bad = np.unique(unit[count[index.reshape(-1)] > 1])
    return np.flatnonzero(np.isin(unit, bad))


def _number_units(family: Ids, unit: Ids) -> Ids:
    """Units numbered within their family, in the order of their smallest id."""
    if not len(unit):
        return unit
    _, first, index = np.unique(unit, return_index=True, return_inverse=True)
    order = np.lexsort((first, family[first]))
    owner = family[first][order]
    starts = np.searchsorted(owner, owner, side="left")
    rank = np.empty(len(first), dtype=np.int64)
    rank[order] = np.arange(len(first)) - starts
    return rank[index.reshape(-1)]


def _count_units(families: list[Family], family: Ids, number: Ids) -> None:
    sizes = np.zeros(len(families), dtype=np.int64)
    np.maximum.at(sizes, family, number + 1)
    for which, size in enumerate(sizes):
        families[which].size = int(size)


def _find_parents(families: list[Family], edges: Edges, many: Ids, family: Ids, number: Ids) -> None:
    """Distinct maps from families to the families that their units follow; trivial ones left out."""
    source, target, label = edges.source[many], edges.target[many], edges.label[many]
    keys = np.c_[label, family[source], family[target]]
    order = np.lexsort(keys.T[::-1])
    keys, source, target = keys[order], source[order], target[order]
    cuts = np.r_[0, np.flatnonzero(np.any(np.diff(keys, axis=0), axis=1)) + 1, len(keys)]
    seen: set[tuple[int, int, bytes]] = set()
    for start, end in itertools.pairwise(cuts):
        if start == end:
            continue
        child, parent = int(keys[start, 1]), int(keys[start, 2])
        if families[parent].size <= 1 or child == parent:
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
    """For every id that stands alone, the reason of a pin that reaches it."""
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
