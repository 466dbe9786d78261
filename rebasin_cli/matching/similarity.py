"""Similarities of a cluster's cells, kept between visits and updated instead of computed again.

`S[i, j] = sum over tiles of <A's cell i, B's cell j with all other groups permuted>`, accumulated in float32 within a
tile, whatever the files hold, and in float64 between tiles; what is kept of wide clusters between visits is kept in
float32, whose rounding is that of the products themselves. When a neighbour has moved, only the columns that it moved
are computed again: `S += A[:, moved] (B_new - B_old)[:, moved]^T`.
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
from rebasin_cli.matching.products import Products, Slabs, TileGathers

Sums = dict[Axes, Tensor]

_WIDE = 512
"""Number of cells from which a cluster is kept in float32: these similarities take most of the memory."""

_THIN = 512
"""Changes of up to so many columns are collected into one product: few columns cost as much as many."""


@dataclass(slots=True)
class _Kept:
    sums: Sums = field(default_factory=dict)
    seen: dict[int, TileGathers] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(total.numel() * total.element_size() for total in self.sums.values())


class Similarity:
    """The similarities of all clusters of a pair.

    Args:
        a, b: lazily read tensors by name; `b` is permuted.
        arrangement: the present permutations; their changes are followed.
        budget: bytes of similarities to keep between visits. Clusters beyond it are computed again at each visit.
        device: where products are made.
    """

    def __init__(
        self,
        a: Mapping[str, Tensor],
        b: Mapping[str, Tensor],
        arrangement: Arrangement,
        *,
        budget: int,
        device: torch.device,
    ) -> None:
        self.arrangement, self.budget, self.device = arrangement, budget, device
        self.products = Products((a, b), arrangement, device)
        self._kept: dict[int, _Kept] = {}
        self._seen: dict[int, dict[int, TileGathers]] = {}
        self._square = torch.empty(0, device=device)
        self._sums = torch.empty(0, dtype=torch.float64, device=device)

    @property
    def work(self) -> int:
        """Multiply-adds spent in products so far, to compare with one full pass."""
        return self.products.work

    def moved(self, cluster: Cluster) -> bool:
        """Whether anything that this cluster's similarity depends on has changed since it was last computed."""
        seen = self._seen.get(cluster.root)
        return seen is None or any(
            index not in seen or not seen[index].same(self.products.gathers_of(cluster, tile))
            for index, tile in enumerate(cluster.tiles)
        )

    def of(self, cluster: Cluster, tiles: Sequence[int] | None = None) -> Sums:
        """Similarities by axes, (cells, cells) each; `tiles` restricts a first computation to those.

        The result belongs to the cache: read it, do not change it. Coupled tiles are left out.

        Raises:
            NumericalError: a similarity is not finite.
        """
        kept = self._kept.pop(cluster.root, None) or _Kept()
        stale: dict[Axes, list[tuple[Tile, TileGathers, TileGathers | None]]] = {}
        for index in range(len(cluster.tiles)) if tiles is None else tiles:
            tile = cluster.tiles[index]
            now, before = self.products.gathers_of(cluster, tile), kept.seen.get(index)
            kept.seen[index] = now
            if not tile.coupled and (before is None or not before.same(now)):
                stale.setdefault(tile.axes, []).append((tile, now, before))
        for axes, changes in stale.items():
            self._update(kept, axes, changes)
        for total in kept.sums.values():
            if not bool(torch.isfinite(total.sum())):
                raise self._not_finite(cluster)
        self._seen[cluster.root] = kept.seen
        if sum(other.bytes for other in self._kept.values()) + kept.bytes <= self.budget:
            self._kept[cluster.root] = kept
        return kept.sums

    def views(self, cluster: Cluster, tile: Tile) -> Slabs:
        """A's and B's whole slabs of a tile, (cells, width * …) float32, B permuted by the other groups."""
        return self.products.whole(tile, self.products.gathers_of(cluster, tile))

    def _update(self, kept: _Kept, axes: Axes, changes: Sequence[tuple[Tile, TileGathers, TileGathers | None]]) -> None:
        """Update what is kept for `axes`; products of few columns are made as one."""
        cells = changes[0][0].positions.shape[0]
        summed = _Summed(kept.sums.get(axes), self._accumulator(cells) if len(changes) > 1 else None)
        thin: list[Slabs] = []
        for tile, now, before in changes:
            self._add_tile(summed, tile, now, before, thin)
        if thin:
            left, right = (torch.cat(side, dim=1) for side in zip(*thin, strict=True))
            part = torch.mm(left, right.T, out=self._scratch(cells))
            self.products.work += part.numel() * left.shape[1]
            summed.add(part)
        kept.sums[axes] = summed.total(torch.float32 if cells >= _WIDE else torch.float64)

    def _add_tile(
        self, summed: _Summed, tile: Tile, now: TileGathers, before: TileGathers | None, thin: list[Slabs]
    ) -> None:
        """Add the change of a tile's contribution; products of few columns are postponed."""
        if before is None and self.products.is_vector(tile):
            thin.append(self.products.whole(tile, now))
            return
        if before is not None and (change := self.products.change(tile, before, now, _THIN)) is not None:
            thin.append(change)
            return
        part = self._scratch(tile.positions.shape[0])
        if before is not None and not before.same_rows(now):
            self.products.product(part, tile, before, None)
            summed.add(part.neg_())
            before = None
        self.products.product(part, tile, now, before)
        summed.add(part)

    def _accumulator(self, cells: int) -> Tensor:
        """A float64 square, reused like the float32 one."""
        if self._sums.numel() < cells * cells:
            self._sums = torch.empty(cells * cells, dtype=torch.float64, device=self.device)
        return self._sums[: cells * cells].view(cells, cells)

    def _scratch(self, cells: int) -> Tensor:
        """A float32 square to accumulate in, reused because newly allocated memory is slow."""
        if self._square.numel() < cells * cells:
            self._square = torch.empty(cells * cells, dtype=torch.float32, device=self.device)
        return self._square[: cells * cells].view(cells, cells)

    def _not_finite(self, cluster: Cluster) -> NumericalError:
        title = self.arrangement.families.all[cluster.root].title
        keys = ", ".join(sorted({tile.key for tile in cluster.tiles}))
        return NumericalError(
            f"non-finite similarity in {title}: non-finite cost for the assignment, from the tensors {keys}",
            hint="look for NaN, infinite or huge weights in these tensors of either checkpoint",
            slug="non_finite_similarity",
        )


class _Summed:
    """A sum of float32 products on top of what was kept: in float64, whatever is kept in the end.

    Args:
        kept: the sum so far, float32 or float64; None for zero. Changed in place.
        scratch: float64 memory for the sum, where more than one product may come; without it, products are added to
            what is kept.
    """

    def __init__(self, kept: Tensor | None, scratch: Tensor | None) -> None:
        wide = kept is None or kept.dtype is torch.float32
        self._kept, self._scratch, self._empty = kept, scratch if wide else None, True

    def add(self, part: Tensor) -> None:
        """Add one product, which is not kept."""
        if self._scratch is not None:
            self._scratch.copy_(part) if self._empty else _add(self._scratch, part)
        elif self._kept is not None:
            _add(self._kept, part)
        else:
            self._kept = part.clone()
        self._empty = False

    def total(self, dtype: torch.dtype) -> Tensor:
        """The whole sum, in memory of its own, as `dtype` where nothing was kept."""
        if self._scratch is not None and not self._empty:
            if self._kept is None:
                return self._scratch.to(dtype, copy=True)
            _add(self._kept, self._scratch)
        assert self._kept is not None
        return self._kept.to(dtype)


def _add(total: Tensor, part: Tensor) -> None:
    """`total += part` across dtypes; numpy's mixed addition is four times as fast as torch's."""
    if total.device.type == "cpu":
        sums = total.numpy()
        np.add(sums, part.numpy(), out=sums, casting="same_kind")
    else:
        total += part
