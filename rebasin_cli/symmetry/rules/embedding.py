"""Tables that are looked up by index: the rows keep their order."""

from __future__ import annotations

from rebasin_cli.symmetry.algebra import combine, reduce
from rebasin_cli.symmetry.positions import Layout, fixed_layout
from rebasin_cli.symmetry.registry import Op, hold_all, hold_dims, rule

TOKENS = "rows of a table are looked up by index"


@rule("aten.embedding")
def embedding(op: Op) -> Layout:
    """The indices' dimensions, then the features of a row."""
    table = op.relations.released(hold_dims(op.relations, op.layout("weight"), [0], TOKENS))
    places = op.relations.released(op.layout("indices"))
    fixed = {**table.fixed, **places.fixed}
    fixed = {factor: reason for factor, reason in fixed.items() if factor not in table.dims[0]}
    result = Layout((*places.dims, table.dims[1]), (*places.entries, *table.entries), fixed)
    return combine(op.relations, [(result, range(len(result.dims)))], range(len(result.dims)))


@rule("aten._embedding_bag", "aten._embedding_bag_forward_only", "aten.embedding_bag")
def embedding_bag(op: Op) -> list[Layout]:
    table = op.relations.released(hold_dims(op.relations, op.layout("weight"), [0], TOKENS))
    for name in ("indices", "offsets", "per_sample_weights"):
        if op.has(name):
            hold_all(op.relations, op.layout(name), TOKENS)
    places = fixed_layout(op.result_shape[:1], "positions of what is looked up")
    fixed = {f: reason for f, reason in {**table.fixed, **places.fixed}.items() if f not in table.dims[0]}
    rest = [fixed_layout(shape, TOKENS) for shape in op.result_shapes[1:]]
    rows = Layout((places.dims[0], table.dims[1]), table.entries, fixed)
    return [reduce(op.relations, rows), *rest]
