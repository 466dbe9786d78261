"""Concatenation along one dimension, all other dimensions indexed together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from rebasin_cli.symmetry.algebra import align, join
from rebasin_cli.symmetry.arrange import TOO_MANY, given_up, materialise
from rebasin_cli.symmetry.positions import JOINT_LIMIT, AxisLayout, Entry, Factor, IdBlock, Ids, all_differ
from rebasin_cli.symmetry.relations import Relations, hold_entry, keep_finest

_FREE = "free"
CONCATENATED = "concatenated positions"


def concatenate(relations: Relations, pieces: Sequence[AxisLayout], place: int, *, apart: int = 0) -> AxisLayout:
    """The positions of all pieces along dimension `place`, in order.

    Ids that occur twice are replaced by new ones, each a child of the old one: the two copies move alike, but they are
    two positions (`cat([x, x])`).

    Args:
        apart: up to this many joint positions, the other dimensions may be permuted differently in each piece (what is
            stacked may be split again); beyond, they are joined.
    """
    if len(pieces) == 1:
        return pieces[0]
    rank = len(pieces[0].dims)
    pieces = [materialise(relations, relations.released(piece), place) for piece in pieces]
    pieces = [_own_factor(piece, place) for piece in pieces]
    operands = [
        (piece, [("cat", which) if d == place else d for d in range(rank)]) for which, piece in enumerate(pieces)
    ]
    aligned, factors = align(relations, operands)
    along = [factors[("cat", which)][0] for which in range(len(pieces))]
    merged = Factor(sum(factor.size for factor in along))
    differ = _differing(relations, aligned, along) if apart else set()
    if prod(factor.size for factor in differ) * merged.size > apart:
        differ = set()
    dims = tuple((merged,) if d == place else factors.get(d, ()) for d in range(rank))
    touched = _closure(aligned, {*along, *differ})
    extra = tuple(f for f in dict.fromkeys(f for piece in aligned for f in piece.factors) if f in touched - {*along})
    mentioned = any(touched & set(entry.factors) for piece in aligned for entry in piece.entries)
    too_many = prod(factor.size for factor in extra) * merged.size > JOINT_LIMIT
    if differ and (too_many or not mentioned):
        return concatenate(relations, pieces, place)
    entries, fixed = (aligned[0].entries, aligned[0].fixed) if differ else join(relations, aligned)
    kept_fixed = {f: reason for f, reason in fixed.items() if f not in along and f not in differ}
    if not mentioned and not too_many and 0 < sum(factor not in fixed for factor in along) < len(along):
        return AxisLayout(dims, (*entries, _beside_uniform(relations, along, fixed, merged)), kept_fixed)
    if not mentioned:
        kept_fixed[merged] = next((fixed[factor] for factor in along if factor in fixed), CONCATENATED)
        return AxisLayout(dims, tuple(entries), kept_fixed)
    if too_many:
        met = [entry for entry in entries if set(entry.factors) & set(along)]
        rest = [entry for entry in entries if entry not in met]
        lost = given_up(relations, met, along)
        return AxisLayout(dims, tuple(keep_finest(relations, [*rest, *lost])), {**kept_fixed, merged: TOO_MANY})
    parts = [
        _piece_ids(relations, piece.entries, (*extra, factor), piece.fixed if differ else fixed)
        for piece, factor in zip(aligned, along, strict=True)
    ]
    joint = _joined(relations, parts)
    entry = Entry((*extra, merged), IdBlock(joint.size, np.ascontiguousarray(joint).ravel()))
    return AxisLayout(dims, (*(e for e in entries if not touched & set(e.factors)), entry), kept_fixed)


def _beside_uniform(
    relations: Relations, along: Sequence[Factor], fixed: Mapping[Factor, str], merged: Factor
) -> Entry:
    """Fixed pieces beside uniform ones (the input beside a state of zeros): equal numbers may trade places."""
    ids = relations.new_ids(merged.size)
    start = 0
    for which, factor in enumerate(along):
        piece = ids[start : start + factor.size]
        relations.colour(piece, np.full(piece.size, which, dtype=np.int64))
        if factor in fixed:
            relations.pin(piece, fixed[factor])
        start += factor.size
    return Entry((merged,), IdBlock(merged.size, ids))


def _differing(relations: Relations, pieces: Sequence[AxisLayout], along: Sequence[Factor]) -> set[Factor]:
    """The factors along which the pieces are not all permuted alike."""
    mentioned: list[dict[Factor, object]] = []
    for piece in pieces:
        found: dict[Factor, object] = dict.fromkeys(piece.fixed)
        for entry in piece.entries:
            if not set(entry.factors) & set(along):
                key = (entry.factors, relations.ids(entry).tobytes())
                for factor in entry.factors:
                    found[factor] = (found.get(factor), key)
        mentioned.append(found)
    factors = {factor for piece in pieces for factor in piece.factors if factor not in along}
    return {f for f in factors if any(found.get(f, _FREE) != mentioned[0].get(f, _FREE) for found in mentioned)}


def _closure(pieces: Sequence[AxisLayout], start: set[Factor]) -> set[Factor]:
    """These factors and all that share an entry with them: every entry is wholly inside or outside."""
    touched = set(start)
    entries = [set(entry.factors) for piece in pieces for entry in piece.entries]
    while True:
        more = {factor for factors in entries if factors & touched for factor in factors}
        if more <= touched:
            return touched
        touched |= more


def _own_factor(piece: AxisLayout, place: int) -> AxisLayout:
    """The piece with a factor for this dimension, of size 1 where its length is 1."""
    if piece.dims[place]:
        return piece
    one = Factor(1)
    dims = (*piece.dims[:place], (one,), *piece.dims[place + 1 :])
    return AxisLayout(dims, piece.entries, {**piece.fixed, one: CONCATENATED})


def _piece_ids(
    relations: Relations, entries: Sequence[Entry], wanted: Sequence[Factor], fixed: Mapping[Factor, str]
) -> Ids:
    """Ids of one piece over the factors `wanted`: those of its only entry there, or new ones, children of all there."""
    found = [entry for entry in entries if set(entry.factors) & set(wanted)]
    if len(found) == 1 and set(found[0].factors) == set(wanted):
        return relations.ids_in_order(found[0], wanted)
    count = prod(factor.size for factor in wanted)
    fine = Entry(tuple(wanted), IdBlock(count, relations.new_ids(count)))
    for entry in found:
        relations.finer(fine, entry)
    held = {factor: fixed[factor] for factor in wanted if factor in fixed}
    if held:
        hold_entry(relations, fine, held)
    return relations.ids(fine)


def _joined(relations: Relations, parts: Sequence[Ids]) -> Ids:
    joint = np.concatenate(parts, axis=-1)
    if all_differ(joint):
        return joint
    own = relations.new_ids(joint.size).reshape(joint.shape)
    relations.function(own, joint)
    segment = np.repeat(np.arange(len(parts)), [part.shape[-1] for part in parts])
    relations.colour(own, segment)
    return own
