"""Colour refinement: which ids cannot be exchanged, because the relations distinguish them.

Ids start with the colour of the batch in which they were created. Colours split by labels, by pins, and by the colours
of an id's partners in every relation, until nothing splits any more. The result is the coarsest equitable colouring
that refines the first one: any permutation that preserves the relations maps each colour to itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rebasin_cli.symmetry.positions import Ids
from rebasin_cli.symmetry.relations import Relations

Hashes = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Edges:
    """All links and functions as arrays: source and target ids, and the number of the relation."""

    source: Ids
    target: Ids
    label: Ids
    is_link: NDArray[np.bool_]

    @staticmethod
    def of(relations: Relations) -> Edges:
        pairs = [*relations.links, *relations.functions]
        if not pairs:
            empty = np.zeros(0, dtype=np.int64)
            return Edges(empty, empty, empty, np.zeros(0, dtype=bool))
        sizes = [len(source) for source, _ in pairs]
        label = np.repeat(np.arange(len(pairs)), sizes)
        return Edges(
            np.concatenate([source for source, _ in pairs]),
            np.concatenate([target for _, target in pairs]),
            label,
            label < len(relations.links),
        )


def refine(relations: Relations, edges: Edges, known: Ids | None = None) -> Ids:
    """Colour by id, numbered from 0: int64 (ids,).

    Args:
        relations: the relations.
        edges: their links and functions.
        known: colours of the first ids under a subset of the relations; more relations can only split them further.
    """
    colour = _first_colours(relations, known)
    linked = np.zeros(relations.size, dtype=bool)
    linked[edges.source] = linked[edges.target] = True
    open_ids = np.flatnonzero(linked & (np.bincount(colour, minlength=1)[colour] > 1))
    # An id with a colour of its own cannot split further: its hash stays, and distinguishes its partners.
    place = np.full(relations.size, -1, dtype=np.int64)
    place[open_ids] = np.arange(len(open_ids))
    follows, followed = place[edges.source] >= 0, place[edges.target] >= 0
    source, target = place[edges.source[follows]], place[edges.target[followed]]
    above, below = edges.target[follows], edges.source[followed]
    label = edges.label.astype(np.uint64)
    up, down = _mix(2 * label[follows]), _mix(2 * label[followed] + np.uint64(1))
    hashes = _mix(colour.astype(np.uint64) + np.uint64(1))
    count = len(np.unique(hashes[open_ids]))
    while True:
        # Sums of mixed hashes identify the multiset of partners, whatever their order, up to collisions of 64 bits. A
        # collision could only leave a class unsplit, which the checks of the solver and execution would find.
        combined = _mix(hashes[open_ids])
        np.add.at(combined, source, _mix(hashes[above] + up))
        np.add.at(combined, target, _mix(hashes[below] + down))
        hashes[open_ids] = _mix(combined)
        new_count = len(np.unique(hashes[open_ids]))
        if new_count == count:
            break
        count = new_count
    _split(colour, open_ids, hashes[open_ids])
    return in_order(colour)  # so that nothing depends on the hashes


def first_places(numbers: Ids) -> Ids:
    """For every number from 0 on, where it occurs first; the number of places for one that does not occur."""
    count = len(numbers)
    first = np.full(int(numbers.max(initial=-1)) + 1, count, dtype=np.int64)
    first[numbers[::-1]] = np.arange(count - 1, -1, -1)
    return first


def in_order(numbers: Ids) -> Ids:
    """Numbers from 0 on for equal numbers, in the order in which they occur first."""
    first = first_places(numbers)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    return rank[numbers]


def _split(colour: Ids, ids: Ids, hashes: Hashes) -> None:
    """Give these ids new colours, one for each hash."""
    # With `return_index`, `unique` uses a stable sort, which is fast where equal values are adjacent.
    number = np.unique(hashes, return_index=True, return_inverse=True)[2].reshape(-1)
    colour[ids] = number + colour.max(initial=-1) + 1


def _first_colours(relations: Relations, known: Ids | None) -> Ids:
    """Colours by batch of creation, pins and labels, numbered in no particular order."""
    births = np.array([*relations.births, relations.size], dtype=np.int64)
    colour = np.repeat(np.arange(len(births) - 1), np.diff(births))
    if known is not None:
        colour += len(known)
        colour[: len(known)] = known
    unused = int(colour.max(initial=0)) + 1
    for ids, _ in relations.pins:
        colour[ids] = unused + ids
    hashes = np.zeros(relations.size, dtype=np.uint64)
    touched = np.zeros(relations.size, dtype=bool)
    for number, (ids, labels) in enumerate(relations.colours):
        salt = _mix(np.array([number], dtype=np.uint64))
        np.add.at(hashes, ids, _mix(labels.astype(np.uint64) * np.uint64(2) + salt))
        touched[ids] = True
    touched &= colour < unused
    changed = np.flatnonzero(touched)
    _split(colour, changed, hashes[changed] + _mix(colour[changed].astype(np.uint64)))
    return colour


def _mix(values: Hashes) -> Hashes:
    """The finaliser of splitmix64 (Steele, Lea & Flood 2014), a bijection of 64-bit numbers; sums of its values
    distinguish multisets.
    """
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed
