"""Sums, means, extremes and softmax over dimensions; dimensions whose order matters are pinned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rebasin_cli.symmetry.algebra import combine, reduce, rows_matter
from rebasin_cli.symmetry.positions import AxisLayout, fixed_layout
from rebasin_cli.symmetry.registry import Op, fixed_results, hold, hold_all, resized, rule

ORDER = "order matters for a cumulative operation over this axis"
CLASSES = "class index"
INDEX = "indices along this axis are returned"
ALIGNED = "time and labels of a CTC loss"


def reduced(op: Op, layout: AxisLayout, dims: Sequence[int], keep: bool) -> AxisLayout:
    layout = op.relations.released(layout)
    kept = tuple(() if place in dims else dim for place, dim in enumerate(layout.dims))
    result = reduce(op.relations, replace(layout, dims=kept))
    if keep:
        return result
    return replace(result, dims=tuple(dim for place, dim in enumerate(result.dims) if place not in dims))


@rule(
    "aten._is_all_true",
    "aten._is_any_true",
    "aten.all",
    "aten.amax",
    "aten.amin",
    "aten._aminmax",
    "aten.aminmax",
    "aten.any",
    "aten.count_nonzero",
    "aten.linalg_vector_norm",
    "aten.logsumexp",
    "aten.mean",
    "aten.nansum",
    "aten.native_norm",
    "aten.norm",
    "aten.prod",
    "aten.std",
    "aten.std_mean",
    "aten.sum",
    "aten.var",
    "aten.var_mean",
)
def total(op: Op) -> list[AxisLayout]:
    """One value for every row of the kept dimensions."""
    layout = op.layout("self")
    dims = op.dims("dim", len(layout.dims))
    result = reduced(op, layout, dims, bool(op.get("keepdim", False)))
    return [result for _ in op.call.results]


@rule("aten.max", "aten.min")
def extreme(op: Op) -> list[AxisLayout]:
    """Of everything, or along one dimension; that is pinned where the indices are read."""
    layout = op.layout("self")
    if op.get("dim") is None:
        return [reduced(op, layout, range(len(layout.dims)), False)]
    return _with_positions(op, layout, bool(op.get("keepdim", False)))


def _with_positions(op: Op, layout: AxisLayout, keep: bool) -> list[AxisLayout]:
    place = op.dim("dim", len(layout.dims))
    if _positions_are_read(op):
        layout = hold(op.relations, layout, [place], INDEX)
    result = reduced(op, layout, [place], keep)
    return [result for _ in op.call.results]


def _positions_are_read(op: Op) -> bool:
    return any(value is not None and op.is_read(value) for value in op.call.results[1:])


@rule("aten.argmax", "aten.argmin")
def position_of_extreme(op: Op) -> list[AxisLayout]:
    layout = op.layout("self")
    dims = op.dims("dim", len(layout.dims))
    held = hold(op.relations, layout, dims, INDEX)
    return [reduced(op, held, dims, bool(op.get("keepdim", False)))]


@rule("aten.median", "aten.nanmedian", "aten.mode", "aten.kthvalue")
def middle(op: Op) -> list[AxisLayout]:
    layout = op.layout("self")
    if op.get("dim") is None:
        return [reduced(op, layout, range(len(layout.dims)), False)]
    return _with_positions(op, layout, bool(op.get("keepdim", False)))


@rule("aten._log_softmax", "aten._safe_softmax", "aten._softmax", "aten.log_softmax", "aten.softmax")
def softmax(op: Op) -> AxisLayout:
    layout = op.layout("self")
    return rows_matter(op.relations, layout, [op.dim("dim", len(layout.dims))])


@rule("aten.nll_loss_forward", "aten.nll_loss2d_forward")
def likelihood(op: Op) -> list[AxisLayout]:
    """The loss at each position, summed if asked, and the total weight; classes are pinned."""
    given, target = op.layout("self"), op.layout("target")
    classes = min(1, len(given.dims) - 1)
    held = hold(op.relations, given, [classes], CLASSES)
    if op.has("weight"):
        hold_all(op.relations, op.layout("weight"), CLASSES)
    others = [place for place in range(len(given.dims)) if place != classes]
    summed = int(op["reduction"]) != 0
    losses = combine(op.relations, [(held, range(len(given.dims))), (target, others)], [] if summed else others)
    return [losses, fixed_layout(op.result_shapes[-1], CLASSES)]


@rule("aten.cumprod", "aten.cumsum", "aten.logcumsumexp", "aten.cummax", "aten.cummin")
def running(op: Op) -> list[AxisLayout]:
    layout = op.layout("self")
    place = op.dim("dim", len(layout.dims))
    held = hold(op.relations, layout, [place], ORDER)
    result = resized(op.relations, held, [place], layout.shape, ORDER)
    return [result for _ in op.call.results]


@rule("aten.sort", "aten.argsort", "aten.topk")
def ranked(op: Op) -> list[AxisLayout]:
    """Sorted along one dimension: the results are in the order of the ranking."""
    layout = op.layout("self")
    place = op.dim("dim", len(layout.dims))
    if op.call.name == "aten.argsort" or _positions_are_read(op):
        layout = hold(op.relations, layout, [place], INDEX)
    result = resized(op.relations, reduced(op, layout, [place], True), [place], op.result_shape, INDEX)
    return [result for _ in op.call.results]


@rule("aten._ctc_loss")
def alignments(op: Op) -> list[AxisLayout]:
    """Of (time, sample, class) and of labels in order; only samples could move, with their lengths."""
    for layout in op.tensors:
        hold_all(op.relations, layout, ALIGNED)
    return fixed_results(op, ALIGNED)


@rule(
    *(
        f"aten.{name}"
        for name in ("bincount", "histc", "masked_select", "nonzero", "nonzero_static", "unique", "_unique2")
    ),
    *(f"aten.{name}" for name in ("unique_consecutive", "unique_dim", "unique_dim_consecutive")),
)
def data_dependent(op: Op) -> list[AxisLayout]:
    """The size of the result depends on values, so every dimension is pinned."""
    reason = "positions selected by value"
    for layout in op.tensors:
        hold(op.relations, layout, range(len(layout.dims)), reason)
    return fixed_results(op, reason)
