"""One movement of a tensor from what overlapping entries say of it.

The weight of a grouped convolution has entries over (g, o) and (g, i). A group inside block g moves along one of them;
a group of blocks moves both, and the tensor must move once: by whole slabs of g where their insides keep their order,
else by joint positions (g, o, i), each inside reordered as its entry says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from rebasin_cli.symmetry.fibres import Run
from rebasin_cli.symmetry.positions import Factor, Ids, all_differ, coordinates

Movement = tuple[tuple[Factor, ...], Ids, Run | None]
"""Factors, for each unit the joint positions of them that it moves, and these as a run if they are one."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What one entry says of one group.

    Args:
        factors: of the entry.
        shared: those that other entries of the tensor have too.
        rows: for each unit, the joint positions of `factors` that it moves: (units, places).
        ids: all ids of the entry.
        run: the rows as a run, if they are one.
    """

    factors: tuple[Factor, ...]
    shared: tuple[Factor, ...]
    rows: Ids
    ids: Ids
    run: Run | None

    @property
    def rest(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if factor not in self.shared)

    def index(self, factors: tuple[Factor, ...]) -> Ids:
        """Position along some of the factors, read as one axis: like `rows`."""
        places = coordinates(self.rows, self.factors)
        index = np.zeros(self.rows.shape, dtype=np.int64)
        for factor in factors:
            index = index * factor.size + places[factor]
        return index


class Irregular(Exception):
    """The entries of a tensor cannot be moved together; `ids` are what has to be pinned."""

    def __init__(self, ids: Ids) -> None:
        super().__init__()
        self.ids = ids


def movements(parts: Sequence[Rows]) -> Iterator[Movement]:
    """The sites of one group in one tensor: factors, and for each unit the joint positions of them that it moves.

    Raises:
        Irregular: see there.
    """
    across = [part for part in parts if part.shared and _crosses(part)]
    for part in parts:
        if part not in across:
            yield part.factors, part.rows, part.run
    if len(across) == 1:
        yield across[0].factors, across[0].rows, across[0].run
    elif across:
        yield (*_together(across), None)


def _crosses(part: Rows) -> bool:
    """Whether units differ in where they lie along the shared factors."""
    if part.run is not None and part.factors[: len(part.shared)] == part.shared:
        offset, outer, inner = part.run
        width = prod(factor.size for factor in part.rest)
        if offset // width == (offset + outer * len(part.rows) * inner - 1) // width:
            return False
    slab = np.sort(part.index(part.shared), axis=1)
    return bool(np.any(slab != slab[0]))


def _together(parts: Sequence[Rows]) -> tuple[tuple[Factor, ...], Ids]:
    first, inside = _blocks(parts[0])
    insides = [inside]
    for part in parts[1:]:
        slab, inside = _blocks(part)
        if part.shared != parts[0].shared or not np.array_equal(slab, first):
            raise Irregular(part.ids)
        insides.append(inside)
    if all(np.array_equal(inside, np.broadcast_to(np.arange(inside.shape[2]), inside.shape)) for inside in insides):
        return parts[0].shared, first
    factors, rows = parts[0].shared, first[:, :, None]
    for part, inside in zip(parts, insides, strict=True):
        width = inside.shape[2]
        rows = (rows[:, :, :, None] * width + inside[:, :, None, :]).reshape(*first.shape, -1)
        factors = (*factors, *part.rest)
    return factors, rows.reshape(len(rows), -1)


def _blocks(part: Rows) -> tuple[Ids, Ids]:
    """For each unit the slabs that it moves whole, (units, slabs), and their insides, (units, slabs, width)."""
    slab, inside = part.index(part.shared), part.index(part.rest)
    order = np.lexsort((inside[0], slab[0]))
    slab, inside = slab[:, order], inside[:, order]
    width = prod(factor.size for factor in part.rest)
    if part.rows.shape[1] % width:
        raise Irregular(part.ids)
    blocks, insides = slab.reshape(len(slab), -1, width), inside.reshape(len(slab), -1, width)
    whole = np.all(blocks == blocks[:, :, :1]) and np.all(np.sort(insides, axis=2) == np.arange(width))
    if not whole or not all_differ(blocks[:, :, 0]):
        raise Irregular(part.ids)
    return blocks[:, :, 0], insides
