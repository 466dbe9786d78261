"""What one tile adds to its cluster's similarity: the product of A's slab with B's, seen through what others do.

Float32 accumulation whatever the files hold; a piece of either tensor at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Cluster, Tile
from rebasin_cli.matching.folds import Index
from rebasin_cli.matching.slabs import Frame, column_pieces, frame, slab

Sides = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]
Slabs = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a tile's contribution hangs on: B's gathers on the other folds, and others' on the tile's own fold."""

    gathers: Mapping[int, Index | None]
    around: tuple[Index | None, Index | None]

    def same(self, other: Seen) -> bool:
        return self.same_rows(other) and all(equal(self.gathers[fold], other.gathers[fold]) for fold in other.gathers)

    def same_rows(self, other: Seen) -> bool:
        return all(map(equal, self.around, other.around))


def equal(one: Index | None, other: Index | None) -> bool:
    """Whether two gathers do the same; usually they are one object or of different content early on."""
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

    def look(self, cluster: Cluster, tile: Tile) -> Seen:
        """What the tile's contribution hangs on, as things stand."""
        folds = range(len(self.shapes[tile.key].sizes))
        others = {fold: self.arrangement.gather((tile.key, fold)) for fold in folds if fold != tile.fold}
        return Seen(others, self.arrangement.around(tile.place, cluster.families))

    def is_vector(self, tile: Tile) -> bool:
        """Has the tensor no other fold, so that its product is of rank `width`?"""
        return len(self.shapes[tile.key].sizes) == 1

    def whole(self, tile: Tile, now: Seen) -> Slabs:
        """Both whole slabs, float32 (cells, width * …)."""
        return self._pair(tile, now, slice(0, self.frame_of(tile).extent(self.shapes[tile.key])), None)

    def change(self, tile: Tile, before: Seen, now: Seen, widest: int) -> Slabs | None:
        """Slabs whose product is the change of the contribution; None if they are wider than `widest` columns."""
        columns = self.moved_columns(tile, before, now)
        shape = self.shapes[tile.key]
        per_column = tile.positions.shape[1] * np.prod(
            [shape.sizes[f] for f in self.frame_of(tile).rest], dtype=np.int64
        )
        if columns is None or len(columns) * per_column > widest:
            return None
        return self._pair(tile, now, columns, before)

    def moved_columns(self, tile: Tile, before: Seen, now: Seen) -> Index | None:
        """The columns whose content differs, or None where rows or other folds changed as well, so that all do."""
        look = self.frame_of(tile)
        if look.lead is None or not before.same_rows(now):
            return None
        if any(not equal(before.gathers[fold], now.gathers[fold]) for fold in look.rest):
            return None
        plain = np.arange(look.extent(self.shapes[tile.key]))
        was, now_is = (plain if seen.gathers[look.lead] is None else seen.gathers[look.lead] for seen in (before, now))
        return np.flatnonzero(was != now_is)

    def product(self, into: Tensor, tile: Tile, now: Seen, before: Seen | None) -> None:
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

    def _pair(self, tile: Tile, now: Seen, columns: slice | Index, before: Seen | None) -> Slabs:
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

    def rows(self, tile: Tile, seen: Seen) -> tuple[Index, Index]:
        """Where the cells lie in A and in B, given what others do on the same fold after and before."""
        before, after = seen.around
        rows_a = tile.positions if after is None else np.argsort(after)[tile.positions]
        return rows_a, tile.positions if before is None else before[tile.positions]

    def frame_of(self, tile: Tile) -> Frame:
        """How slabs of this tile are cut."""
        places = self.arrangement.families.places
        movable = [fold for fold in range(len(self.shapes[tile.key].sizes)) if (tile.key, fold) in places]
        return frame(self.shapes[tile.key], tile.fold, movable)
