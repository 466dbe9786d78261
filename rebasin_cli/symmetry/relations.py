"""What the operations say about ids: the relations that the solver closes.

- *link*: two id arrays are moved by the same permutation, position by position;
- *function*: child to parent, and the parent map commutes with the permutation (units inside heads);
- *colour*: positions with different labels are never exchanged (a slice, a segment, an index along a fixed axis);
- *pin*: each of these positions keeps its place, with the reason;
- *sorting*: rows that were sorted by what they picked; if the rows cannot trade places, what they picked cannot either.

How a leaf's axes factor is unknown until an operation uses it. The first use decides; what any other use took the leaf
to be is a *claim*, and run together with the decision (`algebra.settle_claims`). So two uses of one leaf are related
even where neither knew of the other, as in an operation that is given the same leaf twice.
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
    """The relations found so far, and the ids given out.

    Attributes:
        size: number of ids.
        births: ids are born in batches; the first id of each batch.
        links, functions, colours, pins: flat arrays, see the module's words.
        sortings: rows, and the positions by whose numbers they were sorted.
        decided: the layout of every leaf whose first use has decided it, axes in the leaf's own order.
        held: axes that keep their order, with the reason, of leaves that are not decided.
        claims: what other uses took leaves to be, not yet run together with the decision.
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
    _picked: dict[tuple[int, tuple[Factor, ...]], tuple[object, RowChoice]] = field(default_factory=dict)
    _parents: dict[bytes, IdBlock] = field(default_factory=dict)
    _said: set[bytes] = field(default_factory=set)

    def new_ids(self, count: int) -> Ids:
        ids = np.arange(self.size, self.size + count, dtype=np.int64)
        self.births.append(self.size)
        self.size += count
        return ids

    def ids(self, entry: Entry) -> Ids:
        """The ids of an entry, shaped like its factors; an open block receives its ids now."""
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
        """Two entries over the same factors are moved alike; an open one adopts the other's ids."""
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
        """The positions of `coarse` follow those of `fine`, which speaks about more factors."""
        ids = self.ids(coarse)
        shape = [factor.size if factor in coarse.factors else 1 for factor in fine.factors]
        order = [factor for factor in fine.factors if factor in coarse.factors]
        ids = np.transpose(ids, [coarse.factors.index(factor) for factor in order]).reshape(shape)
        self.function(self.ids(fine), ids)

    def parents(self, entry: Entry, kept: Sequence[Factor]) -> Entry:
        """The rows of an entry over `kept`, some of its factors, as positions of their own.

        The same rows always get the same ids.
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

    def picked(self, meaning: IndexMeaning, rows: tuple[Factor, ...]) -> RowChoice:
        """The factor of what these rows picked: the same one for the same numbers in the same rows."""
        key = (id(meaning.token), rows)
        if key not in self._picked:
            self._picked[key] = meaning.token, RowChoice(meaning.block.size, rows)
        return self._picked[key][1]

    def layout(self, leaf: Leaf) -> AxisLayout:
        """What is known of a leaf, its axes in their own order."""
        return self.view(leaf, range(len(leaf.initial.dims)))

    def view(self, leaf: Leaf, axes: Sequence[int]) -> AxisLayout:
        """What is known of a leaf, with its axes in this order; -1 is a new one of length 1."""
        known = self.decided.get(leaf)
        if known is None:
            held = self.held.get(leaf, {})
            fixed = {factor: reason for axis, reason in held.items() for factor in leaf.initial.dims[axis]}
            entries = tuple(entry for entry in leaf.initial.entries if not fixed.keys() & set(entry.factors))
            known = AxisLayout(leaf.initial.dims, entries, {**leaf.initial.fixed, **fixed})
        dims = tuple(known.dims[axis] if axis >= 0 else () for axis in axes)
        return replace(known, dims=dims, leaf=leaf, axes=tuple(axes), unresolved=leaf not in self.decided)

    def decide(self, view: AxisLayout, entries: tuple[Entry, ...], fixed: Mapping[Factor, str]) -> AxisLayout:
        """An open view of a leaf as a layout with these entries and fixed factors, over the view's factors.

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
                if any(factor not in fixed for factor in dims[axis]):  # held after this view of it was taken
                    self._claim_held(leaf, axis, reason)
        return AxisLayout(view.dims, entries, fixed)

    def released(self, layout: AxisLayout) -> AxisLayout:
        """The layout as such, no view of a leaf: if it was open, the leaf is what the view shows."""
        if layout.unresolved:
            return self.decide(layout, layout.entries, layout.fixed)
        return layout if layout.leaf is None else replace(layout, leaf=None, axes=())

    def hold_axis(self, leaf: Leaf, axis: int, reason: str) -> None:
        """One axis of a leaf keeps its order."""
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
        if key in self._said:
            return False
        self._said.add(key)
        return True


def keep_finest(relations: Relations, pool: Sequence[Entry]) -> list[Entry]:
    """Keep the finest entries of a pool over common factors, and say how the others follow from them."""
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
    """Positions of an entry that lie along fixed factors keep their place there."""
    ids = relations.ids(entry)
    reason = next(iter(fixed.values()))
    if all(factor in fixed for factor in entry.factors):
        relations.pin(ids, reason)
        return
    shape = [factor.size if factor in fixed else 1 for factor in entry.factors]
    relations.colour(ids, np.arange(prod(shape), dtype=np.int64).reshape(shape))
