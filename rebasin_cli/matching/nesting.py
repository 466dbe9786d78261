"""Solve a whole cluster at once: blocks and the units inside them.

With p the permutation of the blocks and q_i that of the units inside A's block i, the similarity is
`sum_i (S[i, p(i)] + sum_u S_{i, p(i)}[u, q_i(u)])`. The inner sum of block i depends on p through p(i) alone, so it can
be maximised for every pair of blocks (i, j) on its own, by one small assignment: V[i, j]. The maximum over p of
`sum_i (S + V)[i, p(i)]` is then one assignment, and with its inner permutations the joint optimum, not an alternation.
For deeper nesting this is repeated from the innermost families outwards.

Where two families act on the same positions (query heads beside value units, input beside output channels of a grouped
convolution) the inner objective of a pair is bilinear in them. They are solved in turn, each given the other, for all
pairs of blocks at once; that is not optimal in general, and whoever calls judges the result by the true objective.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.assignment import Matrix, assign, assign_many
from rebasin_cli.matching.clusters import Axes, Cluster
from rebasin_cli.matching.families import GroupFamilies, Index

_TURNS = 2
_PAIR_ELEMENTS = 1 << 23


@dataclass(frozen=True, slots=True)
class CoupledViews:
    """The slabs of a tile on which two sibling families act, (parent cells, first size, second size, columns) each."""

    first: int
    second: int
    a: Tensor
    b: Tensor


def coupled_views(families: GroupFamilies, axes: Axes, a: Tensor, b: Tensor) -> CoupledViews | None:
    """Shape a coupled tile's slabs; None where more than two families act on it: its share is then left out."""
    if len(axes) != 3:
        return None
    first, second = axes[1:]
    if families.all[first].parent != axes[0] or families.all[second].parent != axes[0]:
        return None
    sizes = (families.all[axes[0]].size, families.all[first].size, families.all[second].size)
    return CoupledViews(first, second, a.reshape(*sizes, -1), b.reshape(*sizes, -1))


class NestedProblem:
    """One cluster's assignment problem, given its similarities.

    Args:
        sums: similarities by axes, (cells, cells) each.
        coupled: slabs of the tiles on which two siblings act.
        current: the present permutations by family, from which coupled siblings start as well.
    """

    def __init__(
        self,
        families: GroupFamilies,
        cluster: Cluster,
        sums: Mapping[Axes, Tensor],
        coupled: Sequence[CoupledViews] = (),
        current: Mapping[int, Index] | None = None,
    ) -> None:
        self.families, self.cluster, self.coupled, self.current = families, cluster, coupled, current
        self.own: dict[int, Matrix] = {}
        for axes, total in sums.items():
            matrix = total.cpu().numpy()
            self.own[axes[-1]] = self.own[axes[-1]] + matrix if axes[-1] in self.own else matrix
        self.children = {
            index: [c for c in cluster.families if families.all[c].parent == index] for index in cluster.families
        }
        self.pairings: dict[int, Index] = {}

    def solve(self, bonus: Matrix | None = None) -> dict[int, Index]:
        """The jointly best permutations by family, (members, size) each; `bonus` is added to the root's similarity."""
        root = self.cluster.root
        scores = self._scores(root)[0]
        if bonus is not None:
            scores = scores + bonus
        found = {root: assign(scores, self.families.all[root].title)[None]}
        self._unfold(root, found[root][0], found)
        return found

    def _scores(self, index: int) -> Matrix:
        """Similarity of the units of a family for every pair of its parent's cells: (pairs, size, size)."""
        family = self.families.all[index]
        cells, size = family.members, family.size
        # Never copied without need: of a wide group this is hundreds of megabytes.
        total = self.own[index] if index in self.own else np.zeros((cells * size, cells * size))
        total = total + self._inner_values(index) if self.children[index] else total
        pairs: Matrix = total.reshape(cells, size, cells, size).transpose(0, 2, 1, 3)
        return pairs.reshape(cells * cells, size, size)

    def _inner_values(self, index: int) -> Matrix:
        """For every pair of cells of a family, the best sum inside them: (cells, cells)."""
        children = self.children[index]
        cells = self.families.all[index].members * self.families.all[index].size
        scores = {child: self._scores(child) for child in children}
        meets = [view for view in self.coupled if view.first in children]
        free = [child for child in children if not any(child in (v.first, v.second) for v in meets)]
        values = np.zeros(cells * cells)
        for child in free:
            gained, self.pairings[child] = assign_many(scores[child], self.families.all[child].title)
            values += gained
        if meets:
            values += self._in_turn([child for child in children if child not in free], scores, meets)
        inner: Matrix = values.reshape(cells, cells)
        return inner

    def _in_turn(self, children: Sequence[int], scores: Mapping[int, Matrix], meets: Sequence[CoupledViews]) -> Matrix:
        """Solve coupled siblings in turn for every pair of cells; the value of each pair at the end.

        Pairs that are matched at present also start from their present permutations, and keep the better end: so the
        value of the present matching never falls.
        """
        cells = self.families.all[self.cluster.root].size
        every = np.divmod(np.arange(cells * cells), cells)
        placed, values = self._turns(children, scores, meets, every, {})
        if self.current:
            together = self.current[self.cluster.root][0]
            flat = np.arange(cells) * cells + together
            hints = {child: self.current[child][together] for child in children}
            here = {child: scores[child][flat] for child in children}
            kept, kept_values = self._turns(children, here, meets, (np.arange(cells), together), hints)
            better = kept_values > values[flat]
            values[flat[better]] = kept_values[better]
            for child in children:
                placed[child][flat[better]] = kept[child][better]
        self.pairings.update(placed)
        return values

    def _turns(
        self,
        children: Sequence[int],
        scores: Mapping[int, Matrix],
        meets: Sequence[CoupledViews],
        pairs: tuple[Index, Index],
        hints: Mapping[int, Index],
    ) -> tuple[dict[int, Index], Matrix]:
        placed = dict(hints)
        for _ in range(_TURNS):
            for child in sorted(children, key=lambda child: child not in self.own):
                total = scores[child]
                for view in meets:
                    other = view.second if child == view.first else view.first
                    if child in (view.first, view.second) and other in placed:
                        total = total + shared_scores(view, child, placed[other], pairs)
                placed[child] = assign_many(total, self.families.all[child].title)[1]
        values = np.zeros(len(pairs[0]))
        for child in children:
            values += _picked(scores[child], placed[child])
        for view in meets:
            values += _picked(shared_scores(view, view.second, placed[view.first], pairs), placed[view.second])
        return placed, values

    def _unfold(self, index: int, cells: Index, found: dict[int, Index]) -> None:
        """Fix the inner permutations once A's cell c is paired with B's cell `cells[c]`."""
        for child in self.children[index]:
            family = self.families.all[child]
            pairs = self.pairings[child].reshape(len(cells), len(cells), family.size)
            inner = pairs[np.arange(len(cells)), cells]
            found[child] = np.empty_like(inner)
            found[child][cells] = inner
            self._unfold(child, (cells[:, None] * family.size + inner).reshape(-1), found)


def shared_scores(view: CoupledViews, child: int, other: Index, pairs: tuple[Index, Index]) -> Matrix:
    """What a coupled tile adds to the similarity of `child`'s units for pairs of cells, given its sibling.

    Args:
        other: the sibling's permutation for every pair, (pairs, sibling's size).
        pairs: A's and B's cell of every pair.

    Returns:
        float64 (pairs, size, size).
    """
    a, b = (view.a, view.b) if child == view.second else (view.a.transpose(1, 2), view.b.transpose(1, 2))
    _, across, size, depth = a.shape
    placed = torch.from_numpy(other).to(a.device)
    ours, theirs = (torch.from_numpy(np.ascontiguousarray(side)).to(a.device) for side in pairs)
    parts = []
    step = max(1, _PAIR_ELEMENTS // (across * size * depth))
    for start in range(0, len(ours), step):
        piece = slice(start, start + step)
        left = a[ours[piece]].permute(0, 2, 1, 3).flatten(2)
        right = b[theirs[piece, None], placed[piece]].permute(0, 2, 1, 3).flatten(2)
        parts.append(torch.bmm(left, right.transpose(1, 2)).double())
    matrix: Matrix = torch.cat(parts).cpu().numpy()
    return matrix


def _picked(scores: Matrix, perms: Index) -> Matrix:
    rows = np.arange(perms.shape[1])
    return np.asarray(scores[np.arange(len(perms))[:, None], rows, perms].sum(axis=1))


def cell_map(families: GroupFamilies, axes: Axes, perms: Mapping[int, Index]) -> Index:
    """B's cell under A's cell, for the cells of `axes`, a chain of nested families: int64 (cells,)."""
    cells: Index = perms[axes[0]][0]
    for index in axes[1:]:
        size = families.all[index].size
        cells = (cells[:, None] * size + perms[index][cells]).reshape(-1)
    return cells


def worth(families: GroupFamilies, sums: Mapping[Axes, Tensor], perms: Mapping[int, Index]) -> float:
    """`sum_c S[c, cell under c]` over a cluster's similarities: the first-order value of these permutations."""
    total = 0.0
    for axes, matrix in sums.items():
        cells = cell_map(families, axes, perms)
        picked = matrix.gather(1, torch.from_numpy(cells).to(matrix.device)[:, None])
        total += float(picked.sum(dtype=torch.float64))
    return total
