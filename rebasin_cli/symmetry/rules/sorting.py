"""Rows sorted by what they picked: counts, ends of runs, the way back, each run times its own matrix."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.symmetry.algebra import combine
from rebasin_cli.symmetry.positions import Entry, Factor, Layout, Tells, dimension, fixed_layout
from rebasin_cli.symmetry.registry import Op, picking_rule
from rebasin_cli.symmetry.rules.picking import RANKED, by_picks

RUNS = "ends of runs keep their order"


@picking_rule("aten.histc", "aten.bincount")
def counted(op: Op) -> Layout | None:
    """How many rows picked each position."""
    tells = op.layout("self").tells
    size = op.result_shape[0]
    if tells is None or tells.kind != "index" or op.has("weights") or size != tells.block.size:
        return None
    if op.call.name == "aten.histc" and (float(op["min"]), float(op["max"])) not in ((0.0, size - 1.0), (0.0, size)):
        return None
    factor = Factor(size)
    layout = Layout((dimension(size) and (factor,),), (Entry((factor,), tells.block),))
    return replace(layout, tells=replace(tells, kind="counts"))


@picking_rule("aten.cumsum")
def ended(op: Op) -> Layout | None:
    """Counts summed up: where the run of every position ends among the sorted rows."""
    layout = op.layout("self")
    if layout.tells is None or layout.tells.kind != "counts" or len(layout.dims) != 1:
        return None
    return replace(fixed_layout(layout.shape, RUNS), tells=replace(layout.tells, kind="ends"))


@picking_rule("aten.index_put", "aten._unsafe_index_put", "aten._index_put_impl")
def undone(op: Op) -> Layout | None:
    """0, 1, 2 … written where an order says: the way back from the sorted rows."""
    given = [ref for ref in op["indices"] if ref is not None]
    if len(given) != 1 or op.get("accumulate", False):
        return None
    tells, numbers = op.layout_of(given[0].value).tells, op.numbers("values")
    if tells is None or tells.kind != "order" or numbers is None or op.result_shape != (tells.block.size,):
        return None
    if numbers.tolist() != list(range(tells.block.size)):
        return None
    return replace(fixed_layout(op.result_shape, RANKED), tells=Tells("index", tells.block, object()))


@picking_rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped_product(op: Op) -> Layout | None:
    """Rows sorted by what they picked, each times the matrix that it picked."""
    names = ("input", "weight") if op.has("weight") else ("self", "mat2")
    rows, table = op.layout(names[0]), op.layout(names[1])
    ends = op.layout("offs") if op.has("offs") else None
    if ends is None or ends.tells is None or ends.tells.kind != "ends" or len(rows.dims) != 2 or len(table.dims) != 3:
        return None
    sorted_rows = next((frame for frame, by in reversed(op.relations.sortings) if by is ends.tells.block), None)
    if sorted_rows is None or op.has("bias") or sorted_rows.size != rows.shape[0]:
        return None
    rows = op.relations.released(rows)
    factor = Factor(sorted_rows.size)
    frame = Layout(((factor,),), (Entry((factor,), sorted_rows),))
    rows = combine(op.relations, [(rows, "sk"), (frame, "s")], "sk")
    along = set(rows.dims[0])
    entries = tuple(e for e in rows.entries if set(e.factors) <= along)
    index = Layout((rows.dims[0],), entries, {f: why for f, why in rows.fixed.items() if f in along})
    matrices = by_picks(op, table, 0, index, ends.tells)
    if matrices is None:
        return None
    return combine(op.relations, [(matrices, "skn"), (rows, "sk")], "sn")
