"""Numbers that are positions: the best experts of every token, rows sorted by expert, what a pick brings along.

When blocks trade places, a router's `topk` names them by their new numbers, and what is then looked up by these numbers
is what was looked up before. So a tensor of positions is invariant up to renumbering (`Tells`), a table looked up by it
gives every row its own block's positions (`Picked`), and rows sorted by it move as a whole (`Relations.sortings`).
Every rule here answers None where it does not understand; then the numbers themselves count, and the blocks are pinned.
Where two scores are exactly equal, which one comes first may depend on the order: execution would show it.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from rebasin_cli.symmetry.algebra import combine, elementwise, reduce
from rebasin_cli.symmetry.arrange import materialise
from rebasin_cli.symmetry.positions import (
    JOINT_LIMIT,
    Block,
    Entry,
    Factor,
    Layout,
    Tells,
    fixed_layout,
)
from rebasin_cli.symmetry.registry import RULES, Op, picking_rule, resized
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.tracing.operations import SEGMENT, WHOLE, has

RANKED = "what is ranked comes in the order of the ranking"


def carried(name: str, tells: Tells) -> Tells | None:
    """What the results of an operation tell whose argument tells this; None where the numbers were worked with."""
    if has(name, WHOLE):
        return tells
    return replace(tells, token=object()) if has(name, SEGMENT) else None


def pin_told(relations: Relations, tells: Tells, reason: str) -> None:
    """The numbers themselves matter, so the positions that they name keep theirs."""
    if tells.kind in ("index", "ends"):
        relations.pin(_ids(relations, tells.block), reason)


def _ids(relations: Relations, block: Block) -> np.ndarray:
    return relations.ids(Entry((Factor(block.size),), block))


def _alone(op: Op, layout: Layout, place: int) -> tuple[Layout, Entry] | None:
    """The layout with one dimension as a single factor, and the entry over that factor alone, if there is one."""
    layout = materialise(op.relations, op.relations.released(layout), place)
    if not layout.dims[place] or layout.dims[place][0] in layout.fixed:
        return None
    factor = layout.dims[place][0]
    touching = [entry for entry in layout.entries if factor in entry.factors]
    return (layout, touching[0]) if len(touching) == 1 and touching[0].factors == (factor,) else None


@picking_rule("aten.topk", "aten.sort", "aten.argsort")
def best(op: Op) -> list[Layout] | None:
    """The best of an axis that moves: their values do not depend on its order, their positions are told."""
    given = op.layout("self")
    if given.tells is not None:
        return _sorted_picks(op, given, given.tells)
    place = op.dim("dim", len(given.dims))
    found = _alone(op, given, place) if given.dims else None
    if found is None:
        return None
    layout, entry = found
    op.relations.ids(entry)
    lost = replace(layout, dims=(*layout.dims[:place], (), *layout.dims[place + 1 :]))
    values = resized(op.relations, reduce(op.relations, lost), [place], op.result_shape, RANKED)
    positions = replace(values, tells=Tells("index", entry.block, object()))
    return [positions] if op.call.name == "aten.argsort" else [values, positions]


@picking_rule("aten.max", "aten.min", "aten.argmax", "aten.argmin")
def extreme(op: Op) -> list[Layout] | None:
    """The largest or smallest along an axis that moves, and where it stands."""
    given = op.layout("self")
    only = op.call.name.startswith("aten.arg")
    if given.tells is not None or not isinstance(op.get("dim"), int) or not given.dims:
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
    positions = replace(kept, tells=Tells("index", entry.block, object()))
    return [positions] if only else [kept, positions]


def _second(op: Op) -> int:
    value = op.call.results[1]
    assert value is not None
    return value


def _sorted_picks(op: Op, given: Layout, tells: Tells) -> list[Layout] | None:
    """Rows in the order of what they picked; or, sorted back, the way from the sorted rows to where they were."""
    if len(given.dims) != 1 or tells.kind not in ("index", "order"):
        return None
    if tells.kind == "order":
        back = fixed_layout(op.result_shape, RANKED)
        found = replace(back, tells=Tells("index", tells.block, object()))
        return [found] if op.call.name == "aten.argsort" else [back, found]
    rows = Block(given.shape[0], op.relations.new_ids(given.shape[0]))
    factor = Factor(rows.size)
    op.relations.sortings.append((rows, tells.block))
    frame = Layout(((factor,),), (Entry((factor,), rows),))
    order = replace(frame, tells=Tells("order", rows, object()))
    return [order] if op.call.name == "aten.argsort" else [replace(frame, tells=replace(tells, token=object())), order]


@picking_rule("aten.index", "aten._unsafe_index")
def looked_up(op: Op) -> Layout | None:
    """A table by positions: every row has the positions of the block that it picked."""
    given = [(place, ref) for place, ref in enumerate(op["indices"]) if ref is not None]
    if len(given) != 1:
        return None
    place, ref = given[0]
    index = op.layout_of(ref.value)
    if index.tells is None or index.tells.kind != "index":
        return None
    return by_picks(op, op.layout("self"), place, op.relations.released(index), index.tells)


@picking_rule("aten.index_select")
def selected(op: Op) -> Layout | None:
    index = op.layout("index")
    if index.tells is None or index.tells.kind != "index":
        return None
    layout = op.layout("self")
    return by_picks(op, layout, op.dim("dim", len(layout.dims)), op.relations.released(index), index.tells)


def by_picks(op: Op, table: Layout, place: int, index: Layout, tells: Tells) -> Layout | None:
    """`table` with the dimension `place`, whose positions are told, replaced by the dimensions of `index`."""
    if table.shape[place] != tells.block.size:
        return None
    picked = op.relations.picked(tells, index.factors)
    if table.open and all(len(dim) < 2 for dim in table.dims) and table.dims[place]:
        table = _paired(op.relations, table, place, tells)
    table = materialise(op.relations, op.relations.released(table), place)
    if not table.dims[place] or table.dims[place][0] in table.fixed:
        return None
    factor = table.dims[place][0]
    whole = Layout(((factor,),), (Entry((factor,), tells.block),))
    labels = list(range(len(table.dims)))
    table = combine(op.relations, [(whole, [place]), (table, labels)], labels)
    names = {table.dims[place][0]: picked}
    entries = tuple(
        Entry(tuple(names.get(f, f) for f in entry.factors), entry.block, entry.order) for entry in table.entries
    )
    dims = (*table.dims[:place], *index.dims, *table.dims[place + 1 :])
    fixed = {**table.fixed, **index.fixed}
    return reduce(op.relations, Layout(dims, (*entries, *index.entries), fixed))


def _paired(relations: Relations, table: Layout, place: int, tells: Tells) -> Layout:
    """A parameter used for the first time: each of its other axes may move in its own way in every block."""
    factor = table.dims[place][0]
    entries = [Entry((factor,), tells.block)]
    for other in table.factors:
        if other is not factor and other not in table.fixed:
            joint = (factor, other) if factor.size * other.size <= JOINT_LIMIT else (other,)
            entries.append(Entry(joint, Block(prod(f.size for f in joint))))
    return relations.decide(table, tuple(entries), table.fixed)


@picking_rule("aten.gather", "aten.take_along_dim")
def gathered(op: Op) -> Layout | None:
    """What stands at the told positions of an axis that moves with them."""
    index = op.layout("index")
    layout = op.layout("self")
    if index.tells is None or index.tells.kind != "index" or len(index.dims) != len(layout.dims):
        return None
    place = op.dim("dim", len(layout.dims))
    found = _alone(op, layout, place)
    others = [p for p in range(len(layout.dims)) if p != place]
    if found is None or any(layout.shape[p] != index.shape[p] for p in others):
        return None
    layout, entry = found
    if entry.block.size != index.tells.block.size:
        return None
    op.relations.link(op.relations.ids(entry), _ids(op.relations, index.tells.block))
    lost = replace(layout, dims=(*layout.dims[:place], (), *layout.dims[place + 1 :]))
    return elementwise(
        op.relations, [reduce(op.relations, lost), op.relations.released(replace(index, tells=None))], op.result_shape
    )


@picking_rule("aten.scatter")
def marked(op: Op) -> Layout | None:
    """Numbers written at told positions: the tensor written into moves with these positions."""
    index, base = op.layout("index"), op.layout("self")
    if index.tells is None or index.tells.kind != "index" or len(index.dims) != len(base.dims):
        return None
    place = op.dim("dim", len(base.dims))
    others = [p for p in range(len(base.dims)) if p != place]
    if base.shape[place] != index.tells.block.size or any(base.shape[p] != index.shape[p] for p in others):
        return None
    rows = [replace(index, tells=None)]
    if op.has("src"):
        if op.shape("src") != index.shape:
            return None
        rows.append(op.layout("src"))
    picks = elementwise(op.relations, rows, index.shape)
    written = reduce(op.relations, replace(picks, dims=(*picks.dims[:place], (), *picks.dims[place + 1 :])))
    factor = Factor(base.shape[place])
    marks = Layout(
        tuple((factor,) if p == place else () for p in range(len(base.dims))), (Entry((factor,), index.tells.block),)
    )
    return elementwise(op.relations, [marks, written, base], op.result_shape)


@picking_rule("aten.cat", "aten.stack")
def together(op: Op) -> Layout | None:
    """Picks from the same axis, one beside the other."""
    pieces = op.layouts("tensors")
    told = [piece.tells for piece in pieces if piece.tells is not None]
    if len(told) != len(pieces) or not told or any(t.kind != "index" or t.block is not told[0].block for t in told):
        return None
    result = RULES[op.call.name](op)
    assert isinstance(result, Layout)
    return replace(result, tells=Tells("index", told[0].block, object()))
