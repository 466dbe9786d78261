"""Parameters that are only read in segments of one axis: each segment is treated as a parameter of its own.

Examples are packed projections of an attention over two streams, the experts of a mixture in one tensor, rows of a
table. As one leaf, such a parameter would have one permutation of its other axes for all segments. If every use takes
segments of the same axis, cut at the edges of all of them, then no operation ever relates two pieces through the
parameter; only later operations can. So cutting loses no constraint, and the pieces may be permuted apart. All of the
axis must be read: what is not read may be read on another input, as part of a segment unknown here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from rebasin_cli.spec import Site
from rebasin_cli.symmetry.concatenate import concatenate
from rebasin_cli.symmetry.positions import AxisLayout, Leaf, free_layout
from rebasin_cli.symmetry.readout import FibreSite, Irregular, Readout
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.sites import site_of_rows
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.tracing.graph import Call, Ref, Trace
from rebasin_cli.tracing.operations import DROP, SEGMENT, has, segments

MOST_PIECES = 1024
"""Largest number of pieces that a parameter is cut into."""

MOST_LISTED = 1 << 20
"""Largest number of elements of a piece whose positions are listed one by one if they form no regular segment."""

Span = tuple[int, int]
"""First position, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A parameter in pieces along one axis.

    Args:
        axis: the axis.
        edges: first position of every piece, and the size of the axis.
        pieces: as parameters of their own.
    """

    axis: int
    edges: tuple[int, ...]
    pieces: tuple[Leaf, ...]

    def results(self, relations: Relations, call: Call) -> list[AxisLayout]:
        """The layouts of the segments that a call takes of the parameter."""
        found = _taken(call, self.pieces[0].initial.shape, self.axis, self.edges[-1])
        assert found is not None
        layouts = []
        for span in found:
            pieces = [
                relations.view(piece, range(len(piece.initial.dims)))
                for piece, start in zip(self.pieces, self.edges, strict=False)
                if span[0] <= start < span[1]
            ]
            layout = concatenate(relations, pieces, self.axis)
            if has(call.name, DROP):
                drop = [place for place in range(len(layout.dims)) if place != self.axis]
                axes = tuple(layout.axes[place] for place in drop) if layout.leaf is not None else ()
                layout = replace(layout, dims=tuple(layout.dims[place] for place in drop), axes=axes)
            layouts.append(layout)
        return layouts

    def sites(self, readout: Readout, key: str, shape: Sequence[int]) -> Iterator[FibreSite]:
        """All sites of the moving families in the whole parameter.

        Raises:
            Irregular: the overlapping entries of a piece are not permuted by one movement.
        """
        found = [list(readout.sites(key, readout.relations.layout(piece))) for piece in self.pieces]
        for number, sites in enumerate(found):
            for placed in sites:
                if self.axis not in placed.axes and all(placed in others for others in found):
                    if number == 0:
                        yield placed
                else:
                    yield self.in_the_whole(readout.closure, placed, number, shape)

    def in_the_whole(self, closure: Closure, placed: FibreSite, number: int, shape: Sequence[int]) -> FibreSite:
        """A site of one piece as one of the whole parameter, of this shape."""
        piece = self.pieces[number].initial.shape
        return _in_the_whole(closure, placed, self.axis, self.edges[number], piece, shape)


def find_cuts(trace: Trace, leaves: dict[int, Leaf]) -> dict[int, Cut]:
    """Those of these parameters that are read in segments only, and completely, by value."""
    uses: dict[int, list[Call]] = {value: [] for value in leaves if value not in trace.outputs}
    for call in trace.live:
        for value in dict.fromkeys(call.inputs):
            if value in uses:
                uses[value].append(call)
    cuts = {value: _cut(trace, leaves[value], value, calls) for value, calls in uses.items() if calls}
    return {value: cut for value, cut in cuts.items() if cut is not None}


def _cut(trace: Trace, leaf: Leaf, value: int, calls: Sequence[Call]) -> Cut | None:
    shape = leaf.initial.shape
    axis = _axis(calls[0], len(shape))
    if axis is None or prod(shape) <= shape[axis] or (axis > 0 and prod(shape) > MOST_LISTED):
        return None
    read: list[Span] = []
    for call in calls:
        spans = _taken(call, shape, axis, shape[axis]) if call.inputs == [value] else None
        if spans is None or len(spans) != len(call.results):
            return None
        read += [span for span, result in zip(spans, call.results, strict=True) if result in trace.read]
    edges = sorted({edge for span in read for edge in span})
    covered = all(any(a <= start and end <= b for a, b in read) for start, end in itertools.pairwise(edges))
    if not covered or not 2 < len(edges) <= MOST_PIECES or (edges[0], edges[-1]) != (0, shape[axis]):
        return None
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    pieces = tuple(Leaf(leaf.key, free_layout((*shape[:axis], size, *shape[axis + 1 :]))) for size in sizes)
    return Cut(axis, tuple(edges), pieces)


def _axis(call: Call, rank: int) -> int | None:
    """The axis along which a call takes segments of its first argument."""
    axis = call.arguments.get("dim", 0)
    return axis % rank if has(call.name, SEGMENT) and rank and isinstance(axis, int) else None


def _taken(call: Call, shape: Sequence[int], axis: int, size: int) -> list[Span] | None:
    """The segment of its first argument that each result of a call takes along this axis; None for any other use."""
    if _axis(call, len(shape)) != axis or not isinstance(call.arguments.get("self"), Ref):
        return None
    found = segments(call.arguments, size)
    if any(segment.step != 1 or not segment for segment in found):
        return None
    return [(segment.start, segment.stop) for segment in found]


def _in_the_whole(
    closure: Closure, placed: FibreSite, axis: int, start: int, shape: Sequence[int], whole: Sequence[int]
) -> FibreSite:
    """A site of a piece of this shape, which begins at `start` along `axis`, as one of the whole tensor."""
    site = placed.site
    axes = tuple(sorted({*placed.axes, axis}))
    first, last = min(axis, site.axis), max(axis, site.axis + site.span - 1)
    below = start * prod(whole[axis + 1 : last + 1])
    if site.axis == axis:
        moved = None if site.positions is None else tuple(tuple(p + below for p in row) for row in site.positions)
        return replace(placed, site=replace(site, offset=site.offset + below, positions=moved), axes=axes)
    members = closure.families[placed.family]
    units = int(np.count_nonzero(members.fibre == placed.fibre))
    every = site.positions is None and site.outer * units * site.inner == site.extent(shape)
    if site.axis > axis and every:
        outer = prod(shape[axis : site.axis]) * site.outer
        return replace(placed, site=Site(site.key, axis, below, outer, site.inner, last - axis + 1), axes=axes)
    if prod(shape) > MOST_LISTED:
        raise Irregular(np.flatnonzero(closure.family == placed.family))
    numbers = np.arange(prod(whole[first : last + 1])).reshape(whole[first : last + 1])
    numbers = np.take(numbers, np.arange(start, start + shape[axis]), axis=axis - first)
    ahead, own = prod(shape[first : site.axis]), site.extent(shape)
    rows = numbers.reshape(ahead, own, -1)[:, np.array(site.rows(units))]  # (ahead, units, of each, behind)
    listed = site_of_rows(site.key, first, whole[first : last + 1], np.moveaxis(rows, 1, 0).reshape(units, -1))
    return replace(placed, site=listed, axes=tuple(a for a in axes if listed.axis <= a < listed.axis + listed.span))
