"""Similarities of a cluster's cells, kept and mended instead of computed anew.

`S[i, j] = sum over tiles of <A's cell i, B's cell j with everything else permuted as it stands>`, accumulated in
float32 within a tile, whatever the files hold, and in float64 between tiles; what is kept of wide clusters between
visits is kept in float32, whose rounding is that of the products themselves. When a neighbour has moved, only the
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
from rebasin_cli.matching.products import Products, Seen, Slabs

Sums = dict[Axes, Tensor]

_WIDE = 512
"""Clusters of so many cells are kept in float32: their similarities are most of the memory that a matching takes."""

_THIN = 512
"""Changes of up to so many columns wait for each other and become one product: few columns cost as much as many."""


@dataclass(slots=True)
class _Kept:
    sums: Sums = field(default_factory=dict)
    seen: dict[int, Seen] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        return sum(total.numel() * total.element_size() for total in self.sums.values())


class Similarity:
    """The similarities of all clusters of a pair.

    Args:
        a, b: lazily read tensors by name; `a` is kept, `b` is seen permuted.
        arrangement: the permutations as they stand; followed as they change.
        budget: bytes of similarities to keep between visits. Clusters beyond it are computed anew at each visit.
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
        self._seen: dict[int, dict[int, Seen]] = {}
        self._square = torch.empty(0, device=device)

    @property
    def work(self) -> int:
        """Multiply-adds spent in products so far, to compare with one full pass."""
        return self.products.work

    def moved(self, cluster: Cluster) -> bool:
        """Has anything that this cluster's similarity hangs on changed since it was last computed?"""
        seen = self._seen.get(cluster.root)
        return seen is None or any(
            index not in seen or not seen[index].same(self.products.look(cluster, tile))
            for index, tile in enumerate(cluster.tiles)
        )

    def of(self, cluster: Cluster, tiles: Sequence[int] | None = None) -> Sums:
        """Similarities by axes, (cells, cells) each; `tiles` restricts a first look to those.

        The result belongs to the cache: read it, do not change it. Coupled tiles are left out.

        Raises:
            NumericalError: a similarity is not finite.
        """
        kept = self._kept.pop(cluster.root, None) or _Kept()
        thin: dict[Axes, list[Slabs]] = {}
        for index in range(len(cluster.tiles)) if tiles is None else tiles:
            tile = cluster.tiles[index]
            now, before = self.products.look(cluster, tile), kept.seen.get(index)
            kept.seen[index] = now
            if tile.coupled or (before is not None and before.same(now)):
                continue
            waiting = thin.setdefault(tile.axes, [])
            self._bring_up_to_date(self._total(kept.sums, tile), tile, now, before, waiting)
        for axes, slabs in thin.items():
            self._add_thin(kept.sums[axes], slabs)
        for total in kept.sums.values():
            if not bool(torch.isfinite(total.sum())):
                raise self._not_finite(cluster)
        self._seen[cluster.root] = kept.seen
        if sum(other.bytes for other in self._kept.values()) + kept.bytes <= self.budget:
            self._kept[cluster.root] = kept
        return kept.sums

    def views(self, cluster: Cluster, tile: Tile) -> Slabs:
        """A's and B's whole slabs of a tile, (cells, width * …) float32, B seen through what others do at present."""
        return self.products.whole(tile, self.products.look(cluster, tile))

    def _total(self, sums: Sums, tile: Tile) -> Tensor:
        if tile.axes not in sums:
            cells = tile.positions.shape[0]
            dtype = torch.float32 if cells >= _WIDE else torch.float64
            sums[tile.axes] = torch.zeros(cells, cells, dtype=dtype, device=self.device)
        return sums[tile.axes]

    def _bring_up_to_date(self, total: Tensor, tile: Tile, now: Seen, before: Seen | None, thin: list[Slabs]) -> None:
        """Add what a tile's contribution lacks to `total`; products of few columns are put off, to be made as one."""
        if before is None and self.products.is_vector(tile):
            thin.append(self.products.whole(tile, now))
            return
        if before is not None and (change := self.products.change(tile, before, now, _THIN)) is not None:
            thin.append(change)
            return
        part = self._scratch(total.shape[0])
        if before is not None and not before.same_rows(now):
            self.products.accumulate(part.zero_(), tile, before, None)
            _add(total, part.neg_())
            before = None
        self.products.accumulate(part.zero_(), tile, now, before)
        _add(total, part)

    def _add_thin(self, total: Tensor, slabs: Sequence[Slabs]) -> None:
        """One product for many tiles of few columns each."""
        if slabs:
            left, right = (torch.cat(side, dim=1) for side in zip(*slabs, strict=True))
            part = torch.mm(left, right.T, out=self._scratch(total.shape[0]))
            self.products.work += part.numel() * left.shape[1]
            _add(total, part)

    def _scratch(self, cells: int) -> Tensor:
        """A float32 square to accumulate in, used again and again because fresh memory is slow."""
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


def _add(total: Tensor, part: Tensor) -> None:
    """`total += part` across dtypes; numpy's mixed addition is four times as fast as torch's."""
    if total.device.type == "cpu":
        sums = total.numpy()
        np.add(sums, part.numpy(), out=sums)
    else:
        total += part
