"""The names that rule authors need: how the axes of one operation's results relate to those of its arguments.

An operation without a rule pins all axes that it touches. A rule says more, and is registered under the operator's
name, `namespace.operator`, for all its overloads and its in-place form. Put rules in a Python file and pass it with
`--rules FILE.py` to `rebasin trace` or `rebasin align`. A rule that claims too much cannot do harm: before anything is
written, the model is executed under random permutations of all groups.

A rule is a function of an `Op`, which gives

- `op.layout("x")`: the `AxisLayout` of the tensor argument `x`; `op.layouts("xs")` for a list of tensors;
- `op["alpha"]`, `op.get("alpha", 1.0)`: any other argument; `op.has("bias")`: whether that tensor was passed;
- `op.dim("dim", rank)`, `op.dims("dims", rank)`: dimension arguments, counted from the front;
- `op.result_shape`, `op.result_shapes`: what the results look like.

It returns the `AxisLayout` of the result, or a list of them. Layouts are never changed; these functions make new ones
and record in `op.relations` what moves together:

- `elementwise(op.relations, layouts, shape)`: a pointwise operation with broadcasting;
- `combine(op.relations, [(layout, labels), …], labels)`: as an einsum: dimensions of equal label move together, and
  labels that the result lacks are summed over;
- `rows_matter(op.relations, layout, dims)`: normalisation or softmax over `dims`, the shape unchanged;
- `reduce(op.relations, layout)`: forgets the factors that no dimension of the layout holds any more;
- `hold(op.relations, layout, dims, reason)`: the order along `dims` matters to the operation, so they are pinned;
- `resized(op.relations, layout, dims, shape, reason)`: `dims` get new sizes and each new position may depend on
  several old ones (pooling, resampling); after `hold` of the same dimensions;
- `take(op.relations, layout, dim, index)`: constant positions selected along one dimension;
- `view(op.relations, layout, shape)`, `permute_dims(layout, order)`, `concatenate(op.relations, layouts, dim)`;
- `fixed_layout(shape, reason)`, `uniform_layout(shape)`: a tensor whose positions all keep their order, or whose
  elements are all equal.

Example: `mylib.gated(x, gate, window)` multiplies `x` by a gate that has one value per feature, and then averages over
windows of positions along dimension 1. Features may be permuted, positions may not:

    from rebasin_cli.rules import AxisLayout, Op, elementwise, hold, resized, rule

    WINDOW = "positions of a sliding window"


    @rule("mylib.gated")
    def gated(op: Op) -> AxisLayout:
        x = op.layout("x")
        gated = elementwise(op.relations, [x, op.layout("gate")], x.shape)
        held = hold(op.relations, gated, [1], WINDOW)
        return resized(op.relations, held, [1], op.result_shape, WINDOW)
"""

from rebasin_cli.symmetry.algebra import combine, elementwise, reduce, rows_matter
from rebasin_cli.symmetry.arrange import take, view
from rebasin_cli.symmetry.concatenate import concatenate
from rebasin_cli.symmetry.positions import AxisLayout, fixed_layout, permute_dims, uniform_layout
from rebasin_cli.symmetry.registry import Op, hold, resized, rule

__all__ = [
    "AxisLayout",
    "Op",
    "combine",
    "concatenate",
    "elementwise",
    "fixed_layout",
    "hold",
    "permute_dims",
    "reduce",
    "resized",
    "rows_matter",
    "rule",
    "take",
    "uniform_layout",
    "view",
]
