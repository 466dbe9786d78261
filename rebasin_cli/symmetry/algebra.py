"""The algebra of layouts: align, join, reduce.

An operation that combines tensors is written like an einsum. Every dimension of every operand has a label. Dimensions
of equal label are indexed together, so the same permutation must act on them: `align` writes them over common factors,
`join` relates the ids. Labels that the result lacks are summed over, and `reduce` drops their factors.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from math import prod

from rebasin_cli.symmetry.arrange import materialise
from rebasin_cli.symmetry.positions import (
    JOINT_LIMIT,
    AxisLayout,
    Entry,
    Factor,
    IdBlock,
    Leaf,
    RowChoice,
    common_refinement,
    dimension,
    substitute,
)
from rebasin_cli.symmetry.relations import Relations, hold_entry, keep_finest

Label = Hashable
Operand = tuple[AxisLayout, Sequence[Label]]


def combine(relations: Relations, operands: Sequence[Operand], result: Sequence[Label]) -> AxisLayout:
    """The result of an operation that indexes dimensions of equal label together and sums over labels it lacks."""
    aligned, factors = align(relations, operands)
    aligned = _resolve_leaves(relations, aligned, operands, result, factors)
    entries, fixed = join(relations, aligned)
    dims = tuple(factors.get(label, ()) for label in result)
    return reduce(relations, AxisLayout(dims, entries, fixed))


def elementwise(relations: Relations, layouts: Sequence[AxisLayout], shape: Sequence[int]) -> AxisLayout:
    """The result of a pointwise operation with broadcasting."""
    rank = len(shape)
    operands = [(layout, range(rank - len(layout.dims), rank)) for layout in layouts]
    layout = combine(relations, operands, range(rank))
    dims = tuple(dim or dimension(size) for dim, size in zip(layout.dims, shape, strict=True))
    return replace(layout, dims=dims)


def join(relations: Relations, layouts: Sequence[AxisLayout]) -> tuple[tuple[Entry, ...], dict[Factor, str]]:
    """All entries of tensors over common factors, and the fixed factors.

    Equal entries are linked, coarse ones made parents of fine ones. A factor that is fixed in one tensor is fixed in
    all. A tensor in which a factor is uniform allows every permutation along it, so it adds nothing.
    """
    fixed: dict[Factor, str] = {}
    for layout in layouts:
        for factor, reason in layout.fixed.items():
            fixed.setdefault(factor, reason)
    pool: list[Entry] = []
    for layout in layouts:
        for entry in layout.entries:
            met = [factor for factor in entry.factors if factor in fixed and factor not in layout.fixed]
            if met:
                hold_entry(relations, entry, {factor: fixed[factor] for factor in met})
            if any(factor not in fixed for factor in entry.factors):
                pool.append(entry)
    return tuple(keep_finest(relations, pool)), fixed


def reduce(relations: Relations, layout: AxisLayout) -> AxisLayout:
    """The layout without factors that no dimension contains any more.

    A sum over a factor is invariant under any permutation along it. What remains of an entry over (rows, reduced) is
    that rows are exchanged as wholes: rows become positions of their own, the parents of the reduced ones.
    """
    present = set(layout.factors)
    fixed = {factor: reason for factor, reason in layout.fixed.items() if factor in present}
    pool: list[Entry] = []
    whole = True
    for entry in layout.entries:
        kept = [f for f in entry.factors if f in present or (isinstance(f, RowChoice) and f.alive(present))]
        if len(kept) == len(entry.factors):
            pool.append(entry)
            continue
        whole = False
        if any(factor not in fixed for factor in kept):
            pool.append(relations.parents(entry, kept))
    entries = tuple(pool) if whole else tuple(keep_finest(relations, pool))
    return AxisLayout(layout.dims, entries, fixed)


def rows_matter(relations: Relations, layout: AxisLayout, dims: Sequence[int]) -> AxisLayout:
    """The layout, unchanged, after an operation that is symmetric in `dims`, row by row (a norm, a softmax)."""
    layout = relations.released(layout)
    reduce(relations, replace(layout, dims=tuple(dim for place, dim in enumerate(layout.dims) if place not in dims)))
    return layout


def align(
    relations: Relations, operands: Sequence[Operand]
) -> tuple[list[AxisLayout], dict[Label, tuple[Factor, ...]]]:
    """The operands over common factors, and the factors of every label."""
    layouts = _with_distinct_factors(operands)
    factors: dict[Label, tuple[Factor, ...]] = {}
    places: dict[Label, list[tuple[int, int]]] = {}
    for which, (layout, labels) in enumerate(operands):
        for place, label in enumerate(labels):
            if layout.dims[place]:
                places.setdefault(label, []).append((which, place))
    parts: list[dict[Factor, tuple[Factor, ...]]] = [{} for _ in layouts]
    for label, where in places.items():
        if len(where) == 1:
            factors[label] = layouts[where[0][0]].dims[where[0][1]]
            continue
        sizes = common_refinement([[f.size for f in layouts[which].dims[place]] for which, place in where])
        if sizes is None:
            for which, place in where:
                layouts[which] = materialise(relations, layouts[which], place)
            sizes = [layouts[where[0][0]].dims[where[0][1]][0].size]
        common = _reusable(layouts[where[0][0]].dims[where[0][1]], sizes)
        for which, place in where:
            parts[which].update(_refined(layouts[which].dims[place], common))
        factors[label] = common
    refined = [substitute(layout, finer) if finer else layout for layout, finer in zip(layouts, parts, strict=True)]
    return refined, factors


def _with_distinct_factors(operands: Sequence[Operand]) -> list[AxisLayout]:
    """The operands with distinct factors for distinct labels.

    In a Gram matrix `x @ x.T`, rows and columns of the product are two dimensions, though they come from one factor.
    Both keep its ids, so they are still permuted alike.
    """
    label_of: dict[Factor, Label] = {}
    layouts = []
    seen: dict[RowChoice, list[Label]] = {}
    for layout, labels in operands:
        met = [(factor, label) for label, dim in zip(labels, layout.dims, strict=False) for factor in dim]
        clash = {factor: (Factor(factor.size),) for factor, label in met if label_of.setdefault(factor, label) != label}
        if clash:
            layout = substitute(layout, clash)
        layouts.append(_with_distinct_choices(layout, labels, seen))
    return layouts


def _with_distinct_choices(
    layout: AxisLayout, labels: Sequence[Label], seen: dict[RowChoice, list[Label]]
) -> AxisLayout:
    """Distinct row choices where the rows of another operand have other labels, or another order."""
    fresh: dict[Factor, tuple[Factor, ...]] = {}
    for choice in {f for entry in layout.entries for f in entry.factors if isinstance(f, RowChoice)}:
        rows = [(f, label) for label, dim in zip(labels, layout.dims, strict=False) for f in dim if f in choice.place]
        ranked = sorted(rows, key=lambda row: choice.place[row[0]])
        along = [label for label, _ in itertools.groupby(label for _, label in ranked)]
        crossed = any(
            [row for row in rows if row[1] == label] != [row for row in ranked if row[1] == label] for label in along
        )
        if crossed or seen.setdefault(choice, along) != along:
            fresh[choice] = (RowChoice(choice.size, tuple(factor for factor, _ in ranked)),)
    return substitute(layout, fresh) if fresh else layout


def _reusable(present: tuple[Factor, ...], sizes: Sequence[int]) -> tuple[Factor, ...]:
    if [factor.size for factor in present] == list(sizes):
        return present
    return tuple(Factor(size) for size in sizes)


def _refined(present: tuple[Factor, ...], common: tuple[Factor, ...]) -> dict[Factor, tuple[Factor, ...]]:
    """The factors of a dimension as products of those of its refinement `common`, where they are not the same."""
    parts: dict[Factor, tuple[Factor, ...]] = {}
    if present == common:
        return parts
    queue = list(common)
    for factor in present:
        taken: list[Factor] = []
        while prod(part.size for part in taken) < factor.size:
            taken.append(queue.pop(0))
        parts[factor] = tuple(taken)
    return parts


def settle_claims(relations: Relations) -> None:
    """Join every claim about a leaf with its decided layout."""
    while relations.claims:
        leaf, claim = relations.claims.pop(0)
        axes = range(len(claim.dims))
        join(relations, align(relations, [(relations.decided[leaf], axes), (claim, axes)])[0])


def settle_views(relations: Relations) -> None:
    """The same for ids that a rule took from an unresolved view of a leaf without deciding the leaf."""
    for leaf, decided in relations.decided.items():
        known = {entry.block for entry in decided.entries}
        for entry in leaf.initial.entries:
            if not entry.unresolved and entry.block not in known:
                relations.claims.append((leaf, AxisLayout(leaf.initial.dims, (entry,))))
    settle_claims(relations)


def _resolve_leaves(
    relations: Relations,
    layouts: Sequence[AxisLayout],
    operands: Sequence[Operand],
    result: Sequence[Label],
    factors: Mapping[Label, tuple[Factor, ...]],
) -> list[AxisLayout]:
    """The layouts, those of leaves used for the first time resolved by their partners."""
    done = [None if layout.unresolved else relations.released(layout) for layout in layouts]
    crossed = _crossed(layouts)
    outlive = {factor for label in result for factor in factors.get(label, ())}
    for which, layout in enumerate(layouts):
        if done[which] is None:
            partners = [other for other in done if other is not None]
            done[which] = _resolve_leaf(relations, layout, partners, outlive, crossed)
    return [layout for layout in done if layout is not None]


def _crossed(layouts: Sequence[AxisLayout]) -> set[tuple[Leaf, int]]:
    """Axes of unresolved leaves that are indexed together with another axis of the same leaf."""
    axes: dict[tuple[Leaf, Factor], set[int]] = {}
    for layout in layouts:
        if layout.leaf is not None and layout.unresolved:
            for axis, dim in zip(layout.axes, layout.dims, strict=True):
                for factor in dim:
                    axes.setdefault((layout.leaf, factor), set()).add(axis)
    return {(leaf, axis) for (leaf, _), met in axes.items() if len(met) > 1 for axis in met}


def _resolve_leaf(
    relations: Relations,
    layout: AxisLayout,
    partners: Sequence[AxisLayout],
    outlive: set[Factor],
    crossed: set[tuple[Leaf, int]],
) -> AxisLayout:
    """One unresolved leaf, resolved: entries that its partners have over its factors are adopted.

    What no partner covers gets a block of new ids, joint over all such factors and over those shared with the result:
    the operation relates them to nothing, so the weights of different outputs (heads, groups) may be permuted apart. A
    joint block that is too large is replaced by one per factor, which allows fewer permutations and is as sound.
    """
    leaf = layout.leaf
    assert leaf is not None
    own = set(layout.factors)
    met = {f for other in partners for f in other.factors}
    fixed = {f: reason for other in partners for f, reason in other.fixed.items() if f in own}
    fixed.update(layout.fixed)
    entries: dict[frozenset[Factor], Entry] = {}
    for other in partners:
        for entry in other.entries:
            touched = tuple(f for f in entry.factors if f in own)
            if any(f not in fixed for f in touched):
                inside = len(touched) == len(entry.factors)
                mine = entry if inside else Entry(touched, IdBlock(prod(f.size for f in touched)))
                entries.setdefault(frozenset(touched), mine)
    ordered = [
        (f, axis)
        for axis, dim in sorted(zip(layout.axes, layout.dims, strict=True), key=lambda placed: placed[0])
        for f in dim
    ]
    free = {f for f, _ in ordered if f not in met and f not in fixed}
    shared = {f for f, _ in ordered if f in met and f in outlive}
    # Axes indexed together are permuted alike, which one block over both could not express: each gets a block with the
    # remaining axes. Without such axes, one round takes all factors (no axis is -1).
    for alone in sorted({axis for f, axis in ordered if f in free and (leaf, axis) in crossed}) or [-1]:
        among = [f for f, axis in ordered if axis == alone or (leaf, axis) not in crossed]
        joint = [f for f in among if f in free or f in shared]
        if not free & set(among) or leaf.key in relations.by_axis:
            continue
        joint = joint if prod(f.size for f in joint) <= JOINT_LIMIT else [f for f in joint if f in free]
        if prod(f.size for f in joint) <= JOINT_LIMIT:
            entries.setdefault(frozenset(joint), Entry(tuple(joint), IdBlock(prod(f.size for f in joint))))
    for entry in entries.values():
        held = {factor: fixed[factor] for factor in entry.factors if factor in fixed}
        if held:  # a partner's fixed axis, such as the input axis of a batched product: positions stay within it
            hold_entry(relations, entry, held)
    covered = set(fixed).union(*entries)
    for factor, _ in ordered:
        if factor not in covered:
            entries[frozenset((factor,))] = Entry((factor,), IdBlock(factor.size))
    return relations.decide(layout, tuple(entries.values()), fixed)
