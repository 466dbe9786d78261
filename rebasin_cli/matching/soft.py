"""Doubly stochastic matrices in place of permutations, for several replicas of a problem at once.

A cluster's state is, for every kind of its cells, a matrix X with `X[i, j]` the weight of B's cell j at A's cell i. The
objective is multilinear in the clusters, so its gradient for one of them is the similarity with `X B` in place of the
permuted B: one more product for every product with hard permutations, and no assignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.clusters import Axes, Cluster, Tile
from rebasin_cli.matching.families import Index, TensorFold
from rebasin_cli.matching.problem import Problem
from rebasin_cli.matching.products import Products
from rebasin_cli.matching.similarity import Sums

_WIDE = 64
"""Cells from which similarities are kept in float32: their rounding is far below any temperature."""
_PIECE = 1 << 24
"""Elements of B, all replicas counted, that are mixed at a time: 64 MiB of float32."""
_CACHED = 1 << 22
"""Elements of a tensor up to which its slabs are kept between visits, within the problem's budget."""


class Soft:
    """The matrices of all clusters, in every replica.

    Args:
        problem: the pair.
        replicas: how many states are kept side by side.

    Attributes:
        work: multiply-adds spent in products so far.
    """

    def __init__(self, problem: Problem, replicas: int) -> None:
        self.problem, self.replicas, self.work = problem, replicas, 0
        self._cells: dict[tuple[int, Axes], Tensor] = {}
        self._tiles: dict[TensorFold, list[tuple[int, Tile]]] = {}
        places = problem.families.places
        for cluster in problem.clusters:
            for tile in cluster.tiles:
                self._tiles.setdefault(tile.place, []).append((cluster.root, tile))
        for place, found in self._tiles.items():
            found.sort(key=lambda entry: places[place].index(entry[0]))
        self._still: dict[int, Sums] = {}
        self._slabs: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}
        self._room = problem.budget

    def set(self, cluster: Cluster, cells: dict[Axes, Tensor]) -> None:
        """Set a cluster's matrices, (replicas, cells, cells) each, float32, doubly stochastic."""
        self._cells.update({(cluster.root, axes): matrix for axes, matrix in cells.items()})

    def similarity(self, cluster: Cluster) -> Sums:
        """Similarities of a cluster's cells at the present matrices of the others: (replicas, cells, cells) by axes.

        The caller may change the result. Coupled tiles are left out. Float32 within a tile; between tiles float64,
        but for wide clusters.
        """
        sums: Sums = {}
        for axes, still in self._unmoved(cluster).items():
            wide = len(still) >= _WIDE
            sums[axes] = still.to(torch.float32 if wide else torch.float64).repeat(self.replicas, 1, 1)
        for number, tile in enumerate(cluster.tiles):
            others = self._others(tile)
            if tile.coupled or not others:
                continue
            part = self._product(cluster.root, number, tile, others)
            wide = part.shape[-1] >= _WIDE
            sums[tile.axes] = sums[tile.axes].add_(part) if tile.axes in sums else part if wide else part.double()
        return sums

    def forget_a(self) -> None:
        """A's tensors have changed in place: drop what was computed from them. Slabs must not be kept (no budget)."""
        self._still.clear()

    def mixed(self, key: str) -> Tensor:
        """B's tensor with the matrices applied on all its folds: float32 (replicas, …)."""
        shape = self.problem.families.shapes[key]
        tensor = self.problem.b[key].detach().reshape(shape.sizes)
        view = tensor.to(device=self.problem.device, dtype=torch.float32).unsqueeze(0)
        for fold in range(len(shape.sizes)):
            for cluster, tile in self._tiles.get((key, fold), ()):
                view = self._applied(view, fold + 1, tile, self._cells.get((cluster, tile.axes)))
        return view.expand(self.replicas, *view.shape[1:]).reshape(self.replicas, *shape.original)

    def _others(self, tile: Tile) -> list[int]:
        """The other folds of the tile's tensor on which a group acts."""
        folds = range(len(self.problem.families.shapes[tile.key].sizes))
        return [fold for fold in folds if fold != tile.fold and (tile.key, fold) in self._tiles]

    def _unmoved(self, cluster: Cluster) -> Sums:
        """The similarity from tensors on which no other group acts; computed once."""
        if cluster.root not in self._still:
            products = Products(
                (self.problem.a, self.problem.b), Arrangement(self.problem.families), self.problem.device
            )
            sums: Sums = {}
            for tile in cluster.tiles:
                if not tile.coupled and not self._others(tile):
                    part = torch.empty(len(tile.positions), len(tile.positions), device=self.problem.device)
                    products.product(part, tile, products.gathers_of(cluster, tile), None)
                    sums[tile.axes] = sums[tile.axes].add_(part) if tile.axes in sums else part
            self.work += products.work
            self._still[cluster.root] = sums
        return self._still[cluster.root]

    def _product(self, root: int, number: int, tile: Tile, others: Sequence[int]) -> Tensor:
        """`A (X B)^T` over a tile's cells, for all replicas: float32 (replicas, cells, cells)."""
        sizes = self.problem.families.shapes[tile.key].sizes
        cells, width = tile.positions.shape
        left = self._slab(0, root, number, tile, others, slice(0, cells)).reshape(cells, -1)
        parts: list[Tensor] = []
        per_cell = width * prod(sizes) // sizes[tile.fold] * self.replicas
        step = max(1, _PIECE // per_cell)
        for start in range(0, cells, step):
            piece = slice(start, min(start + step, cells))
            right = self._mixed(root, number, tile, others, piece)
            count = piece.stop - piece.start
            product = left @ right.reshape(-1, left.shape[1]).T
            self.work += product.numel() * left.shape[1]
            parts.append(product.view(cells, -1, count).transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def _mixed(self, root: int, number: int, tile: Tile, others: Sequence[int], piece: slice) -> Tensor:
        """B's rows of some cells, with the matrices applied on the other folds: (replicas, cells, columns).

        Columns are the tile's width, then the other folds in the order of `_slab`.
        """
        view = self._slab(1, root, number, tile, others, piece).unsqueeze(0)
        for axis, fold in enumerate(others):
            for cluster, other in self._tiles[tile.key, fold]:
                view = self._applied(view, axis + 3, other, self._cells.get((cluster, other.axes)))
        count = piece.stop - piece.start
        return view.expand(self.replicas, *view.shape[1:]).contiguous().view(self.replicas, count, -1)

    def _applied(self, view: Tensor, axis: int, tile: Tile, cells: Tensor | None) -> Tensor:
        """Apply a tile's matrices on one axis of a view.

        Args:
            view: (replicas or 1, …).
            cells: None where all of a tile's cells are equally likely.
        """
        extent, count = view.shape[axis], len(tile.positions)
        rows = tile.positions.reshape(-1)
        flat, whole = torch.from_numpy(rows).to(view.device), _is_whole(rows, extent)
        moved = view.movedim(axis, 1)
        part = moved if whole else moved.index_select(1, flat)
        shape = part.shape
        matrix = part.contiguous().view(shape[0], count, -1)
        if cells is None:
            mixed = matrix.mean(dim=1, keepdim=True).expand_as(matrix)
        elif shape[0] == 1:
            mixed = (cells.view(-1, count) @ matrix.squeeze(0)).view(self.replicas, count, -1)
            self.work += mixed.numel() * count
        else:
            mixed = torch.bmm(cells, matrix)
            self.work += mixed.numel() * count
        mixed = mixed.contiguous().view(-1, *shape[1:])
        if not whole:
            mixed = moved.expand(len(mixed), *moved.shape[1:]).index_copy(1, flat, mixed)
        return mixed.movedim(1, axis)

    def _slab(self, side: int, root: int, number: int, tile: Tile, others: Sequence[int], piece: slice) -> Tensor:
        """A side's rows of some cells: float32 (cells, width, other folds), the folds of `others` first."""
        sizes = self.problem.families.shapes[tile.key].sizes
        small = prod(sizes) <= _CACHED
        name = (side, root, (number, piece.start, piece.stop))
        if small and name in self._slabs:
            return self._slabs[name]
        tensor = (self.problem.a, self.problem.b)[side][tile.key].detach().reshape(sizes)
        rows = tile.positions[piece].reshape(-1)
        if not _is_whole(rows, sizes[tile.fold]):
            tensor = tensor.index_select(tile.fold, torch.from_numpy(rows).to(tensor.device))
        rest = [fold for fold in range(len(sizes)) if fold != tile.fold and fold not in others]
        view = tensor.to(device=self.problem.device, dtype=torch.float32).permute(tile.fold, *others, *rest)
        slab = view.contiguous().view(piece.stop - piece.start, tile.positions.shape[1], *view.shape[1:])
        if small and slab.nbytes <= self._room:
            self._room -= slab.nbytes
            self._slabs[name] = slab
        return slab


def _is_whole(rows: Index, extent: int) -> bool:
    """Whether these are all positions, in order."""
    return len(rows) == extent and bool((rows == np.arange(extent)).all())
