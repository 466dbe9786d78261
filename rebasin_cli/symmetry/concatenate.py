"""Tensors laid end to end along one dimension, running together along all others."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from rebasin_cli.symmetry.algebra import align, join
from rebasin_cli.symmetry.arrange import TOO_MANY, given_up, materialise
from rebasin_cli.symmetry.joining import absorb, hold
from rebasin_cli.symmetry.positions import JOINT_LIMIT, Block, Entry, Factor, Ids, Layout, released
from rebasin_cli.symmetry.relations import Relations

PLACE = "positions that are laid end to end keep their order"


def concatenate(relations: Relations, pieces: Sequence[Layout], place: int) -> Layout:
    """The positions of all pieces along dimension `place`, in order.

    Ids that occur twice become positions of their own, each following the one it came from.
    """
    if len(pieces) == 1:
        return pieces[0]
    rank = len(pieces[0].dims)
    pieces = [materialise(relations, released(piece), place) for piece in pieces]
    pieces = [_own_factor(piece, place) for piece in pieces]
    operands = [
        (piece, [("cat", which) if d == place else d for d in range(rank)]) for which, piece in enumerate(pieces)
    ]
    aligned, factors = align(relations, operands)
    entries, fixed = join(relations, aligned)
    along = [factors[("cat", which)][0] for which in range(len(pieces))]
    merged = Factor(sum(factor.size for factor in along))
    dims = tuple((merged,) if d == place else factors.get(d, ()) for d in range(rank))
    rest = tuple(entry for entry in entries if not set(entry.factors) & set(along))
    kept_fixed = {factor: reason for factor, reason in fixed.items() if factor not in along}
    touching = [[entry for entry in entries if factor in entry.factors] for factor in along]
    if not any(touching):
        kept_fixed[merged] = next((fixed[factor] for factor in along if factor in fixed), PLACE)
        return Layout(dims, rest, kept_fixed)
    extra = tuple(dict.fromkeys(f for found in touching for entry in found for f in entry.factors if f not in along))
    if prod(factor.size for factor in extra) * merged.size > JOINT_LIMIT:
        lost = [kept for found in touching for kept in given_up(relations, found, along)]
        return Layout(dims, tuple(absorb(relations, [*rest, *lost])), {**kept_fixed, merged: TOO_MANY})
    parts = [_piece_ids(relations, found, extra, factor, fixed) for found, factor in zip(touching, along, strict=True)]
    joint = _joined(relations, parts)
    entry = Entry((*extra, merged), Block(joint.size, np.ascontiguousarray(joint).ravel()))
    return Layout(dims, (*rest, entry), kept_fixed)


def _own_factor(piece: Layout, place: int) -> Layout:
    """A piece of length 1 gets a factor of size 1, so that all pieces are alike."""
    if piece.dims[place]:
        return piece
    one = Factor(1)
    dims = (*piece.dims[:place], (one,), *piece.dims[place + 1 :])
    return Layout(dims, piece.entries, {**piece.fixed, one: PLACE})


def _piece_ids(
    relations: Relations, found: Sequence[Entry], extra: Sequence[Factor], along: Factor, fixed: dict[Factor, str]
) -> Ids:
    """Ids of one piece over (extra, along); new ones, finer than all that is known, where it says less."""
    wanted = (*extra, along)
    if len(found) == 1 and set(found[0].factors) == set(wanted) and along not in fixed:
        return relations.ids_in_order(found[0], wanted)
    count = prod(factor.size for factor in wanted)
    fine = Entry(wanted, Block(count, relations.new_ids(count)))
    for entry in found:
        relations.finer(fine, entry)
    if along in fixed:
        hold(relations, fine, {along: fixed[along]})
    return relations.ids(fine)


def _joined(relations: Relations, parts: Sequence[Ids]) -> Ids:
    joint = np.concatenate(parts, axis=-1)
    if len(np.unique(joint)) == joint.size:
        return joint
    own = relations.new_ids(joint.size).reshape(joint.shape)
    relations.function(own, joint)
    segment = np.repeat(np.arange(len(parts)), [part.shape[-1] for part in parts])
    relations.colour(own, segment)
    return own
