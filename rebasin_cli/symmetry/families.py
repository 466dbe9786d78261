"""Families of units and the blocks they lie in: a DAG of families, each a symmetric group per fibre over its parents.

A parent has fewer units than its children, so the families form a DAG. The solver accepts two shapes:

- *one parent*: the fibres over the parent's units are blocks (units inside heads); each fibre is permuted freely, and
  whole fibres move with the parent;
- *a product*: two parents, each pair of their units occurring equally often (the weight of a grouped convolution over
  (group, output) and (group, input)). Nothing moves there on its own: the parents' movements determine the family's.

Where two parents occur together only within blocks (output and input channels of one convolution group), the blocks are
a common ancestor, possibly one that no operation mentions: query heads and key-value units of grouped attention share
the key heads. `repair_blocks` adds it as a family of its own, so that the product is one per block.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from rebasin_cli.symmetry.positions import Ids
from rebasin_cli.symmetry.relations import Relations

IRREGULAR = "blocks that cannot be permuted independently"

ParentMap = tuple[int, Ids]
"""A family above, and for every unit here its unit there."""


@dataclass(slots=True)
class UnitFamily:
    """Units that may be exchanged, within one block of the parent if there is one.

    Attributes:
        size: number of units.
        parents: for each parent family, its number and the parent unit of every unit.
        fibre: for every unit, which fibre (block) it lies in.
        local: for every unit, its place within its fibre.
        moves: whether its fibres are symmetric groups of their own.
        ancestors: for this family and each one above it, the unit there of every unit here.
    """

    size: int
    parents: list[tuple[int, Ids]] = field(default_factory=list)
    fibre: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    local: Ids = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    moves: bool = False
    ancestors: dict[int, Ids] = field(default_factory=dict)


def assign_fibres(families: list[UnitFamily]) -> None:
    """Assign every unit its fibre and its index there, and every family its ancestors."""
    direct = direct_parents(families)
    for which in upper_first(families):
        family = families[which]
        maps = direct[which]
        count = np.arange(family.size)
        family.ancestors = {which: count}
        for parent, upward in maps:
            for ancestor, units in families[parent].ancestors.items():
                family.ancestors[ancestor] = units[upward]
        if not maps:
            family.fibre, family.local = np.zeros(family.size, dtype=np.int64), count
        else:
            family.fibre = np.zeros(family.size, dtype=np.int64)
            for parent, upward in maps:
                both = family.fibre * families[parent].size + upward
                family.fibre = np.unique(both, return_inverse=True)[1].astype(np.int64)
            family.local = rank_within(family.fibre)
        family.parents = maps
        single = len(maps) < 2 and all(len(families[parent].parents) < 2 for parent, _ in maps)
        family.moves = single and bool(np.any(family.local > 0))


def repair_blocks(relations: Relations, families: list[UnitFamily], family: Ids, number: Ids, colour: Ids) -> bool:
    """Add the blocks that two parents share, and pin what is no product of its parents; True if relations were added.

    A family that reaches one ancestor by two different maps (position i of a block and position j) is pinned: moving
    the ancestor would have to move it in two ways.
    """
    direct = direct_parents(families)
    above = _all_above(families, direct)
    first_id = _first_ids(families, family, number, colour)
    changed = False
    named: set[tuple[int, int, bytes]] = set()
    for which in upper_first(families):
        maps = direct[which]
        if len({ancestor for ancestor, _ in above[which]}) < len(above[which]):
            relations.pin(first_id[which], IRREGULAR)
            changed = True
        elif len(maps) > 1:
            changed |= _repair_product(relations, families, above, first_id, which, maps, named)
    return changed


def _repair_product(
    relations: Relations,
    families: list[UnitFamily],
    above: list[list[ParentMap]],
    first_id: list[Ids],
    which: int,
    maps: list[ParentMap],
    named: set[tuple[int, int, bytes]],
) -> bool:
    """Add the common blocks of every two parents that lack them; pin the family where it is no product of parents.

    The family is a product where, within each common block, every pair of parent units occurs, and equally often: then
    any permutation of one parent extends to the family whatever the other does. Three parents are reduced to two by
    adding the product of the first two as a family of its own. Blocks and products are related through ids of one
    colour of each parent, so the new relations distinguish no unit from another of its block.
    """
    sharing = [_shared_blocks(families[p].size, families[q].size, to_p, to_q) for (p, to_p), (q, to_q) in _pairs(maps)]
    changed = False
    for ((p, _), (q, _)), shared in zip(_pairs(maps), sharing, strict=True):
        in_p, in_q = shared[: families[p].size], shared[families[p].size :]
        if int(shared.max()) == 0 or _is_named(above, p, q, in_p, in_q):
            continue
        changed = True
        key = (p, q, shared.tobytes())
        if key not in named:
            named.add(key)
            block_ids = relations.new_ids(int(shared.max()) + 1)
            relations.function(first_id[p], block_ids[in_p])
            relations.function(first_id[q], block_ids[in_q])
    if changed:
        return True
    (p, to_p), (q, to_q) = maps[:2]
    pairs, index, count = np.unique(np.c_[to_p, to_q], axis=0, return_inverse=True, return_counts=True)
    in_p, in_q = sharing[0][: families[p].size], sharing[0][families[p].size :]
    blocks = int(sharing[0].max()) + 1
    expected = int(np.sum(np.bincount(in_p, minlength=blocks) * np.bincount(in_q, minlength=blocks)))
    crossed = len(maps) > 2 and len(pairs) == families[which].size
    if len(pairs) != expected or len(np.unique(count)) > 1 or crossed:
        relations.pin(first_id[which], IRREGULAR)
        return True
    if len(maps) > 2:
        product = relations.new_ids(len(pairs))
        relations.function(product, first_id[p][pairs[:, 0]])
        relations.function(product, first_id[q][pairs[:, 1]])
        relations.function(first_id[which], product[index.reshape(-1)])
        return True
    return False


def _pairs(maps: list[ParentMap]) -> list[tuple[ParentMap, ParentMap]]:
    return list(itertools.combinations(maps, 2))


def _shared_blocks(p_size: int, q_size: int, to_p: Ids, to_q: Ids) -> Ids:
    """Block number by unit, the units of the first parent first: units of both parents that occur together, directly or
    through others, are in one block (connected components of the bipartite graph).
    """
    graph = coo_array((np.ones(len(to_p), dtype=np.int8), (to_p, p_size + to_q)), shape=(p_size + q_size,) * 2)
    blocks: Ids = connected_components(graph, directed=False)[1].astype(np.int64)
    return blocks


def _is_named(above: list[list[ParentMap]], p: int, q: int, in_p: Ids, in_q: Ids) -> bool:
    """Whether a family above both parents is already this division into blocks."""
    for ancestor, of_p in above[p]:
        for other, of_q in above[q]:
            if ancestor == other and _same_division(np.r_[of_p, of_q], np.r_[in_p, in_q]):
                return True
    return False


def _same_division(left: Ids, right: Ids) -> bool:
    joint = len(np.unique(np.c_[left, right], axis=0))
    return joint == len(np.unique(left)) == len(np.unique(right))


def direct_parents(families: list[UnitFamily]) -> list[list[ParentMap]]:
    """For each family its parents, without those that are composed of another parent and its parents."""
    direct: list[list[ParentMap]] = [[] for _ in families]
    above: list[list[ParentMap]] = [[] for _ in families]
    for which in upper_first(families):
        maps = families[which].parents
        composed = [
            {(ancestor, units[upward].tobytes()) for ancestor, units in above[parent]} for parent, upward in maps
        ]
        for place, (parent, upward) in enumerate(maps):
            key = (parent, upward.tobytes())
            if not any(key in others for other, others in enumerate(composed) if other != place):
                direct[which].append((parent, upward))
        above[which] = _distinct(
            [*maps, *((a, units[upward]) for parent, upward in maps for a, units in above[parent])]
        )
    return direct


def _all_above(families: list[UnitFamily], direct: list[list[ParentMap]]) -> list[list[ParentMap]]:
    above: list[list[ParentMap]] = [[] for _ in families]
    for which in upper_first(families):
        maps = direct[which]
        above[which] = _distinct(
            [*maps, *((a, units[upward]) for parent, upward in maps for a, units in above[parent])]
        )
    return above


def _distinct(maps: list[ParentMap]) -> list[ParentMap]:
    found = {(family, units.tobytes()): (family, units) for family, units in maps}
    return list(found.values())


def upper_first(families: list[UnitFamily]) -> list[int]:
    """Families by size: a parent always has fewer units than its children."""
    return sorted(range(len(families)), key=lambda which: families[which].size)


def _first_ids(families: list[UnitFamily], family: Ids, number: Ids, colour: Ids) -> list[Ids]:
    """For each family, the id of every unit that has the family's smallest colour.

    They are all of one colour, so relations between them distinguish no unit from another.
    """
    sizes = np.array([entry.size for entry in families], dtype=np.int64)
    lowest = np.full(len(families), np.iinfo(np.int64).max)
    np.minimum.at(lowest, family, colour)
    chosen = np.flatnonzero(colour == lowest[family])
    starts = np.cumsum(sizes) - sizes
    firsts = np.empty(int(sizes.sum()), dtype=np.int64)
    firsts[starts[family[chosen]] + number[chosen]] = chosen
    return np.split(firsts, starts[1:])


def rank_within(group: Ids) -> Ids:
    """For every index, how many indices before it hold the same number."""
    order = np.argsort(group, kind="stable")
    sizes = np.bincount(group)
    rank = np.empty(len(group), dtype=np.int64)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank
