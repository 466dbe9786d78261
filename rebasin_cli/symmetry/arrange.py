"""Rearrangements of one layout: views, merged dimensions, selected positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import numpy as np

from rebasin_cli.symmetry.positions import (
    JOINT_LIMIT,
    AxisLayout,
    Entry,
    Factor,
    IdBlock,
    Ids,
    all_differ,
    dimension,
    regroup,
    substitute,
)
from rebasin_cli.symmetry.relations import Relations, hold_entry

TOO_MANY = "too many joint positions to track one by one"


def view(relations: Relations, layout: AxisLayout, shape: Sequence[int]) -> AxisLayout:
    """The layout under a view or reshape to `shape`; dimensions cut across their factors are materialised first."""
    if 0 in shape:
        return _view_of_empty(relations, relations.released(layout), shape)
    if layout.unresolved and [n for n in shape if n > 1] == [n for n in layout.shape if n > 1]:
        known = iter([pair for pair in zip(layout.dims, layout.axes, strict=True) if pair[0]])
        pairs = [next(known) if n > 1 else ((), -1) for n in shape]
        return replace(layout, dims=tuple(dim for dim, _ in pairs), axes=tuple(axis for _, axis in pairs))
    if layout.unresolved:
        return _first_view(relations, layout, shape)
    layout = relations.released(layout)
    regrouped = regroup(layout, shape)
    if regrouped is not None:
        return regrouped
    entries, fixed = layout.entries, layout.fixed
    dims: list[tuple[Factor, ...]] = []
    for sources, targets in _matching_runs(layout.shape, shape):
        piece = AxisLayout(tuple(layout.dims[place] for place in sources), entries, fixed)
        part = regroup(piece, targets)
        if part is None:
            flat = replace(piece, dims=(piece.factors,))
            part = regroup(materialise(relations, flat, 0), targets)
        if part is None:
            raise ValueError(f"cannot view {layout.shape} as {tuple(shape)}")
        entries, fixed = part.entries, part.fixed
        dims.extend(part.dims)
    return AxisLayout(tuple(dims), entries, fixed)


def _view_of_empty(relations: Relations, layout: AxisLayout, shape: Sequence[int]) -> AxisLayout:
    """A view of a tensor without elements: its dimension of length 0 becomes the one of `shape`."""
    if layout.shape.count(0) != 1 or list(shape).count(0) != 1:
        raise ValueError(f"cannot view {layout.shape} as {tuple(shape)}")
    old, new = layout.shape.index(0), list(shape).index(0)
    rest = replace(layout, dims=(*layout.dims[:old], *layout.dims[old + 1 :]))
    seen = view(relations, rest, [*shape[:new], *shape[new + 1 :]])
    return replace(seen, dims=(*seen.dims[:new], layout.dims[old], *seen.dims[new:]))


def _first_view(relations: Relations, layout: AxisLayout, shape: Sequence[int]) -> AxisLayout:
    """The view of an unresolved leaf: axes that its first use merges (heads and units) get one joint block of ids."""
    seen = regroup(replace(layout, leaf=None, axes=(), unresolved=False), shape)
    entries = list(layout.entries)
    for dim in seen.dims if seen is not None else ():
        single = {entry.factors[0]: entry for entry in entries if len(entry.factors) == 1 and entry.unresolved}
        size = prod(factor.size for factor in dim)
        if len(dim) > 1 and size <= JOINT_LIMIT and all(factor in single for factor in dim):
            gone = {single[factor] for factor in dim}
            entries = [*(entry for entry in entries if entry not in gone), Entry(dim, IdBlock(size))]
    return view(relations, relations.decide(layout, tuple(entries), layout.fixed), shape)


def split_dim(relations: Relations, layout: AxisLayout, place: int, outer: int) -> AxisLayout:
    """The layout with one dimension written as two, `outer` and the rest; an unresolved leaf stays unresolved."""
    shape = layout.shape
    if layout.unresolved and len(layout.dims[place]) <= 1:
        factors = layout.dims[place]
        parts: tuple[tuple[Factor, ...], ...] = (dimension(outer), dimension(shape[place] // outer))
        if factors and (outer == 1 or outer == shape[place]):
            parts = ((), factors) if outer == 1 else (factors, ())
        elif factors:
            layout = substitute(layout, {factors[0]: (*parts[0], *parts[1])})
        dims = (*layout.dims[:place], *parts, *layout.dims[place + 1 :])
        return replace(layout, dims=dims, axes=(*layout.axes[: place + 1], *layout.axes[place:]))
    return view(relations, layout, [*shape[:place], outer, shape[place] // outer, *shape[place + 1 :]])


def _matching_runs(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Shortest sequences of old dimensions (indices) and new ones (sizes) with equally many positions."""
    i = j = 0
    while i < len(old) or j < len(new):
        places, sizes = [i] if i < len(old) else [], [new[j]] if j < len(new) else []
        left, right = prod(old[place] for place in places), prod(sizes)
        i, j = i + len(places), j + len(sizes)
        while left != right:
            if left < right:
                places.append(i)
                left *= old[i]
                i += 1
            else:
                sizes.append(new[j])
                right *= new[j]
                j += 1
        yield places, sizes


def materialise(relations: Relations, layout: AxisLayout, place: int) -> AxisLayout:
    """The layout with one dimension written as a single factor."""
    factors = layout.dims[place]
    if len(factors) <= 1:
        return layout
    layout = relations.released(layout)
    merged = Factor(prod(factor.size for factor in factors))
    dims = tuple((merged,) if at == place else dim for at, dim in enumerate(layout.dims))
    touched = [entry for entry in layout.entries if any(factor in entry.factors for factor in factors)]
    others = tuple(entry for entry in layout.entries if entry not in touched)
    held = {factor: layout.fixed[factor] for factor in factors if factor in layout.fixed}
    fixed = {factor: reason for factor, reason in layout.fixed.items() if factor not in held}
    if not touched:
        if held and len(held) == len(factors):
            fixed[merged] = next(iter(held.values()))
            return AxisLayout(dims, others, fixed)
        if not held:
            return AxisLayout(dims, others, fixed)
    around = tuple(dict.fromkeys(f for entry in touched for f in entry.factors if f not in factors))
    if prod(factor.size for factor in around) * merged.size > JOINT_LIMIT:
        kept = given_up(relations, touched, factors)
        return AxisLayout(dims, (*others, *kept), {**fixed, merged: TOO_MANY})
    return AxisLayout(dims, (*others, _joint_entry(relations, touched, factors, held, merged)), fixed)


def given_up(relations: Relations, touched: Sequence[Entry], factors: Sequence[Factor]) -> list[Entry]:
    """Entries pinned along `factors`, reduced to their other factors."""
    kept = []
    for entry in touched:
        along = [factor for factor in entry.factors if factor in factors]
        hold_entry(relations, entry, dict.fromkeys(along, TOO_MANY))
        if len(along) < len(entry.factors):
            kept.append(relations.parents(entry, [factor for factor in entry.factors if factor not in along]))
    return kept


def _joint_entry(
    relations: Relations, touched: Sequence[Entry], factors: Sequence[Factor], held: dict[Factor, str], merged: Factor
) -> Entry:
    """One entry for the joint positions of `factors`, now the factor `merged`, finer than all entries over any of them.

    Entries over some of the factors become parents of the joint positions, so they constrain them as before.
    """
    extra = tuple(dict.fromkeys(f for entry in touched for f in entry.factors if f not in factors))
    wanted = (*extra, *factors)
    if len(touched) == 1 and not held and set(factors) <= set(touched[0].factors):
        entry = touched[0]
        if entry.factors == wanted and entry.order is None:
            return Entry((*extra, merged), entry.block)
        ids = np.ascontiguousarray(relations.ids_in_order(entry, wanted)).ravel()
        return Entry((*extra, merged), IdBlock(ids.size, ids))
    count = prod(factor.size for factor in wanted)
    fine = Entry(wanted, IdBlock(count, relations.new_ids(count)))
    for entry in touched:
        relations.finer(fine, entry)
    if held:
        hold_entry(relations, fine, held)
    return Entry((*extra, merged), fine.block)


def take(relations: Relations, layout: AxisLayout, place: int, index: Ids) -> AxisLayout:
    """The layout after selecting positions `index` along one dimension (a slice, a flip, a constant index).

    Positions selected more than once get ids of their own, each a child of the one it came from: linking them would
    identify positions of one axis, and lose it. The selected set maps to itself, so it is coloured.
    """
    size = layout.shape[place]
    if len(index) == size and np.array_equal(index, np.arange(size)):
        return layout
    layout = relations.released(layout)
    aligned = _take_outer(layout, place, index)
    if aligned is not None:
        layout, index = aligned
        old = layout.dims[place][0]
        rest = layout.dims[place][1:]
    else:
        layout = materialise(relations, layout, place)
        dim = layout.dims[place]
        if not dim:
            return replace(layout, dims=_replaced(layout.dims, place, dimension(len(index))))
        old, rest = dim[0], ()
    new = Factor(len(index))
    kept = (new,) if new.size != 1 else ()
    dims = _replaced(layout.dims, place, (*kept, *rest))
    fixed = {factor: reason for factor, reason in layout.fixed.items() if factor is not old}
    if old in layout.fixed and kept:
        fixed[new] = layout.fixed[old]
    entries = []
    for entry in layout.entries:
        selected = _take_entry(relations, entry, old, kept, index) if old in entry.factors else entry
        if selected is not None:
            entries.append(selected)
    return AxisLayout(dims, tuple(entries), fixed)


def _replaced(
    dims: tuple[tuple[Factor, ...], ...], place: int, dim: tuple[Factor, ...]
) -> tuple[tuple[Factor, ...], ...]:
    return (*dims[:place], dim, *dims[place + 1 :])


def _take_outer(layout: AxisLayout, place: int, index: Ids) -> tuple[AxisLayout, Ids] | None:
    """Where all inner positions are selected together, the same selection along the outermost factor alone."""
    dim = layout.dims[place]
    if len(dim) < 2:
        return None
    inner = prod(factor.size for factor in dim[1:])
    if len(index) % inner:
        return None
    runs = index.reshape(-1, inner)
    if np.any(runs[:, 0] % inner) or np.any(runs != runs[:, :1] + np.arange(inner)):
        return None
    return layout, runs[:, 0] // inner


def _take_entry(relations: Relations, entry: Entry, old: Factor, kept: tuple[Factor, ...], index: Ids) -> Entry | None:
    """The entry after selecting along one of its factors; None where none of its factors is left."""
    axis = entry.factors.index(old)
    ids = np.take(relations.ids(entry), index, axis=axis)
    factors = (*entry.factors[:axis], *kept, *entry.factors[axis + 1 :])
    shape = tuple(factor.size for factor in factors)
    if not all_differ(index):
        own = IdBlock(ids.size, relations.new_ids(ids.size))
        assert own.ids is not None
        relations.function(own.ids.reshape(ids.shape), ids)
        relations.colour(own.ids.reshape(ids.shape), _along(axis, ids.ndim, _occurrence(index)))
        return Entry(factors, own)
    if len(index) < old.size:
        marked = np.full(old.size, 0, dtype=np.int64)
        marked[index] = 1
        relations.colour(relations.ids(entry), _along(axis, ids.ndim, marked))
    if not factors:
        return None
    return Entry(factors, IdBlock(ids.size, np.ascontiguousarray(ids.reshape(shape)).ravel()))


def _along(axis: int, rank: int, values: Ids) -> Ids:
    return values.reshape([-1 if place == axis else 1 for place in range(rank)])


def _occurrence(index: Ids) -> Ids:
    """For each selected position, how often the same one was selected before."""
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    starts = np.r_[0, np.flatnonzero(np.diff(ordered)) + 1]
    lengths = np.diff(np.r_[starts, len(ordered)])
    counts = np.arange(len(index)) - np.repeat(starts, lengths)
    result: Ids = np.empty_like(counts)
    result[order] = counts
    return result
