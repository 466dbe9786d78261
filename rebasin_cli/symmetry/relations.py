"""The relations between ids that the rules record and the solver closes.

- *link*: two id arrays are moved by the same permutation, element by element;
- *function*: child to parent; the permutation commutes with this map (units inside heads);
- *colour*: positions with different labels are never exchanged (a slice, a segment, an index along a fixed axis);
- *pin*: none of these positions moves, with the reason;
- *sorting*: rows sorted by index values; if not all rows are exchangeable, the indexed positions are pinned.

How the axes of a leaf factor is unknown until an operation uses it. The first use decides. What any other use assumed
about the leaf is a *claim*, which `algebra.settle_claims` joins with the decision: it is one tensor, so what is known
of either view holds for both. So two uses of one leaf are related even where neither knew of the other, as in an
operation that is given the same leaf twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import prod

import numpy as np

from rebasin_cli.symmetry.positions import AxisLayout, Entry, Factor, IdBlock, Ids, IndexMeaning, Leaf, RowChoice


@dataclass(slots=True)
class Relations:
    """The relations recorded so far, and the ids assigned.

    Attributes:
        size: number of ids.
        births: the first id of each batch; ids are created in batches.
        links, functions, colours, pins: flat arrays, see the module's docstring.
        sortings: rows, and the positions by whose indices they were sorted.
        decided: the layout of every leaf that has been used, axes in the leaf's own order.
        held: pinned axes, with the reason, of leaves that are not decided.
        claims: what other uses assumed about leaves, not yet joined with the decision.
        by_axis: names of leaves whose axes are always permuted as a whole, each with ids of its own.
    """

    size: int = 0
    births: list[int] = field(default_factory=list)
    links: list[tuple[Ids, Ids]] = field(default_factory=list)
    functions: list[tuple[Ids, Ids]] = field(default_factory=list)
    colours: list[tuple[Ids, Ids]] = field(default_factory=list)
    pins: list[tuple[Ids, str]] = field(default_factory=list)
    sortings: list[tuple[IdBlock, IdBlock]] = field(default_factory=list)
    decided: dict[Leaf, AxisLayout] = field(default_factory=dict)
    held: dict[Leaf, dict[int, str]] = field(default_factory=dict)
    claims: list[tuple[Leaf, AxisLayout]] = field(default_factory=list)
    by_axis: frozenset[str] = frozenset()
    _choices: dict[tuple[int, tuple[Factor, ...]], tuple[object, RowChoice]] = field(default_factory=dict)
    _parents: dict[bytes, IdBlock] = field(default_factory=dict)
    _recorded: set[bytes] = field(default_factory=set)

    def new_ids(self, count: int) -> Ids:
        ids = np.arange(self.size, self.size + count, dtype=np.int64)
        self.births.append(self.size)
        self.size += count
        return ids

    def ids(self, entry: Entry) -> Ids:
        """The ids of an entry, shaped like its factors; a block without ids receives them now."""
        if entry.block.ids is None:
            entry.block.ids = self.new_ids(entry.block.size)
        if entry.order is None:
            return entry.block.ids.reshape(entry.shape)
        return entry.block.ids[entry.order]

    def ids_in_order(self, entry: Entry, factors: Sequence[Factor]) -> Ids:
        """The ids with one axis for each of `factors`, which are the entry's in another order."""
        return np.transpose(self.ids(entry), [entry.factors.index(factor) for factor in factors])

    def link(self, left: Ids, right: Ids) -> None:
        left, right = left.ravel(), right.ravel()
        if not np.array_equal(left, right) and self._is_new(b"link", left, right):
            self.links.append((left, right))

    def function(self, child: Ids, parent: Ids) -> None:
        child, parent = (array.ravel() for array in np.broadcast_arrays(child, parent))
        if self._is_new(b"function", child, parent):
            self.functions.append((child, parent))

    def colour(self, ids: Ids, labels: Ids) -> None:
        ids, labels = (array.ravel() for array in np.broadcast_arrays(ids, labels))
        if self._is_new(b"colour", ids, labels):
            self.colours.append((ids, labels))

    def pin(self, ids: Ids, reason: str) -> None:
        self.pins.append((ids.ravel(), reason))

    def same(self, left: Entry, right: Entry) -> None:
        """Two entries over the same factors move together; an unresolved one adopts the other's ids.

        Adoption says the same as a link between new ids and old ones, with no ids and no relation added.
        """
        whole = left.order is None and right.order is None
        if whole and left.block is right.block and left.factors == right.factors:
            return
        if right.unresolved or not left.unresolved:
            ids = self.ids_in_order(left, right.factors)
            if right.unresolved:
                right.block.ids = np.ascontiguousarray(ids).ravel()
            else:
                self.link(ids, self.ids(right))
        else:
            left.block.ids = np.ascontiguousarray(self.ids_in_order(right, left.factors)).ravel()

    def finer(self, fine: Entry, coarse: Entry) -> None:
        """The positions of `coarse` are parents of those of `fine`, whose factors include its own."""
        ids = self.ids(coarse)
        shape = [factor.size if factor in coarse.factors else 1 for factor in fine.factors]
        order = [factor for factor in fine.factors if factor in coarse.factors]
        ids = np.transpose(ids, [coarse.factors.index(factor) for factor in order]).reshape(shape)
        self.function(self.ids(fine), ids)

    def parents(self, entry: Entry, kept: Sequence[Factor]) -> Entry:
        """The rows of an entry over `kept`, some of its factors, as positions with ids of their own.

        Equal rows, as sets of ids, always get the same parent ids: which columns they were written in is irrelevant, so
        rows are compared sorted.
        """
        rest = [factor for factor in entry.factors if factor not in kept]
        shape = tuple(factor.size for factor in kept)
        rows = self.ids_in_order(entry, [*kept, *rest]).reshape(prod(shape), -1)
        key = blake2b(np.sort(rows, axis=1).tobytes()).digest() + repr(rows.shape).encode()
        block = self._parents.get(key)
        if block is None:
            block = IdBlock(prod(shape), self.new_ids(prod(shape)))
            self._parents[key] = block
            assert block.ids is not None
            self.function(rows, block.ids[:, None])
        return Entry(tuple(kept), block)

    def row_choice(self, meaning: IndexMeaning, rows: tuple[Factor, ...]) -> RowChoice:
        """The factor for what these rows selected: the same one for the same index values in the same rows."""
        key = (id(meaning.token), rows)
        if key not in self._choices:
            self._choices[key] = meaning.token, RowChoice(meaning.block.size, rows)
        return self._choices[key][1]

    def layout(self, leaf: Leaf) -> AxisLayout:
        """What is known of a leaf, its axes in their own order."""
        return self.view(leaf, range(len(leaf.initial.dims)))

    def view(self, leaf: Leaf, axes: Sequence[int]) -> AxisLayout:
        """What is known of a leaf, with its axes in this order; -1 stands for a new axis of length 1."""
        known = self.decided.get(leaf)
        if known is None:
            held = self.held.get(leaf, {})
            fixed = {factor: reason for axis, reason in held.items() for factor in leaf.initial.dims[axis]}
            entries = tuple(entry for entry in leaf.initial.entries if not fixed.keys() & set(entry.factors))
            known = AxisLayout(leaf.initial.dims, entries, {**leaf.initial.fixed, **fixed})
        dims = tuple(known.dims[axis] if axis >= 0 else () for axis in axes)
        return replace(known, dims=dims, leaf=leaf, axes=tuple(axes), unresolved=leaf not in self.decided)

    def decide(self, view: AxisLayout, entries: tuple[Entry, ...], fixed: Mapping[Factor, str]) -> AxisLayout:
        """An unresolved view of a leaf, resolved to these entries and fixed factors, over the view's factors.

        The first such layout is the leaf's; any other is a claim about it.
        """
        leaf = view.leaf
        assert leaf is not None
        dims = tuple(
            tuple(f for axis, dim in zip(view.axes, view.dims, strict=True) if axis == wanted for f in dim)
            for wanted in range(len(leaf.initial.dims))
        )
        if leaf in self.decided:
            self.claims.append((leaf, AxisLayout(dims, entries, fixed)))
        else:
            self.decided[leaf] = AxisLayout(dims, entries, fixed)
            for axis, reason in self.held.get(leaf, {}).items():
                if any(factor not in fixed for factor in dims[axis]):  # pinned after this view was taken
                    self._claim_held(leaf, axis, reason)
        return AxisLayout(view.dims, entries, fixed)

    def released(self, layout: AxisLayout) -> AxisLayout:
        """The layout without its leaf; an unresolved leaf is decided to be as the view shows it."""
        if layout.unresolved:
            return self.decide(layout, layout.entries, layout.fixed)
        return layout if layout.leaf is None else replace(layout, leaf=None, axes=())

    def hold_axis(self, leaf: Leaf, axis: int, reason: str) -> None:
        """Pin one axis of a leaf."""
        self.held.setdefault(leaf, {})[axis] = reason
        if leaf in self.decided:
            self._claim_held(leaf, axis, reason)

    def _claim_held(self, leaf: Leaf, axis: int, reason: str) -> None:
        dims = self.decided[leaf].dims
        self.claims.append((leaf, AxisLayout(dims, (), dict.fromkeys(dims[axis], reason))))

    def _is_new(self, kind: bytes, left: Ids, right: Ids) -> bool:
        digest = blake2b(kind)
        digest.update(np.ascontiguousarray(left).tobytes())
        digest.update(np.ascontiguousarray(right).tobytes())
        key = digest.digest()
        if key in self._recorded:
            return False
        self._recorded.add(key)
        return True


def keep_finest(relations: Relations, pool: Sequence[Entry]) -> list[Entry]:
    """The finest entries of a pool over common factors; the others are related to them.

    Entries are visited from fine to coarse. Over equal factors, an entry is the same as a kept one; over fewer factors,
    its positions are parents of the kept one's; where factors merely overlap, both have the same rows over the common
    factors, and both are kept.
    """
    kept: list[Entry] = []
    for entry in sorted(pool, key=lambda entry: -len(entry.factors)):
        factors = set(entry.factors)
        implied = False
        for other in kept:
            common = factors & set(other.factors)
            if not common:
                continue
            if common == set(other.factors):
                relations.same(other, entry)
                implied = True
            elif common == factors:
                relations.finer(other, entry)
                implied = True
            else:
                rows = [factor for factor in entry.factors if factor in common]
                relations.same(relations.parents(other, rows), relations.parents(entry, rows))
        if not implied:
            kept.append(entry)
    return kept


def hold_entry(relations: Relations, entry: Entry, fixed: Mapping[Factor, str]) -> None:
    """Record that factors of an entry are fixed: positions that differ along them are never exchanged."""
    ids = relations.ids(entry)
    reason = next(iter(fixed.values()))
    if all(factor in fixed for factor in entry.factors):
        relations.pin(ids, reason)
        return
    shape = [factor.size if factor in fixed else 1 for factor in entry.factors]
    relations.colour(ids, np.arange(prod(shape), dtype=np.int64).reshape(shape))
