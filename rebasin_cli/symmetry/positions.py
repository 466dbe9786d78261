"""How tensors are described: dimensions as products of factors, and integer ids for positions along them.

Each dimension of a tensor is a product of *factors*, outer to inner. An *entry* assigns ids to the joint positions of
some factors: two positions with the same id are moved by the same permutation, in whatever tensor they occur. Within
one entry all ids differ. A factor that no entry covers is either *fixed* (pinned, with the reason) or *uniform* (the
tensor is equal at all of its positions, so any permutation is allowed).

With ids, slices, concatenation, interleaving and packing are plain integer indexing. A view that splits a dimension
reshapes ids; a view that merges dimensions lists more factors in one dimension.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]

JOINT_LIMIT = 1 << 22
"""Largest number of joint positions of several axes that get ids; beyond, each axis is permuted as a whole."""


class Factor:
    """One factor of a dimension; compared by identity, shared by all entries that contain it."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"Factor({self.size})"


class RowChoice(Factor):
    """Which of `size` blocks each row has selected (the expert of a token): a factor that no dimension contains.

    When the blocks are permuted, the indices that select them change accordingly. An entry over (row choice, f) says
    that positions f move as the block selected by the row moves them. That has a meaning only while the rows are
    separate: `alive` is true while all factors of the rows are present, possibly split into `parts`.
    """

    __slots__ = ("parts", "place", "rows")

    def __init__(self, size: int, rows: tuple[Factor, ...]) -> None:
        super().__init__(size)
        self.rows = rows
        self.parts: dict[Factor, list[tuple[Factor, ...]]] = {row: [] for row in rows}
        self.place: dict[Factor, tuple[int, ...]] = {row: (number,) for number, row in enumerate(rows)}

    def split(self, factor: Factor, parts: tuple[Factor, ...]) -> None:
        """Record that a factor of the rows is also written as a product of these parts."""
        self.parts[factor].append(parts)
        for number, part in enumerate(parts):
            self.parts.setdefault(part, [])
            self.place.setdefault(part, (*self.place[factor], number))

    def alive(self, present: Collection[Factor]) -> bool:
        """Whether all rows are among the factors that are present."""
        return all(self._is_there(row, present) for row in self.rows)

    def _is_there(self, factor: Factor, present: Collection[Factor]) -> bool:
        if factor in present:
            return True
        return any(all(self._is_there(part, present) for part in parts) for parts in self.parts[factor])


class IdBlock:
    """Ids for `size` positions, assigned when they are first needed, or adopted from the first partner.

    Adoption keeps the number of ids small: the input axis of a weight adopts the ids of what it is multiplied with. It
    is the one thing here that changes: from no ids to ids, once.
    """

    __slots__ = ("ids", "size")

    def __init__(self, size: int, ids: Ids | None = None) -> None:
        self.size = size
        self.ids = ids


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """Ids of the joint positions of `factors`: an array with one axis per factor.

    They are those of `block`, rearranged by `order` where it is given.
    """

    factors: tuple[Factor, ...]
    block: IdBlock
    order: Ids | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(factor.size for factor in self.factors)

    @property
    def unresolved(self) -> bool:
        """Whether the entry may still adopt ids: none is assigned, and it is the whole block in its own order."""
        return self.block.ids is None and self.order is None


@dataclass(frozen=True, slots=True, eq=False)
class IndexMeaning:
    """What an integer tensor's values mean where they refer to positions that move.

    Attributes:
        kind: `index`: each value is a position of `block`, and is renumbered with it; `order`: the permutation that
            sorts indices, its own positions being the sorted rows; `counts`, `ends`: how many rows selected each
            position, and where its segment of the sorted rows ends.
        block: the positions.
        token: the same object for tensors that hold the same values in the same rows.
    """

    kind: str
    block: IdBlock
    token: object


@dataclass(frozen=True, slots=True, eq=False)
class AxisLayout:
    """Dimensions as factors, entries with ids, and the fixed factors with their reasons.

    A dimension of length 1 has no factors. `leaf` and `axes` say that this is a leaf with its axes in this order; every
    operation that does more than permute axes drops them. While the layout is `unresolved`, no use has decided how the
    leaf's axes factor, and the next operation may decide it. `meaning` says what integer values mean that are positions
    along an axis that moves.
    """

    dims: tuple[tuple[Factor, ...], ...]
    entries: tuple[Entry, ...] = ()
    fixed: Mapping[Factor, str] = field(default_factory=dict)
    leaf: Leaf | None = None
    axes: tuple[int, ...] = ()
    unresolved: bool = False
    meaning: IndexMeaning | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple([prod([factor.size for factor in dim]) for dim in self.dims])

    @property
    def factors(self) -> tuple[Factor, ...]:
        return tuple([factor for dim in self.dims for factor in dim])


@dataclass(frozen=True, slots=True, eq=False)
class Leaf:
    """A parameter or buffer, and its layout before any use: each axis on its own.

    It never changes. How its axes factor is decided by its first use and recorded in `Relations`.
    """

    key: str
    initial: AxisLayout


def all_differ(ids: Ids) -> bool:
    """Whether no id occurs twice."""
    ordered = np.sort(ids, axis=None)
    return not np.any(ordered[1:] == ordered[:-1])


def coordinates(positions: Ids, over: Sequence[Factor]) -> dict[Factor, Ids]:
    """The coordinate along each factor of positions along all of them read as one axis: arrays like `positions`.

    Not `numpy.unravel_index`: that of NumPy 2.4 is wrong beyond 8,192 positions where the last axis has length 1.
    """
    found: dict[Factor, Ids] = {}
    for factor in reversed(over):
        positions, found[factor] = np.divmod(positions, factor.size)
    return found


def dimension(size: int) -> tuple[Factor, ...]:
    """The factors of a new dimension of this size."""
    return () if size == 1 else (Factor(size),)


def uniform_layout(shape: Sequence[int]) -> AxisLayout:
    """The layout of a tensor all of whose elements are equal."""
    return AxisLayout(tuple(dimension(size) for size in shape))


def fixed_layout(shape: Sequence[int], reason: str) -> AxisLayout:
    """The layout of a tensor all of whose positions are pinned."""
    layout = uniform_layout(shape)
    return replace(layout, fixed=dict.fromkeys(layout.factors, reason))


def free_layout(shape: Sequence[int]) -> AxisLayout:
    """The layout of a tensor each of whose axes may be permuted on its own."""
    layout = uniform_layout(shape)
    entries = tuple(Entry((factor,), IdBlock(factor.size)) for factor in layout.factors)
    return replace(layout, entries=entries)


def substitute(layout: AxisLayout, parts: Mapping[Factor, tuple[Factor, ...]]) -> AxisLayout:
    """The layout with factors replaced by products of the same size; a view of a leaf stays one."""
    for choice in {f for entry in layout.entries for f in entry.factors if isinstance(f, RowChoice)}:
        for old, new in parts.items():
            if old in choice.parts:
                choice.split(old, new)
    dims = tuple(tuple(new for old in dim for new in parts.get(old, (old,))) for dim in layout.dims)
    entries = tuple(_substitute_entry(entry, parts) for entry in layout.entries)
    fixed = {new: reason for old, reason in layout.fixed.items() for new in parts.get(old, (old,))}
    return AxisLayout(dims, entries, fixed, layout.leaf, layout.axes, layout.unresolved)


def _substitute_entry(entry: Entry, parts: Mapping[Factor, tuple[Factor, ...]]) -> Entry:
    if not any(factor in parts for factor in entry.factors):
        return entry
    factors = tuple(new for old in entry.factors for new in parts.get(old, (old,)))
    order = None if entry.order is None else entry.order.reshape([factor.size for factor in factors])
    return Entry(factors, entry.block, order)


def regroup(layout: AxisLayout, shape: Sequence[int]) -> AxisLayout | None:
    """The resolved layout under a view to `shape`; None where a new dimension cuts a factor that does not divide."""
    queue = list(layout.factors)
    dims: list[tuple[Factor, ...]] = []
    for size in shape:
        taken: list[Factor] = []
        rest = size
        while rest > 1:
            if not queue:
                return None
            factor = queue.pop(0)
            if rest % factor.size == 0:
                taken.append(factor)
                rest //= factor.size
                continue
            if factor.size % rest:
                return None
            outer, inner = Factor(rest), Factor(factor.size // rest)
            layout = substitute(layout, {factor: (outer, inner)})
            dims = [tuple(f for old in dim for f in ((outer, inner) if old is factor else (old,))) for dim in dims]
            taken.append(outer)
            queue.insert(0, inner)
            rest = 1
        dims.append(tuple(taken))
    return None if queue else AxisLayout(tuple(dims), layout.entries, layout.fixed)


def common_refinement(sizes: Sequence[Sequence[int]]) -> list[int] | None:
    """The coarsest product, outer to inner, that refines all the given products of one size; None if there is none."""
    if all(list(product) == list(sizes[0]) for product in sizes):
        return list(sizes[0])
    cuts = {prod(product[place:]) for product in sizes for place in range(len(product) + 1)}
    ordered = sorted(cuts, reverse=True)
    result = []
    for outer, inner in itertools.pairwise(ordered):
        if outer % inner:
            return None
        result.append(outer // inner)
    return result


def permute_dims(layout: AxisLayout, order: Sequence[int]) -> AxisLayout:
    """The layout with its dimensions in another order."""
    axes = tuple(layout.axes[place] for place in order) if layout.leaf is not None else ()
    return replace(layout, dims=tuple(layout.dims[place] for place in order), axes=axes)
