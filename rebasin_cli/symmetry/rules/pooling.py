"""Pooling, resizing and sampling: spatial positions are pinned, channels pass through."""

from __future__ import annotations

from dataclasses import replace

from rebasin_cli.symmetry.algebra import combine, elementwise, reduce
from rebasin_cli.symmetry.arrange import view
from rebasin_cli.symmetry.positions import AxisLayout, fixed_layout
from rebasin_cli.symmetry.registry import Op, hold, resized, rule

SPACE = "spatial positions"

_LAST = {"1d": 1, "2d": 2, "3d": 3}


def _spatial(op: Op, layout: AxisLayout, rank: int) -> list[AxisLayout]:
    first = len(layout.dims) - rank
    places = [first + axis for axis in range(rank) if not _is_untouched(op, layout.shape[first + axis], axis, rank)]
    held = hold(op.relations, layout, places, SPACE)
    result = resized(op.relations, held, places, op.result_shape, SPACE)
    return [result for _ in op.call.results]


def _is_untouched(op: Op, size: int, axis: int, rank: int) -> bool:
    """Whether every position along a spatial axis stays what it is: no window, no padding, no change of size."""
    if "padding" in op.call.arguments and "kernel_size" not in op.call.arguments:
        before = 2 * (rank - 1 - axis)  # pairs of numbers, the last axis first
        return all(int(number) == 0 for number in op["padding"][before : before + 2])
    if "kernel_size" in op.call.arguments:
        window, steps = _each(op["kernel_size"], rank), _each(op.get("stride") or op["kernel_size"], rank)
        # Indices of the largest are numbers of positions in the whole plane.
        read = any(value is not None and op.is_read(value) for value in op.call.results[1:])
        return (window[axis], steps[axis], _each(op.get("padding", 0), rank)[axis]) == (1, 1, 0) and not read
    if "output_size" not in op.call.arguments or len(op.call.results) > 1:
        return False
    factors: list[float | None] = []
    for name, factor in op.call.arguments.items():
        if name.startswith("scale"):
            factors += factor if isinstance(factor, (list, tuple)) else [factor]
    own = factors[axis : axis + 1] if len(factors) == rank else factors
    # A factor near 1 may give the same size, and other places.
    return op.result_shape[axis - rank] == size and all(factor in (None, 1) for factor in own)


def _each(given: object, rank: int) -> list[int]:
    numbers = [int(number) for number in given] if isinstance(given, (list, tuple)) else [int(str(given))]
    return numbers * rank if len(numbers) == 1 else numbers


@rule(
    *(
        f"aten.{name}{dims}{ending}"
        for dims in _LAST
        for name, ending in (
            ("max_pool", "_with_indices"),
            ("max_pool", ""),
            ("avg_pool", ""),
            ("adaptive_avg_pool", ""),
            ("_adaptive_avg_pool", ""),
            ("adaptive_max_pool", ""),
            ("fractional_max_pool", ""),
            ("reflection_pad", ""),
            ("replication_pad", ""),
            ("upsample_nearest", ""),
            ("_upsample_nearest_exact", ""),
        )
    ),
    "aten.upsample_linear1d",
    "aten.upsample_bilinear2d",
    "aten._upsample_bilinear2d_aa",
    "aten.upsample_bicubic2d",
    "aten._upsample_bicubic2d_aa",
    "aten.upsample_trilinear3d",
)
def pool(op: Op) -> list[AxisLayout]:
    layout = op.layout("self" if op.has("self") else "input")
    rank = next(rank for name, rank in _LAST.items() if name in op.call.name)
    return _spatial(op, layout, rank)


@rule("aten.max_unpool2d", "aten.max_unpool3d")
def unpool(op: Op) -> AxisLayout:
    """Back to the spatial positions that the indices name, in the same sample and channel."""
    shape, rank = op.shape("self"), _LAST[op.call.name[-2:]]
    places = range(len(shape) - rank, len(shape))
    held = [hold(op.relations, op.layout(name), places, SPACE) for name in ("self", "indices")]
    return resized(op.relations, elementwise(op.relations, held, shape), places, op.result_shape, SPACE)


@rule("aten.pixel_shuffle")
def pixel_shuffle(op: Op) -> AxisLayout:
    """Channels (c, r, r): c stays the channel, the others become spatial."""
    layout = op.layout("self")
    *lead, channels, height, width = layout.shape
    r, n = int(op["upscale_factor"]), len(lead)
    split = view(op.relations, layout, [*lead, channels // (r * r), r, r, height, width])
    order = [*range(n + 1), n + 3, n + 1, n + 4, n + 2]
    split = replace(split, dims=tuple(split.dims[place] for place in order))
    return view(op.relations, split, op.result_shape)


@rule("aten.pixel_unshuffle")
def pixel_unshuffle(op: Op) -> AxisLayout:
    layout = op.layout("self")
    *lead, channels, height, width = layout.shape
    r, n = int(op["downscale_factor"]), len(lead)
    split = view(op.relations, layout, [*lead, channels, height // r, r, width // r, r])
    order = [*range(n + 1), n + 2, n + 4, n + 1, n + 3]
    split = replace(split, dims=tuple(split.dims[place] for place in order))
    return view(op.relations, split, op.result_shape)


@rule("aten.channel_shuffle", "aten.native_channel_shuffle")
def channel_shuffle(op: Op) -> AxisLayout:
    layout = op.layout("self")
    shape, groups = layout.shape, int(op["groups"])
    split = view(op.relations, layout, [shape[0], groups, shape[1] // groups, *shape[2:]])
    order = [0, 2, 1, *range(3, len(shape) + 1)]
    split = replace(split, dims=tuple(split.dims[place] for place in order))
    return view(op.relations, split, shape)


@rule("aten.im2col")
def im2col(op: Op) -> AxisLayout:
    """Patches: (c, kernel positions) by output positions."""
    layout = hold(op.relations, op.layout("self"), [2, 3], SPACE)
    batch, channels = layout.dims[:2]
    _, rows, columns = op.result_shape
    kernel = rows // layout.shape[1]
    patch = fixed_layout((kernel, columns), SPACE)
    dims = (batch, (*channels, *patch.dims[0]), patch.dims[1])
    return reduce(op.relations, AxisLayout(dims, layout.entries, {**layout.fixed, **patch.fixed}))


@rule("aten.col2im")
def col2im(op: Op) -> AxisLayout:
    layout = op.layout("self")
    batch, rows, columns = layout.shape
    channels = op.result_shape[1]
    split = view(op.relations, layout, [batch, channels, rows // channels, columns])
    split = hold(op.relations, split, [2, 3], SPACE)
    return resized(op.relations, split, [2, 3], op.result_shape, SPACE)


@rule("aten.grid_sampler_2d", "aten.grid_sampler_3d", "aten.grid_sampler")
def grid_sampler(op: Op) -> AxisLayout:
    """Sampled at the positions of the grid; batches are indexed together."""
    rank = len(op.shape("input")) - 2
    layout = hold(op.relations, op.layout("input"), range(2, 2 + rank), SPACE)
    grid = hold(op.relations, op.layout("grid"), range(1, 2 + rank), SPACE)
    old, new = [("old", axis) for axis in range(rank)], [("new", axis) for axis in range(rank)]
    return combine(op.relations, [(layout, ["n", "c", *old]), (grid, ["n", *new, "xy"])], ["n", "c", *new])
