"""Groups with groups inside their blocks, such as heads, solved together from products of B's rows with A's.

A block of B is compared with a block of A by the best maps inside it, so that heads are matched as what they can
become; then blocks are assigned. All that is needed of the tensors is, for each site of the outermost group,
`K = A Bᵀ` (rows of A with rows of B), and `N = B Bᵀ` where lengths may change. Inside a block the groups are solved in
turn while the others stand still, because they may share rows (queries of one key head).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.maps import GroupMap, Maps
from rebasin_cli.matching.assignment import assign
from rebasin_cli.matching.families import FoldedShape, Index, folded_shape, rows_on_fold
from rebasin_cli.matching.symmetries.closed_forms import Terms, best_map, keeps_lengths, scale_at
from rebasin_cli.spec import AxisGroup, PermutationSpec

ROUNDS = 4
"""Rounds over the groups inside a block, if they share rows."""
IMPOSSIBLE = -1e30


@dataclass(frozen=True, slots=True)
class Part:
    """One site of a group, as rows of the site of its parent that it lies in.

    Attributes:
        place: the index of the site in the group.
        slot: which of the parent's parts it lies in; for the outermost group, its own number.
        rows: int64 (n, width): the rows of each unit, counted within a block of that part.
    """

    place: int
    dual: bool
    slot: int
    rows: Index


@dataclass(frozen=True)
class Node:
    """A group and what is nested in each of its blocks."""

    group: AxisGroup
    parts: tuple[Part, ...]
    blocks: tuple[tuple[Node, ...], ...] = ()

    @cached_property
    def signature(self) -> tuple[object, ...]:
        """What two groups in different blocks must have in common to be compared."""
        parts = tuple((part.dual, part.slot, part.rows.tobytes(), part.rows.shape) for part in self.parts)
        inside = tuple(tuple(node.signature for node in block) for block in self.blocks)
        return (self.group.symmetry, self.group.size, self.group.pairing, parts, inside)

    @cached_property
    def descendants(self) -> tuple[Node, ...]:
        """This node and all below it."""
        return (self, *(one for block in self.blocks for node in block for one in node.descendants))

    @property
    def keeps_lengths(self) -> bool:
        return all(keeps_lengths(node.group) for node in self.descendants)


@dataclass(frozen=True, slots=True)
class RootSite:
    """A site of an outermost group: the tensor, the fold it lies on, and its rows there, (n, width)."""

    key: str
    fold: int
    shape: FoldedShape
    rows: Index

    def units(self, tensor: Tensor) -> Tensor:
        """The rows of the site in a tensor, flat: (n * width, rest)."""
        sizes = self.shape.sizes
        folded = tensor.reshape(sizes).movedim(self.fold, 0).reshape(sizes[self.fold], -1)
        return folded[torch.from_numpy(self.rows.reshape(-1))]


def build_tree(
    root: AxisGroup,
    children: Mapping[str, Sequence[AxisGroup]],
    shapes: Mapping[str, Sequence[int]],
    spec: PermutationSpec,
) -> tuple[Node, tuple[RootSite, ...]]:
    """A group with all that is nested in it.

    Args:
        children: groups by the name of their parent.
        shapes: of the tensors that count.

    Returns:
        the tree, and the sites of its root; sites of inner groups that lie outside of these are left out.
    """
    folds = {
        key: folded_shape(shapes[key], (site for _, site in spec.sites_by_key[key]))
        for key in {site.key for site in root.sites}
        if key in shapes
    }
    sites: list[RootSite] = []
    parts: list[Part] = []
    for place, site in enumerate(root.sites):
        if site.key in folds:
            fold, rows = rows_on_fold(site, root.size, folds[site.key])
            n, width = rows.shape
            parts.append(Part(place, site.dual, len(sites), np.arange(n * width).reshape(n, width)))
            sites.append(RootSite(site.key, fold, folds[site.key], rows))
    return _with_children(Node(root, tuple(parts)), children, sites, [one.rows for one in sites]), tuple(sites)


def _with_children(
    node: Node, children: Mapping[str, Sequence[AxisGroup]], sites: Sequence[RootSite], rows: Sequence[Index]
) -> Node:
    """The node with its nested groups.

    Args:
        sites: of the root.
        rows: for every part of the node, the rows of its units on the fold of the root's site it lies in, (n, width).
    """
    inside = children.get(node.group.name, ())
    if not inside:
        return node
    blocks: list[tuple[Node, ...]] = []
    for block in range(node.group.size):
        found = []
        for group in inside:
            if group.parent is None or group.parent.block != block:
                continue
            parts, own = _parts_within(group, sites, [table[block] for table in rows])
            if parts:
                found.append(_with_children(Node(group, parts), children, [sites[part.slot] for part in parts], own))
        blocks.append(tuple(sorted(found, key=lambda one: repr(one.signature))))
    return Node(node.group, node.parts, tuple(blocks))


def _parts_within(
    group: AxisGroup, sites: Sequence[RootSite], blocks: Sequence[Index]
) -> tuple[tuple[Part, ...], list[Index]]:
    """The sites of a nested group as parts, and their rows on the folds."""
    parts, own = [], []
    for place, site in enumerate(group.sites):
        for slot, (outer, block) in enumerate(zip(sites, blocks, strict=True)):
            if site.key != outer.key:
                continue
            fold, rows = rows_on_fold(site, group.size, outer.shape)
            where = {int(row): number for number, row in enumerate(block)}
            if fold == outer.fold and all(int(row) in where for row in rows.reshape(-1)):
                local = np.array([[where[int(row)] for row in line] for line in rows], dtype=np.int64)
                parts.append(Part(place, site.dual, slot, local))
                own.append(rows)
                break
    return tuple(parts), own


@dataclass(frozen=True, slots=True)
class Products:
    """Of one part's rows: `cross = A Bᵀ` and `own = B Bᵀ`, (rows, rows) each."""

    cross: Tensor
    own: Tensor | None = None

    def within(self, ours: Tensor, theirs: Tensor) -> Products:
        """Of some rows of A, and some of B."""
        own = None if self.own is None else self.own[theirs][:, theirs]
        return Products(self.cross[ours][:, theirs], own)

    def under(self, change: Tensor) -> Products:
        """The products after a change of B's rows."""
        own = None if self.own is None else change @ self.own @ change.T
        return Products(self.cross @ change.T, own)


def solve(
    node: Node, products: Sequence[Products], *, rough: bool = False, now: Mapping[str, GroupMap] = MappingProxyType({})
) -> Maps:
    """The best maps of a group and of all that is nested in it.

    Args:
        products: for every part of the parent (of the root: for its own parts).
        rough: general linear maps are orthogonal.
        now: the present maps, from which general linear ones continue.
    """
    if not any(node.blocks):
        return {node.group.name: best_map(node.group, terms_of(node, products), now.get(node.group.name), rough=rough)}
    n = node.group.size
    score = np.full((n, n), IMPOSSIBLE)
    for ours in range(n):
        for theirs in range(n):
            if _alike(node.blocks[ours], node.blocks[theirs]):
                inside = _between(node, products, ours, theirs)
                score[ours, theirs] = block_value(node.blocks[theirs], inside, _solve_block(node, theirs, inside, True))
    perm = torch.from_numpy(assign(score, node.group.name))
    maps: Maps = {node.group.name: GroupMap(perm)}
    for ours, theirs in enumerate(perm.tolist()):
        maps.update(_solve_block(node, theirs, _between(node, products, ours, theirs), rough, now))
    return maps


def _alike(one: Sequence[Node], other: Sequence[Node]) -> bool:
    return one is other or [node.signature for node in one] == [node.signature for node in other]


def _between(node: Node, products: Sequence[Products], ours: int, theirs: int) -> list[Products]:
    """The products of a block of A with a block of B, for every part of the node."""
    return [
        products[part.slot].within(torch.from_numpy(part.rows[ours]), torch.from_numpy(part.rows[theirs]))
        for part in node.parts
    ]


def _solve_block(
    node: Node,
    block: int,
    products: Sequence[Products],
    rough: bool,
    now: Mapping[str, GroupMap] = MappingProxyType({}),
) -> Maps:
    """The best maps inside a block of B, by turns."""
    nodes = node.blocks[block]
    maps: Maps = {}
    shared = _share_rows(nodes)
    best = -float("inf")
    for _ in range(ROUNDS if shared else 1):
        for one in nodes:
            around = list(products)
            if shared:
                others = [other for other in nodes if other is not one]
                around = [
                    product.under(change_of(others, slot, product, maps)) for slot, product in enumerate(products)
                ]
            maps.update(solve(one, around, rough=rough, now=now))
        if shared:
            reached = block_value(nodes, products, maps)
            if reached <= best + 1e-9 * abs(best):
                break
            best = reached
    return maps


def _share_rows(nodes: Sequence[Node]) -> bool:
    seen: set[tuple[int, int]] = set()
    for node in nodes:
        rows = {(part.slot, int(row)) for part in node.parts for row in part.rows.reshape(-1)}
        if rows & seen:
            return True
        seen |= rows
    return False


def terms_of(node: Node, products: Sequence[Products]) -> list[Terms]:
    """What decides the map of a group without anything inside."""
    found = []
    for part in node.parts:
        product = products[part.slot]
        n = node.group.size
        cross = torch.zeros(n, n, dtype=torch.float64)
        own = None if product.own is None else torch.zeros(n, n, dtype=torch.float64)
        for column in torch.from_numpy(part.rows.T.copy()):
            cross += product.cross[column][:, column]
            if own is not None and product.own is not None:
                own += product.own[column][:, column]
        found.append(Terms(part.place, part.dual, cross, own))
    return found


def change_of(nodes: Sequence[Node], slot: int, product: Products, maps: Mapping[str, GroupMap]) -> Tensor:
    """What these groups and all inside them do to the rows of one part of their parent: (rows, rows)."""
    total = torch.eye(product.cross.shape[1], dtype=torch.float64)
    for node in nodes:
        for number, part in enumerate(node.parts):
            if part.slot == slot:
                total = _change(node, number, total.shape[0], maps) @ total
    return total


def _change(node: Node, number: int, size: int, maps: Mapping[str, GroupMap]) -> Tensor:
    """What a group and all inside it do to the rows of its parent's part: first inside the blocks, then the blocks."""
    part = node.parts[number]
    total = torch.eye(size, dtype=torch.float64)
    for block, inside in enumerate(node.blocks):
        rows = torch.from_numpy(part.rows[block])
        for child in inside:
            for index, inner in enumerate(child.parts):
                if inner.slot == number:
                    change = torch.eye(size, dtype=torch.float64)
                    change[rows[:, None], rows[None, :]] = _change(child, index, len(rows), maps)
                    total = change @ total
    one = maps.get(node.group.name)
    if one is None or not one.moves:
        return total
    own = torch.eye(size, dtype=torch.float64)
    matrix = _matrix(node.group, one, part)
    for column in torch.from_numpy(part.rows.T.copy()):
        own[column[:, None], column[None, :]] = matrix
    return own @ total


def _matrix(group: AxisGroup, one: GroupMap, part: Part) -> Tensor:
    """A map at one part, as a matrix (n, n)."""
    if one.matrix is not None:
        dual = one.dual
        assert dual is not None
        return dual if part.dual else one.matrix
    matrix = torch.eye(group.size, dtype=torch.float64)
    if one.perm is not None:
        matrix = matrix[one.perm]
    scale = scale_at(group, one, part.place)
    return matrix if scale is None else matrix * scale[:, None]


def block_value(nodes: Sequence[Node], products: Sequence[Products], maps: Mapping[str, GroupMap]) -> float:
    """F of what lies in a block, under the maps inside it."""
    total = 0.0
    for slot, product in enumerate(products):
        change = change_of(nodes, slot, product, maps)
        total += float((product.cross * change).sum())
        if product.own is not None:
            total += float(product.own.diagonal().sum() - ((change @ product.own) * change).sum()) / 2
    return total
