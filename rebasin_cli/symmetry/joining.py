"""Entries over common factors brought together: equal ones linked, coarse ones made parents of fine ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np

from rebasin_cli.symmetry.positions import Entry, Factor
from rebasin_cli.symmetry.relations import Relations


def absorb(relations: Relations, pool: Sequence[Entry]) -> list[Entry]:
    """Keep the finest entries of a pool over common factors, and say how the others follow from them."""
    kept: list[Entry] = []
    for entry in sorted(pool, key=lambda entry: -len(entry.factors)):
        factors = set(entry.factors)
        implied = False
        for other in kept:
            common = factors & set(other.factors)
            if not common:
                continue
            if common == set(other.factors):
                relations.same(other, entry)
                implied = True
            elif common == factors:
                relations.finer(other, entry)
                implied = True
            else:
                rows = [factor for factor in entry.factors if factor in common]
                relations.same(relations.parents(other, rows), relations.parents(entry, rows))
        if not implied:
            kept.append(entry)
    return kept


def hold(relations: Relations, entry: Entry, fixed: Mapping[Factor, str]) -> None:
    """Positions of an entry that lie along fixed factors keep their place there."""
    ids = relations.ids(entry)
    reason = next(iter(fixed.values()))
    if all(factor in fixed for factor in entry.factors):
        relations.pin(ids, reason)
        return
    shape = [factor.size if factor in fixed else 1 for factor in entry.factors]
    relations.colour(ids, np.arange(prod(shape), dtype=np.int64).reshape(shape))
