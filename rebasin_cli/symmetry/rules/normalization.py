"""Norms: statistics over rows or channels, then an elementwise scale and shift."""

from __future__ import annotations

from collections.abc import Sequence

from rebasin_cli.symmetry.algebra import combine, elementwise, rows_matter
from rebasin_cli.symmetry.arrange import split_dim, view
from rebasin_cli.symmetry.positions import AxisLayout, fixed_layout
from rebasin_cli.symmetry.registry import Op, rule


def _with_statistics(op: Op, layout: AxisLayout) -> list[AxisLayout]:
    """The result of a norm, and its statistics, which no model reads in eval mode."""
    rest = op.result_shapes[1:]
    return [layout, *(fixed_layout(shape, "auxiliary result of a norm") for shape in rest)]


def _scaled(op: Op, layout: AxisLayout, names: Sequence[str], labels: Sequence[object]) -> AxisLayout:
    """`layout` joined with one-dimensional tensors along dimension 1."""
    given = [(op.layout(name), [labels[1]]) for name in names if op.has(name)]
    return combine(op.relations, [(layout, labels), *given], labels)


@rule("aten.native_layer_norm", "aten._fused_rms_norm", "aten.rms_norm")
def layer_norm(op: Op) -> list[AxisLayout]:
    """Statistics over the last dimensions; every row on its own."""
    layout = op.layout("input")
    rank, last = len(layout.dims), len(op["normalized_shape"])
    layout = rows_matter(op.relations, layout, range(rank - last, rank))
    given = [op.layout(name) for name in ("weight", "bias") if op.has(name)]
    return _with_statistics(op, elementwise(op.relations, [layout, *given], layout.shape))


@rule(
    "aten.native_batch_norm",
    "aten._native_batch_norm_legit",
    "aten._native_batch_norm_legit_no_training",
    "aten._batch_norm_impl_index",
    "aten.cudnn_batch_norm",
    "aten._batch_norm_with_update",
    "aten._batch_norm_no_update",
)
def batch_norm(op: Op) -> list[AxisLayout]:
    """Channel by channel along dimension 1; batch statistics reduce over all other dimensions."""
    layout = op.layout("input")
    rank = len(layout.dims)
    if op.get("training", False) or not op.has("running_mean"):
        layout = rows_matter(op.relations, layout, [place for place in range(rank) if place != 1])
    names = ("weight", "bias", "running_mean", "running_var")
    return _with_statistics(op, _scaled(op, layout, names, range(rank)))


@rule("aten.native_group_norm")
def group_norm(op: Op) -> list[AxisLayout]:
    """Statistics over the channels of a group and all positions: groups may be permuted, and channels within them."""
    layout = op.layout("input")
    rank = len(layout.dims)
    grouped = split_dim(op.relations, layout, 1, int(op["group"]))
    grouped = rows_matter(op.relations, grouped, range(2, rank + 1))
    layout = view(op.relations, grouped, layout.shape)
    return _with_statistics(op, _scaled(op, layout, ("weight", "bias"), range(rank)))


@rule("aten._weight_norm_interface")
def weight_norm(op: Op) -> list[AxisLayout]:
    """Each slice of `v` along one dimension normalised and scaled by `g`."""
    layout = op.layout("v")
    rank = len(layout.dims)
    kept = op.dim("dim", rank)
    layout = rows_matter(op.relations, layout, [place for place in range(rank) if place != kept])
    return _with_statistics(op, elementwise(op.relations, [layout, op.layout("g")], layout.shape))
