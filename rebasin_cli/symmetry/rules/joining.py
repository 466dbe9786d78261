"""Concatenation, stacking, padding, and writing a changed view back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rebasin_cli.symmetry.algebra import reduce
from rebasin_cli.symmetry.arrange import take, view
from rebasin_cli.symmetry.concatenate import concatenate
from rebasin_cli.symmetry.positions import AxisLayout, dimension, fixed_layout, permute_dims, uniform_layout
from rebasin_cli.symmetry.registry import Op, fixed_results, hold, hold_all, rule
from rebasin_cli.symmetry.rules.view import transposed_order
from rebasin_cli.tracing.graph import SCATTER
from rebasin_cli.tracing.operations import DROP, RESHAPE, SAME, SEGMENT, TRANSPOSE, has, segments

STACKED = 1 << 16
"""Joint positions up to which stacked pieces may be permuted apart: they are often split again."""
CONCATENATED = 1 << 13
"""The same for concatenated pieces, which are mostly read alike (tokens beside a class token)."""
STEPS = "steps of packed sequences"


@rule("aten.cat", "aten.concat")
def cat(op: Op) -> AxisLayout:
    pieces = [op.layout_of(ref.value) for ref in op["tensors"]]
    place = op.dim("dim", len(op.result_shape))
    some = op.result_shape[place] > 0
    pieces = [piece for piece in pieces if len(piece.dims) == len(op.result_shape) and not (some and 0 in piece.shape)]
    return concatenate(op.relations, pieces, place, apart=CONCATENATED)


@rule("aten.stack", "aten._stack")
def stack(op: Op) -> AxisLayout:
    rank = len(op.result_shape)
    place = op.dim("dim", rank)
    pieces = [op.relations.released(op.layout_of(ref.value)) for ref in op["tensors"]]
    pieces = [replace(piece, dims=(*piece.dims[:place], (), *piece.dims[place:])) for piece in pieces]
    return concatenate(op.relations, pieces, place, apart=STACKED)


@rule("aten.constant_pad_nd")
def padded(op: Op) -> AxisLayout:
    """Padding adds uniform positions; a negative pad is a slice."""
    layout, pads = op.layout("self"), list(op["pad"])
    rank = len(layout.dims)
    for axis in range(len(pads) // 2):
        place = rank - 1 - axis
        before, after = pads[2 * axis], pads[2 * axis + 1]
        size = layout.shape[place]
        if min(before, after) < 0:
            layout = take(op.relations, layout, place, np.arange(max(0, -before), size - max(0, -after)))
        before, after, size = max(0, before), max(0, after), layout.shape[place]
        if before + after:
            shape = list(layout.shape)
            shape[place] = before + after
            layout = concatenate(op.relations, [layout, uniform_layout(shape)], place)
            order = np.r_[size : size + before, :size, size + before : size + before + after]
            layout = take(op.relations, layout, place, order)
    return layout


@rule("aten._pack_padded_sequence")
def packed(op: Op) -> list[AxisLayout]:
    """(time, sample, …) or (sample, time, …) without the padding, as (step, …), and the sizes of the steps."""
    layout = hold(op.relations, op.layout("input"), [0, 1], STEPS)
    packs, sizes = op.result_shapes
    step = dimension(packs[0])
    kept = reduce(op.relations, replace(layout, dims=layout.dims[2:]))
    data = replace(kept, dims=(step, *kept.dims), fixed={**kept.fixed, **dict.fromkeys(step, STEPS)})
    return [data, fixed_layout(sizes, STEPS)]


@rule("aten.slice_scatter", "aten.select_scatter")
def scattered_slice(op: Op) -> AxisLayout:
    """A tensor with a slice of it replaced by another."""
    return _segment_replaced(op, op.layout("self"), op.layout("src"), 0, drop=op.call.name == "aten.select_scatter")


def _segment_replaced(op: Op, base: AxisLayout, part: AxisLayout, which: int, *, drop: bool) -> AxisLayout:
    """`base` with the segment that result `which` of a `SEGMENT` operation takes replaced by `part`."""
    place = op.dim("dim", len(base.dims))
    if drop:
        part = replace(op.relations.released(part), dims=(*part.dims[:place], (), *part.dims[place:]))
    index = segments(op.call.arguments, base.shape[place])[which]
    return replaced(op, base, part, place, np.array(index, dtype=np.int64))


def replaced(op: Op, base: AxisLayout, part: AxisLayout, place: int, index: np.ndarray) -> AxisLayout:
    """`base` with the positions `index` along one dimension replaced by `part`."""
    size = base.shape[place]
    if len(index) == size:
        return take(op.relations, part, place, np.argsort(index, kind="stable"))
    others = np.delete(np.arange(size), index)
    whole = concatenate(op.relations, [take(op.relations, base, place, others), part], place, apart=STACKED)
    return take(op.relations, whole, place, np.argsort(np.r_[others, index], kind="stable"))


@rule(SCATTER)
def written_back(op: Op) -> AxisLayout | list[AxisLayout]:
    """A value after one of its views was changed: the view is inverted, or the segment replaced."""
    base, part, name = op.layout("base"), op.layout("part"), op["view"]
    if has(name, SEGMENT):
        return _segment_replaced(op, base, part, int(op["which"]), drop=has(name, DROP))
    if has(name, SAME):
        return part
    if has(name, TRANSPOSE):
        order = transposed_order(op, len(base.dims))
        return permute_dims(op.relations.released(part), np.argsort(order).tolist())
    if has(name, RESHAPE) and np.prod(part.shape) == np.prod(base.shape):
        return view(op.relations, part, base.shape)
    reason = "in-place change of an unsupported view"
    for layout in (base, part):
        hold_all(op.relations, layout, reason)
    return fixed_results(op, reason)
