"""Matrix products: one dimension of each argument is summed over."""

from __future__ import annotations

from rebasin_cli.symmetry.algebra import combine, elementwise
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.registry import Op, fixed_results, hold, hold_all, rule

RUNS = "matrices of a grouped product, selected by number"


@rule("aten.mm")
def mm(op: Op) -> AxisLayout:
    return combine(op.relations, [(op.layout("self"), "mk"), (op.layout("mat2"), "kn")], "mn")


@rule("aten.bmm")
def bmm(op: Op) -> AxisLayout:
    return combine(op.relations, [(op.layout("self"), "bmk"), (op.layout("mat2"), "bkn")], "bmn")


@rule("aten.addmm", "aten._sparse_addmm")
def addmm(op: Op) -> AxisLayout:
    product = combine(op.relations, [(op.layout("mat1"), "mk"), (op.layout("mat2"), "kn")], "mn")
    return elementwise(op.relations, [product, op.layout("self")], op.result_shape)


@rule("aten.baddbmm")
def baddbmm(op: Op) -> AxisLayout:
    product = combine(op.relations, [(op.layout("batch1"), "bmk"), (op.layout("batch2"), "bkn")], "bmn")
    return elementwise(op.relations, [product, op.layout("self")], op.result_shape)


@rule("aten.addbmm")
def addbmm(op: Op) -> AxisLayout:
    product = combine(op.relations, [(op.layout("batch1"), "bmk"), (op.layout("batch2"), "bkn")], "mn")
    return elementwise(op.relations, [product, op.layout("self")], op.result_shape)


@rule("aten.mv")
def mv(op: Op) -> AxisLayout:
    return combine(op.relations, [(op.layout("self"), "mk"), (op.layout("vec"), "k")], "m")


@rule("aten.addmv")
def addmv(op: Op) -> AxisLayout:
    product = combine(op.relations, [(op.layout("mat"), "mk"), (op.layout("vec"), "k")], "m")
    return elementwise(op.relations, [product, op.layout("self")], op.result_shape)


@rule("aten.dot", "aten.vdot")
def dot(op: Op) -> AxisLayout:
    return combine(
        op.relations, [(op.layout("self"), "k"), (op.layout("other" if op.has("other") else "tensor"), "k")], ""
    )


@rule("aten._cdist_forward", "aten._euclidean_dist")
def distances(op: Op) -> AxisLayout:
    """Distances between all pairs of rows: summed over the features."""
    lead = [("lead", place) for place in range(len(op.layout("x1").dims) - 2)]
    return combine(
        op.relations, [(op.layout("x1"), [*lead, "m", "k"]), (op.layout("x2"), [*lead, "n", "k"])], [*lead, "m", "n"]
    )


@rule("aten._trilinear")
def trilinear(op: Op) -> AxisLayout:
    """Three tensors expanded to common dimensions, multiplied, and summed over some of them."""
    rank = len(op.layout("i1").dims) + len(op["expand1"])
    operands = [
        (op.layout(f"i{which}"), [place for place in range(rank) if place not in op[f"expand{which}"]])
        for which in (1, 2, 3)
    ]
    return combine(op.relations, operands, [place for place in range(rank) if place not in op["sumdim"]])


@rule("aten.linear")
def linear(op: Op) -> AxisLayout:
    """`input @ weight.T + bias`, where it was not decomposed."""
    layout = op.layout("input")
    lead = [("lead", place) for place in range(len(layout.dims) - 1)]
    product = combine(op.relations, [(layout, [*lead, "k"]), (op.layout("weight"), ["n", "k"])], [*lead, "n"])
    if not op.has("bias"):
        return product
    return elementwise(op.relations, [product, op.layout("bias")], op.result_shape)


@rule("aten._grouped_mm", "transformers.grouped_mm_fallback")
def grouped(op: Op) -> AxisLayout | list[AxisLayout]:
    """Segments of rows, each times its own matrix: rows and matrices are pinned, units are permuted alike in all."""
    names = ("input", "weight") if op.has("weight") else ("self", "mat2")
    rows, table = op.layout(names[0]), op.layout(names[1])
    if len(rows.dims) != 2 or len(table.dims) != 3:
        for layout in op.tensors:
            hold_all(op.relations, layout, RUNS)
        return fixed_results(op, RUNS)
    rows = hold(op.relations, rows, [0], RUNS)
    table = hold(op.relations, table, [0], RUNS)
    product = combine(op.relations, [(rows, "sk"), (table, "ekn")], "sn")
    if not op.has("bias"):
        return product
    return elementwise(op.relations, [product, hold(op.relations, op.layout("bias"), [0], RUNS)], op.result_shape)
