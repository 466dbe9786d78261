"""What one tile adds to its cluster's similarity: the product of A's slab with B's, with B's other axes permuted.

A *slab* is the rows and columns of a tensor that a product needs, as a float32 matrix. Products accumulate in float32
whatever the files hold. Only a piece of either tensor is in memory at a time; mapped files stay mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Cluster, Tile
from rebasin_cli.matching.families import FoldedShape, Index

PIECE = 1 << 20
"""Elements of one piece: 4 MiB of float32."""


@dataclass(frozen=True, slots=True)
class SlabFrame:
    """How a tile's tensor is laid out: rows along `fold`, columns along `lead` (None if there is no other fold)."""

    fold: int
    lead: int | None
    rest: tuple[int, ...]

    def extent(self, shape: FoldedShape) -> int:
        return 1 if self.lead is None else shape.sizes[self.lead]


def frame(shape: FoldedShape, fold: int, movable: Sequence[int]) -> SlabFrame:
    """Choose as columns the longest fold on which a group acts, or the longest of all where none does."""
    others = [other for other in range(len(shape.sizes)) if other != fold]
    if not others:
        return SlabFrame(fold, None, ())
    lead = max(others, key=lambda other: (other in movable, shape.sizes[other]))
    return SlabFrame(fold, lead, tuple(other for other in others if other != lead))


def column_pieces(shape: FoldedShape, look: SlabFrame, rows: int, columns: Index | None) -> Iterator[slice | Index]:
    """Split columns (all of them, or those listed) so that a slab stays within a piece."""
    per_column = max(1, rows)
    for other in look.rest:
        per_column *= shape.sizes[other]
    step = max(1, PIECE // per_column)
    total = look.extent(shape) if columns is None else len(columns)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total)) if columns is None else columns[start : start + step]


def gathered(view: Tensor, fold: int, index: Index) -> Tensor:
    """`view` with one fold gathered, on its own device."""
    return view.index_select(fold, torch.from_numpy(np.ascontiguousarray(index)).to(view.device))


def slab(
    tensor: Tensor,
    shape: FoldedShape,
    look: SlabFrame,
    rows: Index,
    columns: slice | Index,
    gathers: Mapping[int, Index | None],
    device: torch.device,
) -> Tensor:
    """The entries at `rows` (cells, width) and these columns, after `gathers`: float32 (cells, width * …)."""
    view = tensor.detach().reshape(shape.sizes)
    if look.lead is not None:
        through = gathers.get(look.lead)
        if through is not None:
            view = gathered(view, look.lead, through[columns])
        elif isinstance(columns, slice):
            view = view.narrow(look.lead, columns.start, columns.stop - columns.start)
        else:
            view = gathered(view, look.lead, columns)
    for other in look.rest:
        through = gathers.get(other)
        if through is not None:
            view = gathered(view, other, through)
    flat = rows.reshape(-1)
    if len(flat) != shape.sizes[look.fold] or (flat != np.arange(len(flat))).any():
        view = gathered(view, look.fold, flat)
    matrix = view.to(device=device, dtype=torch.float32).movedim(look.fold, 0)
    return matrix.reshape(rows.shape[0], -1)


Sides = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
Slabs = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class TileGathers:
    """What a tile's contribution depends on: B's gathers on the other folds, and others' on the tile's own fold."""

    gathers: Mapping[int, Index | None]
    around: tuple[Index | None, Index | None]

    def same(self, other: TileGathers) -> bool:
        return self.same_rows(other) and all(equal(self.gathers[fold], other.gathers[fold]) for fold in other.gathers)

    def same_rows(self, other: TileGathers) -> bool:
        return all(map(equal, self.around, other.around))


def equal(one: Index | None, other: Index | None) -> bool:
    """Whether two gathers are equal; usually they are one object, or differ in an early element."""
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


class Products:
    """Products of tiles for a pair and an arrangement that changes.

    Attributes:
        work: multiply-adds spent so far.
    """

    def __init__(self, sides: Sides, arrangement: Arrangement, device: torch.device) -> None:
        self.sides, self.arrangement, self.device = sides, arrangement, device
        self.shapes = arrangement.families.shapes
        self.work = 0

    def gathers_of(self, cluster: Cluster, tile: Tile) -> TileGathers:
        """What the tile's contribution depends on, at present."""
        folds = range(len(self.shapes[tile.key].sizes))
        others = {fold: self.arrangement.gather((tile.key, fold)) for fold in folds if fold != tile.fold}
        return TileGathers(others, self.arrangement.around(tile.place, cluster.families))

    def is_vector(self, tile: Tile) -> bool:
        """Whether the tensor has no other fold, so that its product has rank `width`."""
        return len(self.shapes[tile.key].sizes) == 1

    def whole(self, tile: Tile, now: TileGathers) -> Slabs:
        """Both whole slabs, float32 (cells, width * …)."""
        return self._pair(tile, now, slice(0, self.frame_of(tile).extent(self.shapes[tile.key])), None)

    def change(self, tile: Tile, before: TileGathers, now: TileGathers, widest: int) -> Slabs | None:
        """Slabs whose product is the change of the contribution; None if they are wider than `widest` columns."""
        columns = self.moved_columns(tile, before, now)
        shape = self.shapes[tile.key]
        per_column = tile.positions.shape[1] * np.prod(
            [shape.sizes[f] for f in self.frame_of(tile).rest], dtype=np.int64
        )
        if columns is None or len(columns) * per_column > widest:
            return None
        return self._pair(tile, now, columns, before)

    def moved_columns(self, tile: Tile, before: TileGathers, now: TileGathers) -> Index | None:
        """The columns whose content differs, or None where rows or other folds changed as well, so that all do."""
        look = self.frame_of(tile)
        if look.lead is None or not before.same_rows(now):
            return None
        if any(not equal(before.gathers[fold], now.gathers[fold]) for fold in look.rest):
            return None
        plain = np.arange(look.extent(self.shapes[tile.key]))
        was, now_is = (plain if seen.gathers[look.lead] is None else seen.gathers[look.lead] for seen in (before, now))
        return np.flatnonzero(was != now_is)

    def product(self, into: Tensor, tile: Tile, now: TileGathers, before: TileGathers | None) -> None:
        """`into = A B_now^T`, or `A (B_now - B_before)^T` over the columns that moved.

        `into` is float32 (cells, cells). With `before` given, the rows must be the same then and now.
        """
        columns = None if before is None else self.moved_columns(tile, before, now)
        begun = 0
        for piece in column_pieces(self.shapes[tile.key], self.frame_of(tile), tile.positions.size, columns):
            left, right = self._pair(tile, now, piece, before)
            into.addmm_(left, right.T, beta=begun)
            self.work += into.numel() * left.shape[1]
            begun = 1
        if not begun:
            into.zero_()

    def _pair(self, tile: Tile, now: TileGathers, columns: slice | Index, before: TileGathers | None) -> Slabs:
        rows_a, rows_b = self.rows(tile, now)
        left = self._slab(0, tile, rows_a, columns, {})
        right = self._slab(1, tile, rows_b, columns, now.gathers)
        if before is not None:
            right = right - self._slab(1, tile, rows_b, columns, before.gathers)
        return left, right

    def _slab(
        self, side: int, tile: Tile, rows: Index, columns: slice | Index, through: Mapping[int, Index | None]
    ) -> Tensor:
        tensor = self.sides[side][tile.key]
        return slab(tensor, self.shapes[tile.key], self.frame_of(tile), rows, columns, through, self.device)

    def rows(self, tile: Tile, seen: TileGathers) -> tuple[Index, Index]:
        """Where the cells are in A and in B, given the gathers of other groups on the same fold after and before."""
        before, after = seen.around
        rows_a = tile.positions if after is None else np.argsort(after)[tile.positions]
        return rows_a, tile.positions if before is None else before[tile.positions]

    def frame_of(self, tile: Tile) -> SlabFrame:
        """The rows and columns of this tile's slabs."""
        places = self.arrangement.families.places
        movable = [fold for fold in range(len(self.shapes[tile.key].sizes)) if (tile.key, fold) in places]
        return frame(self.shapes[tile.key], tile.fold, movable)
