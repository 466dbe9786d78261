"""Similarities of a cluster's cells, kept and mended instead of computed anew.

`S[i, j] = sum over tiles of <A's cell i, B's cell j with everything else permuted as it stands>`, accumulated in
float32 within a tile, whatever the files hold, and in float64 between tiles. When a neighbour has moved, only the
columns that it moved are computed again: `S += A[:, moved] (B_new - B_old)[:, moved]^T`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.errors import NumericalError
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Axes, Cluster, Tile
from rebasin_cli.matching.folds import Index
from rebasin_cli.matching.slabs import Frame, column_pieces, frame, slab

Sums = dict[Axes, Tensor]
Gathers = Mapping[int, Index | None]


@dataclass(slots=True)
class _Seen:
    """What a tile's contribution was computed with."""

    gathers: dict[int, Index | None]
    around: tuple[Index | None, Index | None]


@dataclass(slots=True)
class _Kept:
    sums: Sums = field(default_factory=dict)
    seen: dict[int, _Seen] = field(default_factory=dict)
    bytes: int = 0


class Similarity:
    """The similarities of all clusters of a pair.

    Args:
        a, b: lazily read tensors by name; `a` is kept, `b` is seen permuted.
        arrangement: the permutations as they stand; followed as they change.
        budget: bytes of similarities to keep between visits. Clusters beyond it are computed anew at each visit.
        device: where products are made.

    Attributes:
        work: multiply-adds spent in products so far, to compare with one full pass.
    """

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        arrangement: Arrangement,
        *,
        budget: int = 1 << 28,
        device: torch.device | str = "cpu",
    ) -> None:
        self.a, self.b, self.arrangement = a, b, arrangement
        self.device = torch.device(device)
        self.budget, self.work, self._used = budget, 0, 0
        self._kept: dict[int, _Kept] = {}
        self._seen: dict[int, dict[int, _Seen]] = {}

    def moved(self, cluster: Cluster) -> bool:
        """Has anything that this cluster's similarity hangs on changed since it was last computed?"""
        seen = self._seen.get(cluster.root)
        return seen is None or any(
            index not in seen or not _same(seen[index], self._look(cluster, tile))
            for index, tile in enumerate(cluster.tiles)
        )

    def of(self, cluster: Cluster, tiles: Sequence[int] | None = None) -> Sums:
        """Similarities by axes, float64 (cells, cells) each; `tiles` restricts a first look to those.

        The result belongs to the cache: read it, do not change it. Coupled tiles are left out.

        Raises:
            NumericalError: a similarity is not finite.
        """
        kept = self._kept.pop(cluster.root, None) or _Kept()
        self._used -= kept.bytes
        chosen = range(len(cluster.tiles)) if tiles is None else tiles
        vectors: dict[Axes, list[tuple[Tensor, Tensor]]] = {}
        for index in chosen:
            tile = cluster.tiles[index]
            if tile.coupled:
                kept.seen[index] = self._look(cluster, tile)
                continue
            total = kept.sums.get(tile.axes)
            if total is None:
                cells = tile.positions.shape[0]
                total = kept.sums[tile.axes] = torch.zeros(cells, cells, dtype=torch.float64, device=self.device)
            self._bring_up_to_date(cluster, index, kept, total, vectors)
        for axes, pairs in vectors.items():
            rows, columns = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))
            kept.sums[axes] += rows @ columns.T
        for total in kept.sums.values():
            if not bool(torch.isfinite(total.sum())):
                raise self._not_finite(cluster)
        self._seen[cluster.root] = kept.seen
        kept.bytes = sum(total.numel() * 8 for total in kept.sums.values())
        if self._used + kept.bytes <= self.budget:
            self._kept[cluster.root] = kept
            self._used += kept.bytes
        return kept.sums

    def views(self, cluster: Cluster, tile: Tile) -> tuple[Tensor, Tensor]:
        """A's and B's whole slabs of a tile, (cells, width * …) float32, B seen through what others do at present."""
        look, now = self._frame(tile), self._look(cluster, tile)
        rows_a, rows_b = self._rows(tile, now)
        every = slice(0, look.extent(self.arrangement.families.shapes[tile.key]))
        return self._slab(self.a, tile, look, rows_a, every, {}), self._slab(
            self.b, tile, look, rows_b, every, now.gathers
        )

    def _bring_up_to_date(
        self,
        cluster: Cluster,
        index: int,
        kept: _Kept,
        total: Tensor,
        vectors: dict[Axes, list[tuple[Tensor, Tensor]]],
    ) -> None:
        tile, now = cluster.tiles[index], self._look(cluster, cluster.tiles[index])
        before = kept.seen.get(index)
        if before is not None and _same(before, now):
            return
        kept.seen[index] = now
        look = self._frame(tile)
        if before is None and self.a[tile.key].numel() == self.arrangement.families.shapes[tile.key].sizes[tile.fold]:
            vectors.setdefault(tile.axes, []).append(self.views(cluster, tile))
            return
        columns = None if before is None else _moved_columns(look, before, now, self._extent(tile, look))
        part = torch.zeros_like(total, dtype=torch.float32)
        rows_a, rows_b = self._rows(tile, now)
        if before is not None and not all(map(_equal, before.around, now.around)):
            self._accumulate(part, tile, look, self._rows(tile, before), None, before.gathers, None)
            total -= part
            part.zero_()
            before = None
        self._accumulate(
            part, tile, look, (rows_a, rows_b), columns, now.gathers, None if before is None else before.gathers
        )
        total += part

    def _accumulate(
        self,
        part: Tensor,
        tile: Tile,
        look: Frame,
        rows: tuple[Index, Index],
        columns: Index | None,
        now: Gathers,
        before: Gathers | None,
    ) -> None:
        """`part += A (B_now - B_before)^T` over the columns; without `before`, over B_now alone."""
        shape = self.arrangement.families.shapes[tile.key]
        for piece in column_pieces(shape, look, rows[0].size, columns):
            left = self._slab(self.a, tile, look, rows[0], piece, {})
            right = self._slab(self.b, tile, look, rows[1], piece, now)
            if before is not None:
                right = right - self._slab(self.b, tile, look, rows[1], piece, before)
            part.addmm_(left, right.T)
            self.work += part.numel() * left.shape[1]

    def _slab(
        self, side: Mapping[str, Tensor], tile: Tile, look: Frame, rows: Index, columns: slice | Index, through: Gathers
    ) -> Tensor:
        return slab(
            side[tile.key], self.arrangement.families.shapes[tile.key], look, rows, columns, through, self.device
        )

    def _rows(self, tile: Tile, seen: _Seen) -> tuple[Index, Index]:
        """Where the cells lie in A and in B, given what others do on the same fold after and before."""
        before, after = seen.around
        rows_a = tile.positions if after is None else np.argsort(after)[tile.positions]
        return rows_a, tile.positions if before is None else before[tile.positions]

    def _look(self, cluster: Cluster, tile: Tile) -> _Seen:
        shape = self.arrangement.families.shapes[tile.key]
        others = {f: self.arrangement.gather((tile.key, f)) for f in range(len(shape.sizes)) if f != tile.fold}
        return _Seen(others, self.arrangement.around(tile.place, cluster.families))

    def _frame(self, tile: Tile) -> Frame:
        families = self.arrangement.families
        movable = [f for f in range(len(families.shapes[tile.key].sizes)) if (tile.key, f) in families.places]
        return frame(families.shapes[tile.key], tile.fold, movable)

    def _extent(self, tile: Tile, look: Frame) -> int:
        return look.extent(self.arrangement.families.shapes[tile.key])

    def _not_finite(self, cluster: Cluster) -> NumericalError:
        title = self.arrangement.families.all[cluster.root].title
        keys = ", ".join(sorted({tile.key for tile in cluster.tiles}))
        return NumericalError(
            f"non-finite similarity in {title}: non-finite cost for the assignment, from the tensors {keys}",
            hint="look for NaN, infinite or huge weights in these tensors of either checkpoint",
            slug="non_finite_similarity",
        )


def _equal(one: Index | None, other: Index | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))


def _same(one: _Seen, other: _Seen) -> bool:
    return all(_equal(one.gathers[fold], other.gathers[fold]) for fold in other.gathers) and all(
        map(_equal, one.around, other.around)
    )


def _moved_columns(look: Frame, before: _Seen, now: _Seen, extent: int) -> Index | None:
    """The columns whose content differs, or None where rows or other folds changed as well, so that all do."""
    if look.lead is None or not all(map(_equal, before.around, now.around)):
        return None
    if any(not _equal(before.gathers[fold], now.gathers[fold]) for fold in look.rest):
        return None
    was, is_now = (np.arange(extent) if g is None else g for g in (before.gathers[look.lead], now.gathers[look.lead]))
    return np.flatnonzero(was != is_now)
