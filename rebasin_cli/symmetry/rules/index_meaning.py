"""Integers that are positions: the best experts of every token, rows sorted by expert, what is looked up by index.

When experts are permuted, a router's `topk` returns their new indices, and what is then looked up by these is what was
looked up before. So a tensor of indices is invariant up to renumbering (`IndexMeaning`); a table looked up by it gives
every row the positions of the block that it selected (`RowChoice`); and rows sorted by it are permuted as wholes
(`Relations.sortings`). Every rule here returns None where that argument does not apply. Then the values themselves
matter, and the blocks are pinned. Where two scores are exactly equal, the order may decide which comes first; the check
by execution would show it.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from rebasin_cli.symmetry.algebra import combine, elementwise, reduce
from rebasin_cli.symmetry.arrange import materialise
from rebasin_cli.symmetry.positions import (
    JOINT_LIMIT,
    AxisLayout,
    Entry,
    Factor,
    IdBlock,
    IndexMeaning,
    dimension,
    fixed_layout,
)
from rebasin_cli.symmetry.registry import RULES, Op, index_rule, resized
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.tracing.operations import SEGMENT, WHOLE, has

RUNS = "segment ends of sorted rows"
RANKED = "order of a ranking"


def meaning_after(name: str, meaning: IndexMeaning) -> IndexMeaning | None:
    """The meaning of the result, given that of the argument; None where the operation computes with the values."""
    if has(name, WHOLE):
        return meaning
    return replace(meaning, token=object()) if has(name, SEGMENT) else None


def pin_indexed(relations: Relations, meaning: IndexMeaning, reason: str) -> None:
    """The values themselves matter, so the positions that they index are pinned."""
    if meaning.kind in ("index", "ends"):
        relations.pin(_ids(relations, meaning.block), reason)


def _ids(relations: Relations, block: IdBlock) -> np.ndarray:
    return relations.ids(Entry((Factor(block.size),), block))


def _alone(op: Op, layout: AxisLayout, place: int) -> tuple[AxisLayout, Entry] | None:
    """The layout with one dimension as a single factor, and the entry over that factor alone, if there is one."""
    layout = materialise(op.relations, op.relations.released(layout), place)
    if not layout.dims[place] or layout.dims[place][0] in layout.fixed:
        return None
    factor = layout.dims[place][0]
    touching = [entry for entry in layout.entries if factor in entry.factors]
    return (layout, touching[0]) if len(touching) == 1 and touching[0].factors == (factor,) else None


@index_rule("aten.topk", "aten.sort", "aten.argsort")
def best(op: Op) -> list[AxisLayout] | None:
    """The best along an axis that moves: values do not depend on its order, indices are renumbered with it."""
    given = op.layout("self")
    if given.meaning is not None:
        return _sorted_by_index(op, given, given.meaning)
    place = op.dim("dim", len(given.dims))
    found = _alone(op, given, place) if given.dims else None
    if found is None:
        return None
    layout, entry = found
    op.relations.ids(entry)
    lost = replace(layout, dims=(*layout.dims[:place], (), *layout.dims[place + 1 :]))
    values = resized(op.relations, reduce(op.relations, lost), [place], op.result_shape, RANKED)
    positions = replace(values, meaning=IndexMeaning("index", entry.block, object()))
    return [positions] if op.call.name == "aten.argsort" else [values, positions]


@index_rule("aten.max", "aten.min", "aten.argmax", "aten.argmin")
def extreme(op: Op) -> list[AxisLayout] | None:
    """The largest or smallest along an axis that moves, and its index."""
    given = op.layout("self")
    only = op.call.name.startswith("aten.arg")
    if given.meaning is not None or not isinstance(op.get("dim"), int) or not given.dims:
        return None
    place = op.dim("dim", len(given.dims))
    found = _alone(op, given, place)
    if found is None or not (only or op.is_read(_second(op))):
        return None
    layout, entry = found
    op.relations.ids(entry)
    kept = reduce(op.relations, replace(layout, dims=(*layout.dims[:place], (), *layout.dims[place + 1 :])))
    if not op.get("keepdim", False):
        kept = replace(kept, dims=(*kept.dims[:place], *kept.dims[place + 1 :]))
    positions = replace(kept, meaning=IndexMeaning("index", entry.block, object()))
    return [positions] if only else [kept, positions]


def _second(op: Op) -> int:
    value = op.call.results[1]
    assert value is not None
    return value


def _sorted_by_index(op: Op, given: AxisLayout, meaning: IndexMeaning) -> list[AxisLayout] | None:
    """Rows sorted by the indices that they selected; sorting that order gives the inverse permutation."""
    if len(given.dims) != 1 or meaning.kind not in ("index", "order"):
        return None
    if meaning.kind == "order":
        back = fixed_layout(op.result_shape, RANKED)
        found = replace(back, meaning=IndexMeaning("index", meaning.block, object()))
        return [found] if op.call.name == "aten.argsort" else [back, found]
    rows = IdBlock(given.shape[0], op.relations.new_ids(given.shape[0]))
    factor = Factor(rows.size)
    op.relations.sortings.append((rows, meaning.block))
    frame = AxisLayout(((factor,),), (Entry((factor,), rows),))
    order = replace(frame, meaning=IndexMeaning("order", rows, object()))
    return (
        [order] if op.call.name == "aten.argsort" else [replace(frame, meaning=replace(meaning, token=object())), order]
    )


@index_rule("aten.index", "aten._unsafe_index")
def looked_up(op: Op) -> AxisLayout | None:
    """A table looked up by indices: every row has the positions of the block that it selected."""
    given = [(place, ref) for place, ref in enumerate(op["indices"]) if ref is not None]
    if len(given) != 1:
        return None
    place, ref = given[0]
    index = op.layout_of(ref.value)
    if index.meaning is None or index.meaning.kind != "index":
        return None
    return rows_by_index(op, op.layout("self"), place, op.relations.released(index), index.meaning)


@index_rule("aten.index_select")
def selected(op: Op) -> AxisLayout | None:
    index = op.layout("index")
    if index.meaning is None or index.meaning.kind != "index":
        return None
    layout = op.layout("self")
    return rows_by_index(op, layout, op.dim("dim", len(layout.dims)), op.relations.released(index), index.meaning)


def rows_by_index(op: Op, table: AxisLayout, place: int, index: AxisLayout, meaning: IndexMeaning) -> AxisLayout | None:
    """`table` with the dimension `place`, which the indices refer to, replaced by the dimensions of `index`."""
    if table.shape[place] != meaning.block.size:
        return None
    choice = op.relations.row_choice(meaning, index.factors)
    if table.unresolved and all(len(dim) < 2 for dim in table.dims) and table.dims[place]:
        table = _paired(op.relations, table, place, meaning)
    table = materialise(op.relations, op.relations.released(table), place)
    if not table.dims[place] or table.dims[place][0] in table.fixed:
        return None
    factor = table.dims[place][0]
    whole = AxisLayout(((factor,),), (Entry((factor,), meaning.block),))
    labels = list(range(len(table.dims)))
    table = combine(op.relations, [(whole, [place]), (table, labels)], labels)
    names = {table.dims[place][0]: choice}
    entries = tuple(
        Entry(tuple(names.get(f, f) for f in entry.factors), entry.block, entry.order) for entry in table.entries
    )
    dims = (*table.dims[:place], *index.dims, *table.dims[place + 1 :])
    fixed = {**table.fixed, **index.fixed}
    return reduce(op.relations, AxisLayout(dims, (*entries, *index.entries), fixed))


def _paired(relations: Relations, table: AxisLayout, place: int, meaning: IndexMeaning) -> AxisLayout:
    """A parameter used for the first time: each of its other axes may be permuted differently in every block."""
    factor = table.dims[place][0]
    entries = [Entry((factor,), meaning.block)]
    for other in table.factors:
        if other is not factor and other not in table.fixed:
            joint = (factor, other) if factor.size * other.size <= JOINT_LIMIT else (other,)
            entries.append(Entry(joint, IdBlock(prod(f.size for f in joint))))
    return relations.decide(table, tuple(entries), table.fixed)


@index_rule("aten.gather", "aten.take_along_dim")
def gathered(op: Op) -> AxisLayout | None:
    """The values at indices along an axis that is permuted with them."""
    index = op.layout("index")
    layout = op.layout("self")
    if index.meaning is None or index.meaning.kind != "index" or len(index.dims) != len(layout.dims):
        return None
    place = op.dim("dim", len(layout.dims))
    found = _alone(op, layout, place)
    others = [p for p in range(len(layout.dims)) if p != place]
    if found is None or any(layout.shape[p] != index.shape[p] for p in others):
        return None
    layout, entry = found
    if entry.block.size != index.meaning.block.size:
        return None
    op.relations.link(op.relations.ids(entry), _ids(op.relations, index.meaning.block))
    lost = replace(layout, dims=(*layout.dims[:place], (), *layout.dims[place + 1 :]))
    return elementwise(
        op.relations, [reduce(op.relations, lost), op.relations.released(replace(index, meaning=None))], op.result_shape
    )


@index_rule("aten.scatter")
def marked(op: Op) -> AxisLayout | None:
    """Values written at indices: the axis of the target is permuted with the indexed positions."""
    index, base = op.layout("index"), op.layout("self")
    if index.meaning is None or index.meaning.kind != "index" or len(index.dims) != len(base.dims):
        return None
    place = op.dim("dim", len(base.dims))
    others = [p for p in range(len(base.dims)) if p != place]
    if base.shape[place] != index.meaning.block.size or any(base.shape[p] != index.shape[p] for p in others):
        return None
    rows = [replace(index, meaning=None)]
    if op.has("src"):
        if op.shape("src") != index.shape:
            return None
        rows.append(op.layout("src"))
    rows_of = elementwise(op.relations, rows, index.shape)
    written = reduce(op.relations, replace(rows_of, dims=(*rows_of.dims[:place], (), *rows_of.dims[place + 1 :])))
    factor = Factor(base.shape[place])
    marks = AxisLayout(
        tuple((factor,) if p == place else () for p in range(len(base.dims))), (Entry((factor,), index.meaning.block),)
    )
    return elementwise(op.relations, [marks, written, base], op.result_shape)


@index_rule("aten.cat", "aten.stack")
def together(op: Op) -> AxisLayout | None:
    """Indices along the same axis, concatenated or stacked."""
    pieces = op.layouts("tensors")
    meanings = [piece.meaning for piece in pieces if piece.meaning is not None]
    if (
        len(meanings) != len(pieces)
        or not meanings
        or any(t.kind != "index" or t.block is not meanings[0].block for t in meanings)
    ):
        return None
    result = RULES[op.call.name](op)
    assert isinstance(result, AxisLayout)
    return replace(result, meaning=IndexMeaning("index", meanings[0].block, object()))


@index_rule("aten.histc", "aten.bincount")
def counted(op: Op) -> AxisLayout | None:
    """How many rows selected each position."""
    meaning = op.layout("self").meaning
    size = op.result_shape[0]
    if meaning is None or meaning.kind != "index" or op.has("weights") or size != meaning.block.size:
        return None
    if op.call.name == "aten.histc" and (float(op["min"]), float(op["max"])) not in ((0.0, size - 1.0), (0.0, size)):
        return None
    factor = Factor(size)
    layout = AxisLayout((dimension(size) and (factor,),), (Entry((factor,), meaning.block),))
    return replace(layout, meaning=replace(meaning, kind="counts"))


@index_rule("aten.cumsum")
def ended(op: Op) -> AxisLayout | None:
    """Cumulative counts: where the segment of every position ends among the sorted rows."""
    layout = op.layout("self")
    if layout.meaning is None or layout.meaning.kind != "counts" or len(layout.dims) != 1:
        return None
    return replace(fixed_layout(layout.shape, RUNS), meaning=replace(layout.meaning, kind="ends"))


@index_rule("aten.index_put", "aten._unsafe_index_put", "aten._index_put_impl")
def undone(op: Op) -> AxisLayout | None:
    """0, 1, 2 … written at a sorting order: its inverse permutation."""
    given = [ref for ref in op["indices"] if ref is not None]
    if len(given) != 1 or op.get("accumulate", False):
        return None
    meaning, numbers = op.layout_of(given[0].value).meaning, op.numbers("values")
    if meaning is None or meaning.kind != "order" or numbers is None or op.result_shape != (meaning.block.size,):
        return None
    if numbers.tolist() != list(range(meaning.block.size)):
        return None
    return replace(fixed_layout(op.result_shape, RANKED), meaning=IndexMeaning("index", meaning.block, object()))


@index_rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_product(op: Op) -> AxisLayout | None:
    """Sorted rows, each times the matrix that it selected."""
    names = ("input", "weight") if op.has("weight") else ("self", "mat2")
    rows, table = op.layout(names[0]), op.layout(names[1])
    ends = op.layout("offs") if op.has("offs") else None
    if (
        ends is None
        or ends.meaning is None
        or ends.meaning.kind != "ends"
        or len(rows.dims) != 2
        or len(table.dims) != 3
    ):
        return None
    sorted_rows = next((frame for frame, by in reversed(op.relations.sortings) if by is ends.meaning.block), None)
    if sorted_rows is None or op.has("bias") or sorted_rows.size != rows.shape[0]:
        return None
    rows = op.relations.released(rows)
    factor = Factor(sorted_rows.size)
    frame = AxisLayout(((factor,),), (Entry((factor,), sorted_rows),))
    rows = combine(op.relations, [(rows, "sk"), (frame, "s")], "sk")
    along = set(rows.dims[0])
    entries = tuple(e for e in rows.entries if set(e.factors) <= along)
    index = AxisLayout((rows.dims[0],), entries, {f: why for f, why in rows.fixed.items() if f in along})
    matrices = rows_by_index(op, table, 0, index, ends.meaning)
    if matrices is None:
        return None
    return combine(op.relations, [(matrices, "skn"), (rows, "sk")], "sn")
