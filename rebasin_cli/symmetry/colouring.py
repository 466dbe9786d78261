"""Colour refinement: which ids cannot be exchanged, because the relations tell them apart.

Ids start with the colour of the batch they were born in; colours split by labels, by pins, and by the colours of what
an id
is linked to, follows, or is followed by, until nothing splits any more. The result is the coarsest equitable colouring.
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
    """All links and functions as arrays: from an id to the one it is linked to or follows, with the relation's
    number.
    """

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
        relations: what is said.
        edges: its links and functions.
        known: colours of the first ids from fewer relations, which more relations can only split further.
    """
    colour = _first_colours(relations, known)
    touched = np.flatnonzero(np.bincount(np.r_[edges.source, edges.target], minlength=relations.size))
    if not len(touched):
        return colour
    place = np.zeros(relations.size, dtype=np.int64)
    place[touched] = np.arange(len(touched))
    source, target = place[edges.source], place[edges.target]
    label = edges.label.astype(np.uint64)
    down, up = _mix(2 * label), _mix(2 * label + np.uint64(1))
    local = _mix(colour[touched].astype(np.uint64) + np.uint64(1))
    count = len(np.unique(local))
    while True:
        seen = _mix(local)
        np.add.at(seen, source, _mix(local[target] + down))
        np.add.at(seen, target, _mix(local[source] + up))
        local = _mix(seen)
        new_count = len(np.unique(local))
        if new_count == count:
            break
        count = new_count
    colour[touched] = np.unique(local, return_inverse=True)[1] + colour.max() + 1
    return _in_order(colour)


def first_places(numbers: Ids) -> Ids:
    """For every number from 0 on, all of which occur, where it occurs first."""
    first = np.empty(int(numbers.max(initial=-1)) + 1, dtype=np.int64)
    first[numbers[::-1]] = np.arange(len(numbers))[::-1]
    return first


def _in_order(values: Ids | Hashes) -> Ids:
    """Numbers from 0 on for equal values, in the order in which they occur first: nothing depends on the hashes."""
    numbers: Ids = np.unique(values, return_inverse=True)[1].reshape(-1)
    rank = np.empty(int(numbers.max(initial=-1)) + 1, dtype=np.int64)
    rank[np.argsort(first_places(numbers))] = np.arange(len(rank))
    return rank[numbers]


def _first_colours(relations: Relations, known: Ids | None) -> Ids:
    births = np.array([*relations.births, relations.size], dtype=np.int64)
    told = _mix(np.repeat(np.arange(len(births) - 1, dtype=np.uint64), np.diff(births)))
    if known is not None:
        told[: len(known)] = _mix(told[: len(known)] + _mix(known.astype(np.uint64)))
    for number, (ids, labels) in enumerate(relations.colours):
        salt = _mix(np.array([number], dtype=np.uint64))
        np.add.at(told, ids, _mix(labels.astype(np.uint64) * np.uint64(2) + salt))
    for ids, _ in relations.pins:
        told[ids] = _mix(_mix(ids.astype(np.uint64)) + np.uint64(7))
    return _in_order(told)


def _mix(values: Hashes) -> Hashes:
    """A 64-bit finaliser (splitmix64: Steele, Lea & Flood 2014): equal in, equal out; sums of its values tell
    multisets apart.
    """
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed: Hashes = values ^ (values >> np.uint64(31))
    return mixed
