"""Views and repeats: the same elements in other dimensions."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.symmetry.algebra import reduce
from rebasin_cli.symmetry.arrange import view
from rebasin_cli.symmetry.positions import AxisLayout, dimension, permute_dims
from rebasin_cli.symmetry.registry import Op, fixed_results, hold, hold_all, resized, rule
from rebasin_cli.tracing.operations import EXPAND, POINTWISE, RESHAPE, SAME, TRANSPOSE, VIEW, named

STRIDES = "unsupported strided view"


@rule(*named(RESHAPE))
def viewed(op: Op) -> AxisLayout:
    layout = op.layout("self")
    if "dtype" in op.call.arguments:  # bits reinterpreted as another dtype
        return layout if layout.shape == op.result_shape else hold_all(op.relations, layout, STRIDES)
    if layout.shape == op.result_shape:
        return layout
    return view(op.relations, layout, op.result_shape)


@rule(*named(VIEW | SAME, VIEW | POINTWISE))
def same(op: Op) -> AxisLayout:
    return op.layout("self")


@rule(*named(TRANSPOSE))
def transposed(op: Op) -> AxisLayout:
    layout = op.layout("self")
    return permute_dims(layout, transposed_order(op, len(layout.dims)))


def transposed_order(op: Op, rank: int) -> list[int]:
    """The dimension of the argument that each dimension of the result is, for a tensor of this rank."""
    if op.get("dims") is not None and rank:
        return op.dims("dims", rank)
    order = list(range(rank))
    if rank < 2:
        return order
    first, second = rank - 2, rank - 1
    for names in (("dim0", "dim1"), ("axis0", "axis1")):
        if names[0] in op.call.arguments:
            first, second = (op.dim(name, rank) for name in names)
    order[first], order[second] = second, first
    return order


@rule(*named(EXPAND))
def expanded(op: Op) -> AxisLayout:
    """New positions along a dimension of length 1 are uniform."""
    layout, shape = op.relations.released(op.layout("self")), op.result_shape
    dims = ((),) * (len(shape) - len(layout.dims)) + layout.dims
    return replace(layout, dims=tuple(dim or dimension(size) for dim, size in zip(dims, shape, strict=True)))


@rule("aten.repeat", "aten.tile")
def repeated(op: Op) -> AxisLayout:
    """The whole tensor several times: the repeat is a uniform outer factor."""
    layout, shape = op.relations.released(op.layout("self")), op.result_shape
    dims = ((),) * (len(shape) - len(layout.dims)) + layout.dims
    old = (1,) * (len(shape) - len(layout.shape)) + layout.shape
    outer = [dimension(size // before) for size, before in zip(shape, old, strict=True)]
    return replace(layout, dims=tuple((*more, *dim) for more, dim in zip(outer, dims, strict=True)))


@rule("aten.repeat_interleave")
def interleaved(op: Op) -> AxisLayout | list[AxisLayout]:
    """Each position several times in a row: the repeat is a uniform inner factor."""
    if "self" not in op.call.arguments or op.get("dim") is None or op.has("repeats"):
        for layout in op.tensors:
            hold_all(op.relations, layout, "repeat counts given by a tensor")
        return fixed_results(op, "repeat counts given by a tensor")
    layout = op.relations.released(op.layout("self"))
    place = op.dim("dim", len(layout.dims))
    more = dimension(int(op["repeats"]))
    return replace(layout, dims=tuple((*d, *more) if at == place else d for at, d in enumerate(layout.dims)))


@rule("aten.view_as_complex")
def as_complex(op: Op) -> AxisLayout:
    """Pairs of real numbers in the last dimension become one number each."""
    layout = op.layout("self")
    held = op.relations.released(hold(op.relations, layout, [len(layout.dims) - 1], "real and imaginary parts"))
    return reduce(op.relations, replace(held, dims=held.dims[:-1]))


@rule("aten.view_as_real")
def as_real(op: Op) -> AxisLayout:
    layout = op.relations.released(op.layout("self"))
    parts = dimension(2)
    reason = "real and imaginary parts"
    return AxisLayout((*layout.dims, parts), layout.entries, {**layout.fixed, parts[0]: reason})


@rule("aten.as_strided")
def strided(op: Op) -> AxisLayout | list[AxisLayout]:
    """The identity where size and strides are those of a contiguous tensor; otherwise unsupported."""
    layout, shape = op.layout("self"), op.result_shape
    expected, count = [], 1
    for size in reversed(shape):
        expected.append(count)
        count *= size
    plain = layout.shape == shape and not op.get("storage_offset", 0)
    if plain and [s for s, n in zip(op["stride"], shape, strict=True) if n > 1] == [
        s for s, n in zip(reversed(expected), shape, strict=True) if n > 1
    ]:
        return layout
    hold_all(op.relations, layout, STRIDES)
    return fixed_results(op, STRIDES)


@rule("aten.unfold")
def windows(op: Op) -> AxisLayout:
    """Windows along one dimension, which is pinned, in a new last dimension."""
    layout = op.layout("self")
    reason = "sliding window"
    held = op.relations.released(hold(op.relations, layout, [op.dim("dimension", len(layout.dims))], reason))
    result = resized(op.relations, held, [op.dim("dimension", len(layout.dims))], op.result_shape, reason)
    window = dimension(op.result_shape[-1])
    fixed = {**result.fixed, **dict.fromkeys(window, reason)}
    return AxisLayout((*result.dims, window), result.entries, fixed)


@rule(
    "aten.tril", "aten.triu", "aten.diagonal", "aten.diag_embed", "aten.diagonal_copy", "aten.block_diag", "aten.trace"
)
def diagonals(op: Op) -> list[AxisLayout]:
    """Operations that distinguish the diagonal pin both axes."""
    reason = "operation on a diagonal"
    held = [hold_all(op.relations, layout, reason) for layout in op.tensors]
    if op.call.name in ("aten.tril", "aten.triu"):
        return held
    return list(fixed_results(op, reason))
