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


def refine(relations: Relations, edges: Edges) -> Ids:
    """Colour by id, numbered from 0: int64 (ids,)."""
    colour = _first_colours(relations)
    touched = np.unique(np.concatenate([edges.source, edges.target]))
    if not len(touched):
        return colour
    place = np.zeros(relations.size, dtype=np.int64)
    place[touched] = np.arange(len(touched))
    source, target = place[edges.source], place[edges.target]
    label = edges.label.astype(np.uint64)
    down, up = _mix(2 * label), _mix(2 * label + np.uint64(1))
    local = np.unique(colour[touched], return_inverse=True)[1]
    count = int(local.max()) + 1
    while True:
        hashed = _mix(local.astype(np.uint64) + np.uint64(1))
        seen = _mix(hashed)
        np.add.at(seen, source, _mix(hashed[target] + down))
        np.add.at(seen, target, _mix(hashed[source] + up))
        local = np.unique(seen, return_inverse=True)[1]
        new_count = int(local.max()) + 1
        if new_count == count:
            break
        count = new_count
    colour[touched] = local + colour.max() + 1
    return np.unique(colour, return_inverse=True)[1].astype(np.int64)


def _first_colours(relations: Relations) -> Ids:
    births = np.array(relations.births, dtype=np.int64)
    colour = np.searchsorted(births, np.arange(relations.size), side="right").astype(np.int64)
    told = _mix(colour.astype(np.uint64))
    for number, (ids, labels) in enumerate(relations.colours):
        salt = _mix(np.array([number], dtype=np.uint64))
        np.add.at(told, ids, _mix(labels.astype(np.uint64) * np.uint64(2) + salt))
    for ids, _ in relations.pins:
        told[ids] = _mix(_mix(ids.astype(np.uint64)) + np.uint64(7))
    return np.unique(told, return_inverse=True)[1].astype(np.int64)


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
