"""Segments of axes, selection and writing by index, embedding tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rebasin_cli.symmetry.algebra import combine, elementwise, reduce
from rebasin_cli.symmetry.arrange import take
from rebasin_cli.symmetry.positions import AxisLayout, dimension, fixed_layout
from rebasin_cli.symmetry.registry import Op, fixed_results, hold, hold_all, resized, rule
from rebasin_cli.tracing.operations import DROP, SEGMENT, has, named, segments

TOKENS = "embedding rows (token ids)"
BY_VALUE = "positions selected by an index tensor"


@rule(*named(SEGMENT))
def segmented(op: Op) -> list[AxisLayout]:
    """Segments of one dimension, which is removed where an operation selects single positions."""
    layout = op.layout("self")
    place = op.dim("dim", len(layout.dims))
    taken = segments(op.call.arguments, layout.shape[place])
    pieces = [take(op.relations, layout, place, np.array(segment, dtype=np.int64)) for segment in taken]
    if has(op.call.name, DROP):
        pieces = [op.relations.released(_dropped(piece, place)) for piece in pieces]
    return pieces


def _dropped(layout: AxisLayout, place: int) -> AxisLayout:
    return AxisLayout((*layout.dims[:place], *layout.dims[place + 1 :]), layout.entries, layout.fixed)


@rule("aten.flip")
def flipped(op: Op) -> AxisLayout:
    layout = op.layout("self")
    for place in op.dims("dims", len(layout.dims)):
        layout = take(op.relations, layout, place, np.arange(layout.shape[place])[::-1])
    return layout


@rule("aten.roll")
def rolled(op: Op) -> AxisLayout | list[AxisLayout]:
    layout = op.layout("self")
    if not op.get("dims"):
        hold_all(op.relations, layout, BY_VALUE)
        return fixed_results(op, BY_VALUE)
    for shift, place in zip(op["shifts"], op.dims("dims", len(layout.dims)), strict=True):
        layout = take(op.relations, layout, place, np.roll(np.arange(layout.shape[place]), shift))
    return layout


@rule("aten.index_select")
def index_selected(op: Op) -> AxisLayout:
    layout = op.layout("self")
    place = op.dim("dim", len(layout.dims))
    numbers = op.numbers("index")
    if numbers is not None:
        return take(op.relations, layout, place, numbers.reshape(-1).numpy() % layout.shape[place])
    held = hold(op.relations, layout, [place], BY_VALUE)
    hold_all(op.relations, op.layout("index"), BY_VALUE)
    return resized(op.relations, held, [place], op.result_shape, BY_VALUE)


@rule("aten.index", "aten._unsafe_index")
def indexed(op: Op) -> AxisLayout | list[AxisLayout]:
    """A constant index along one dimension selects positions; any other indexed dimension is pinned."""
    layout = op.layout("self")
    given = [(place, ref) for place, ref in enumerate(op["indices"]) if ref is not None]
    numbers = [op.numbers_of(ref.value) for _, ref in given]
    if len(given) == 1 and numbers[0] is not None and numbers[0].dim() == 1 and numbers[0].dtype.is_signed:
        place = given[0][0]
        return take(op.relations, layout, place, numbers[0].numpy() % layout.shape[place])
    masks = _is_mask(op)
    widths = [max(1, _rank(op, ref.value)) if masks else 1 for _, ref in given]
    covered = sorted({place + extra for (place, _), width in zip(given, widths, strict=True) for extra in range(width)})
    held = op.relations.released(hold(op.relations, layout, covered, BY_VALUE))
    untouched = [place for place in range(len(layout.dims)) if place not in covered]
    new = len(op.result_shape) - len(untouched)
    adjacent = covered == list(range(covered[0], covered[0] + len(covered)))
    at = covered[0] if adjacent else 0
    fresh = _index_dims(op, [ref.value for _, ref in given], op.result_shape[at : at + new], masks)
    before = [held.dims[place] for place in untouched if adjacent and place < at]
    after = [held.dims[place] for place in untouched if not adjacent or place >= at]
    dims = (*before, *fresh.dims, *after)
    return reduce(op.relations, AxisLayout(dims, (*held.entries, *fresh.entries), {**held.fixed, **fresh.fixed}))


def _index_dims(op: Op, values: Sequence[int], shape: Sequence[int], masks: bool) -> AxisLayout:
    """The dimensions that indices add: theirs, broadcast; those of masks are pinned."""
    if not masks:
        return elementwise(op.relations, [op.layout_of(value) for value in values], shape)
    for value in values:
        hold_all(op.relations, op.layout_of(value), BY_VALUE)
    return fixed_layout(shape, BY_VALUE)


def _rank(op: Op, value: int) -> int:
    return len(op.shape_of(value))


def _is_mask(op: Op) -> bool:
    """Whether a mask is among the indices."""
    return any(op.dtype_of(ref.value) in (torch.bool, torch.uint8) for ref in op["indices"] if ref is not None)


@rule("aten.gather", "aten.take_along_dim")
def gathered(op: Op) -> AxisLayout:
    """Selected along one dimension; the others are indexed together with the index tensor."""
    layout = op.layout("self")
    place = op.dim("dim", len(layout.dims))
    if layout.shape != op.shape("index"):
        other = [p for p in range(len(layout.dims)) if layout.shape[p] != op.shape("index")[p]]
        layout = hold(op.relations, layout, other, BY_VALUE)
    held = hold(op.relations, layout, [place], BY_VALUE)
    selected = resized(
        op.relations,
        op.relations.released(held),
        _differing(held.shape, op.result_shape, place),
        op.result_shape,
        BY_VALUE,
    )
    index = hold(op.relations, op.layout("index"), [place], BY_VALUE)
    return elementwise(op.relations, [selected, index], op.result_shape)


def _differing(old: Sequence[int], new: Sequence[int], place: int) -> list[int]:
    return [p for p in range(len(new)) if p == place or old[p] != new[p]]


@rule(
    "aten.scatter",
    "aten.scatter_add",
    "aten.scatter_reduce",
    "aten.index_put",
    "aten._unsafe_index_put",
    "aten._index_put_impl",
    "aten.index_add",
    "aten.index_copy",
    "aten.index_fill",
    "aten.masked_scatter",
)
def scattered(op: Op) -> AxisLayout | list[AxisLayout]:
    """Written by index: indexed dimensions are pinned, trailing dimensions that are not indexed pass through."""
    layout = op.layout("self")
    name = op.call.name.removeprefix("aten.")
    if name in ("index_add", "index_copy", "index_fill"):
        place = op.dim("dim", len(layout.dims))
        hold_all(op.relations, op.layout("index"), BY_VALUE)
        return _written_rows(op, [place], op.layout("source") if op.has("source") else None, [place])
    if name in ("index_put", "_unsafe_index_put", "_index_put_impl"):
        return _index_put(op, layout)
    if name.startswith("scatter") and op.has("index"):
        place = op.dim("dim", len(layout.dims))
        held = [
            hold(op.relations, piece, [p for p in range(len(piece.dims)) if p == place or _uneven(op, p)], BY_VALUE)
            for piece in op.tensors
            if len(piece.dims) == len(layout.dims)
        ]
        shaped = [
            resized(
                op.relations,
                op.relations.released(piece),
                _differing(piece.shape, op.result_shape, place),
                op.result_shape,
                BY_VALUE,
            )
            for piece in held
        ]
        return elementwise(op.relations, shaped, op.result_shape)
    for piece in op.tensors:
        hold_all(op.relations, piece, BY_VALUE)
    return fixed_results(op, BY_VALUE)


def _uneven(op: Op, place: int) -> bool:
    return len({op.shape(name)[place] for name in ("self", "index", "src") if op.has(name)}) > 1


def _index_put(op: Op, layout: AxisLayout) -> AxisLayout | list[AxisLayout]:
    given = [(place, ref) for place, ref in enumerate(op["indices"]) if ref is not None]
    if (
        len(given) == 1
        and _is_mask(op)
        and op.shape_of(given[0][1].value) == layout.shape
        and _is_one(op.shape("values"))
    ):
        mask = op.layout_of(given[0][1].value)  # one value wherever the mask is true: pointwise
        return elementwise(op.relations, [layout, mask, op.layout("values")], layout.shape)
    widths = [max(1, _rank(op, ref.value)) if _is_mask(op) else 1 for _, ref in given]
    for _, ref in given:
        hold_all(op.relations, op.layout_of(ref.value), BY_VALUE)
    covered = sorted({place + extra for (place, _), w in zip(given, widths, strict=True) for extra in range(w)})
    values = op.layout("values")
    rest = len(layout.dims) - len(covered)
    if covered != list(range(len(covered))) or len(values.dims) < rest:
        for piece in op.tensors:
            hold_all(op.relations, piece, BY_VALUE)
        return fixed_results(op, BY_VALUE)
    return _written_rows(op, covered, values, range(len(values.dims) - rest))


def _is_one(shape: Sequence[int]) -> bool:
    return all(size == 1 for size in shape)


def _written_rows(op: Op, covered: Sequence[int], source: AxisLayout | None, lost: Sequence[int]) -> AxisLayout:
    """The target with its covered dimensions pinned and its other dimensions joined with the source's."""
    layout = op.relations.released(hold(op.relations, op.layout("self"), covered, BY_VALUE))
    if source is None:
        return layout
    source = op.relations.released(hold(op.relations, source, lost, BY_VALUE))
    others = [place for place in range(len(layout.dims)) if place not in covered]
    kept = [place for place in range(len(source.dims)) if place not in lost]
    dims = [dimension(1)] * len(layout.dims)
    for place, of in zip(reversed(others), reversed(kept), strict=False):
        dims[place] = source.dims[of]
    present = {factor for dim in dims for factor in dim}
    fixed = {factor: why for factor, why in source.fixed.items() if factor in present}
    rows = reduce(op.relations, AxisLayout(tuple(dims), source.entries, fixed))
    return elementwise(op.relations, [layout, rows], layout.shape)


@rule("aten.embedding")
def embedding(op: Op) -> AxisLayout:
    """The dimensions of the indices, then the features of a row; rows are pinned."""
    table = op.relations.released(hold(op.relations, op.layout("weight"), [0], TOKENS))
    places = op.relations.released(op.layout("indices"))
    fixed = {**table.fixed, **places.fixed}
    fixed = {factor: reason for factor, reason in fixed.items() if factor not in table.dims[0]}
    result = AxisLayout((*places.dims, table.dims[1]), (*places.entries, *table.entries), fixed)
    return combine(op.relations, [(result, range(len(result.dims)))], range(len(result.dims)))


@rule("aten._embedding_bag", "aten._embedding_bag_forward_only", "aten.embedding_bag")
def embedding_bag(op: Op) -> list[AxisLayout]:
    table = op.relations.released(hold(op.relations, op.layout("weight"), [0], TOKENS))
    for name in ("indices", "offsets", "per_sample_weights"):
        if op.has(name):
            hold_all(op.relations, op.layout(name), TOKENS)
    places = fixed_layout(op.result_shape[:1], "bags of an embedding")
    fixed = {f: reason for f, reason in {**table.fixed, **places.fixed}.items() if f not in table.dims[0]}
    rest = [fixed_layout(shape, TOKENS) for shape in op.result_shapes[1:]]
    rows = AxisLayout((places.dims[0], table.dims[1]), table.entries, fixed)
    return [reduce(op.relations, rows), *rest]
