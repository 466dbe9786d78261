"""Clusters and their tiles: the pieces of tensors whose products make up the similarity of what one step solves.

A cluster is a root group with the families nested in its blocks. Its *cells* are the units at the finest level that
the nesting resolves: for heads with units inside, a cell is (head, unit). A tile is all that one fold of one tensor
holds for one kind of cell: positions of shape (cells, width). Permuting any family of the cluster permutes cells and
not the width, so the similarity of cells is one product over the width and the tensor's other folds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from rebasin_cli.matching.families import GroupFamilies, GroupFamily, Index, TensorFold

Axes = tuple[int, ...]
"""The families that resolve a cell, root first."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Positions (cells, width) on one fold of one tensor; the cells run over the units of `axes` in order."""

    place: TensorFold
    axes: Axes
    positions: Index
    coupled: bool
    """Two families that are not nested in each other act on the same positions: the objective is bilinear in them."""

    @property
    def key(self) -> str:
        return self.place[0]

    @property
    def fold(self) -> int:
        return self.place[1]


@dataclass(frozen=True, slots=True)
class Cluster:
    """A root family and all that is nested in it, children before parents, the root last."""

    root: int
    families: tuple[int, ...]
    tiles: tuple[Tile, ...]
    curved: bool
    """The objective is not linear in the cluster's cells: it acts on two folds of one tensor, or tiles are coupled.

    Or it acts twice on one fold, on the rows and the columns of matrices that lie in it as wholes. Such a fold has no
    tiles: it counts when a step is judged by the true objective.
    """
    keys: tuple[str, ...]
    """The tensors that it moves, sorted."""


class NotNested(Exception):
    """A family is not laid out in the same way in every block of its root."""

    def __init__(self, family: GroupFamily) -> None:
        super().__init__(family.title)
        self.family = family


def build_clusters(families: GroupFamilies) -> tuple[Cluster, ...]:
    """All clusters in the order of their roots. Raises NotNested for a family that must be a root itself."""
    below: dict[int, list[int]] = defaultdict(list)
    top: dict[int, int] = {}
    for family in families.all:
        top[family.index] = family.index if family.parent is None else top[family.parent]
        if family.parent is not None:
            below[top[family.index]].append(family.index)
    return tuple(_cluster(families, root, below[root]) for root in sorted(set(top.values())))


def _cluster(families: GroupFamilies, root: int, below: Sequence[int]) -> Cluster:
    members = [families.all[index] for index in below]
    places = families.all[root].rows
    for family in members:
        if any(place not in places for place in family.rows):
            raise NotNested(family)
    twice = {place for place in places for one in (families.all[root], *members) if _acts_twice(one, place)}
    tiles = tuple(tile for place in places if place not in twice for tile in _tiles(families.all[root], members, place))
    folds: dict[str, set[int]] = defaultdict(set)
    for tile in tiles:
        folds[tile.key].add(tile.fold)
    coupled = any(len(found) > 1 for found in folds.values()) or any(tile.coupled for tile in tiles)
    ordered = sorted(below, key=lambda index: -families.all[index].depth)
    keys = tuple(sorted({tile.key for tile in tiles} | {key for key, _ in twice}))
    return Cluster(root, (*ordered, root), tiles, bool(twice) or coupled, keys)


def _acts_twice(family: GroupFamily, place: TensorFold) -> bool:
    return place in family.rows and len(np.unique(family.rows[place])) < family.rows[place].size


def _tiles(root: GroupFamily, below: Sequence[GroupFamily], place: TensorFold) -> list[Tile]:
    """Tiles of one fold: its positions, by the families that resolve them."""
    blocks = root.rows[place][0]
    here = [family for family in below if place in family.rows]
    if not here:
        return [Tile(place, (root.index,), blocks, False)]
    owners = [_owners(root, family, place) for family in here]
    pattern = np.zeros(blocks.shape[1], dtype=np.int64)
    for bit, owner in enumerate(owners):
        pattern |= (owner[0] >= 0).astype(np.int64) << bit
    tiles = []
    for code in np.unique(pattern):
        slots = np.flatnonzero(pattern == code)
        resolving = [(f, o[:, slots]) for bit, (f, o) in enumerate(zip(here, owners, strict=True)) if code >> bit & 1]
        tiles.append(_tile(root, resolving, place, blocks[:, slots]))
    return tiles


def _owners(root: GroupFamily, family: GroupFamily, place: TensorFold) -> Index:
    """For every slot of a root block: the family's member within the block, its unit and its column, or -1: (3, slots).

    A slot is a position counted within its block; the slots must be the same in every block.
    """
    blocks, rows = root.rows[place][0], family.rows[place]
    extent = 1 + max(int(blocks.max()), int(rows.max()))
    block_of, slot_of = np.full(extent, -1), np.full(extent, -1)
    block_of[blocks] = np.arange(root.size)[:, None]
    slot_of[blocks] = np.arange(blocks.shape[1])
    per_block = family.members // root.size
    member, unit, column = np.indices(rows.shape)
    if (block_of[rows] != member // per_block).any():
        raise NotNested(family)
    owners = np.full((root.size, 3, blocks.shape[1]), -1, dtype=np.int64)
    for row, values in enumerate((member % per_block, unit, column)):
        owners[block_of[rows], row, slot_of[rows]] = values
    if (owners != owners[0]).any():
        raise NotNested(family)
    first: Index = owners[0]
    return first


def _tile(
    root: GroupFamily, resolving: Sequence[tuple[GroupFamily, Index]], place: TensorFold, positions: Index
) -> Tile:
    """One tile from the slots that exactly these families resolve; `positions` is (blocks, slots)."""
    if not resolving:
        return Tile(place, (root.index,), positions, False)
    order = np.lexsort((resolving[0][1][2], *(owner[1] for _, owner in reversed(resolving))))
    sizes = [family.size for family, _ in resolving]
    width, left = divmod(len(order), prod(sizes))
    if left:
        raise NotNested(resolving[-1][0])
    grid = np.arange(len(order)).reshape(*sizes, width)
    chain: dict[int, int] = {root.index: -1}
    for axis, (family, owner) in enumerate(resolving):
        _, unit, column = (part[order].reshape(grid.shape) for part in owner)
        lined_up = (unit == np.arange(family.size).reshape(-1, *[1] * (len(sizes) - axis))).all()
        if not lined_up or (column != column.take([0], axis=axis)).any() or family.parent not in chain:
            raise NotNested(family)
        chain[family.index] = axis
    nested = all(f.parent == before for (f, _), before in zip(resolving, chain, strict=False))
    axes = (root.index, *(family.index for family, _ in resolving))
    cells = positions[:, order].reshape(-1, width)
    return Tile(place, axes, cells, coupled=not nested)
