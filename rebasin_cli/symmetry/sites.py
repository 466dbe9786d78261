"""The site in a tensor for positions along some of its factors.

A site is as simple as possible: it spans as few axes as possible, and is a regular segment `(outer, units, inner)`
rather than a list of positions where the positions form one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np

from rebasin_cli.spec import Site
from rebasin_cli.symmetry.positions import AxisLayout, Factor, Ids, coordinates

Segment = tuple[int, int, int]
"""Offset, outer and inner of a regular segment: positions `offset + (o * units + unit) * inner + i`."""

LocatedSite = tuple[Site, tuple[int, ...]]
"""A site, and those of its axes that contain factors along which it moves."""

SiteCache = dict[tuple[object, ...], LocatedSite]


@dataclass(frozen=True, slots=True)
class FactorFrame:
    """Maps positions along some factors to positions in a tensor.

    Args:
        over: the factors, outer to inner.
        axes: those that contain any of them.
        factors: all factors from the first of these axes to the last.
        shape: of the tensor.
        structure: everything else that the site of given positions depends on.
    """

    over: tuple[Factor, ...]
    axes: tuple[int, ...]
    factors: tuple[Factor, ...]
    shape: tuple[int, ...]
    structure: tuple[object, ...] = field(repr=False)

    @staticmethod
    def of(layout: AxisLayout, over: tuple[Factor, ...]) -> FactorFrame:
        axes = tuple(axis for axis, dim in enumerate(layout.dims) if any(factor in over for factor in dim))
        factors = tuple(factor for dim in layout.dims[axes[0] : axes[-1] + 1] for factor in dim)
        counted = tuple(over.index(factor) if factor in over else -1 for factor in factors)
        sizes = tuple(factor.size for factor in factors)
        return FactorFrame(over, axes, factors, layout.shape, (axes, layout.shape, counted, sizes))

    def site(self, key: str, rows: Ids, segment: Segment | None, cache: SiteCache) -> LocatedSite:
        """The site at which row u of `rows` (joint positions of the factors `over`) moves as unit u, and its axes.

        Args:
            key: the tensor's name.
            rows: (units, places).
            segment: the same as a segment, if it is one.
            cache: results for other tensors.
        """
        found = None if segment is None else _along(self.factors, self.over, segment, len(rows))
        if found is not None:
            site, axes = self._regular_site(found, len(rows))
        else:
            known = (self.structure, rows.shape, rows.tobytes())
            if known not in cache:
                cache[known] = self._listed(rows)
            site, axes = cache[known]
        return Site(key, site.axis, site.offset, site.outer, site.inner, site.span, site.positions), axes

    def _regular_site(self, found: Segment, units: int) -> LocatedSite:
        first, span = self.axes[0], self.axes[-1] - self.axes[0] + 1
        if span == 1:
            return Site("", first, *found), self.axes
        return self._with_axes(_of_fewest_axes(Site("", first, *found, span), self.shape, units))

    def _listed(self, rows: Ids) -> LocatedSite:
        places = coordinates(rows, self.over)
        found = _regular(self.factors, places, len(rows))
        if found is not None:
            return self._regular_site(found, len(rows))
        first, last = self.axes[0], self.axes[-1]
        positions = _positions(self.factors, places, len(rows))
        return self._with_axes(site_of_rows("", first, self.shape[first : last + 1], positions))

    def _with_axes(self, site: Site) -> LocatedSite:
        return site, tuple(axis for axis in self.axes if site.axis <= axis < site.axis + site.span)


def _along(factors: tuple[Factor, ...], over: tuple[Factor, ...], segment: Segment, units: int) -> Segment | None:
    """A segment along `over` as one along `factors`; None where it is none, or where the quick test cannot tell."""
    base, outer, inner = segment
    length, offset, extent = outer * units * inner, 0, prod([factor.size for factor in over])
    while factors[0] is over[0] and base // (within := extent // over[0].size) == (base + length - 1) // within:
        factors, over = factors[1:], over[1:]
        offset += base // within * prod([factor.size for factor in factors])
        base, extent = base % within, within
    start = factors.index(over[0]) if over[0] in factors else 0
    end = start + len(over)
    if factors[start:end] != over:
        return None
    lead, tail = prod([factor.size for factor in factors[:start]]), prod([factor.size for factor in factors[end:]])
    if lead > 1 and length != extent:
        return None
    return offset + base * tail, lead * outer, inner * tail


def _of_fewest_axes(site: Site, shape: Sequence[int], units: int) -> Site:
    """The same site without leading and trailing axes along which it is constant."""
    while site.span > 1:
        lead, tail = shape[site.axis], shape[site.axis + site.span - 1]
        whole = site.offset == 0 and site.outer * units * site.inner == site.extent(shape)
        if whole and site.outer % lead == 0:
            site = replace(site, axis=site.axis + 1, span=site.span - 1, outer=site.outer // lead)
        elif site.inner % tail == 0 and site.offset % tail == 0:
            site = replace(site, span=site.span - 1, inner=site.inner // tail, offset=site.offset // tail)
        else:
            break
    return site


def site_of_rows(key: str, first: int, sizes: Sequence[int], rows: Ids) -> Site:
    """The site at which row u of `rows` (positions along the axes from `first` on, read as one) moves as unit u."""
    sizes = list(sizes)
    while len(sizes) > 1:
        below, last = prod(sizes[1:]), sizes[-1]
        if (narrower := _same_for_each(rows // below, rows % below, sizes[0])) is not None:
            rows, first, sizes = narrower, first + 1, sizes[1:]
        elif (narrower := _same_for_each(rows % last, rows // last, last)) is not None:
            rows, sizes = narrower, sizes[:-1]
        else:
            break
    found = regular_segments(rows[None])[0]
    if found is not None:
        return Site(key, first, *found, len(sizes))
    return Site(key, first, span=len(sizes), positions=tuple(map(tuple, rows.tolist())))


def _same_for_each(along: Ids, rest: Ids, size: int) -> Ids | None:
    """`rest` at one position of an axis, if every unit has the same `rest` at all positions; None otherwise.

    Args:
        along, rest: (units, positions), the coordinate along the axis, and along all other axes.
    """
    if np.any(along != along[0]) or along.shape[1] % size:
        return None
    order = np.lexsort((rest[0], along[0]))
    along, rest = along[:, order], rest[:, order].reshape(len(rest), size, -1)
    if np.any(along[0] != np.repeat(np.arange(size), rest.shape[2])) or np.any(rest != rest[:, :1]):
        return None
    return rest[:, 0]


def _regular(factors: Sequence[Factor], places: dict[Factor, Ids], units: int) -> Segment | None:
    """The units' positions along the given factors as a segment; None where they form none."""
    queue = list(factors)
    offset, lead, tail = 0, 1, 1
    while queue and queue[0] in places and np.all(places[queue[0]] == places[queue[0]].flat[0]):
        factor = queue.pop(0)
        offset += int(places[factor].flat[0]) * prod(other.size for other in queue)
    while queue and queue[0] not in places:
        lead *= queue.pop(0).size
    while queue and queue[-1] not in places:
        tail *= queue.pop().size
    segment = regular_segments(_positions(queue, places, units)[None])[0]
    if segment is None:
        return None
    base, outer, inner = segment
    if lead > 1 and not (base == 0 and outer * units * inner == prod(factor.size for factor in queue)):
        return None
    return offset + base * tail, lead * outer, inner * tail


def _positions(factors: Sequence[Factor], places: dict[Factor, Ids], units: int) -> Ids:
    """Positions along the given factors read as one axis: (units, positions of each)."""
    total = np.zeros((units, 1, 1), dtype=np.int64)
    stride = 1
    for factor in reversed(factors):
        if factor in places:
            total = total + (places[factor] * stride)[:, :, None]
        else:
            total = (total[:, :, None, :] + (np.arange(factor.size) * stride)[None, None, :, None]).reshape(
                units, total.shape[1], -1
            )
        stride *= factor.size
    return total.reshape(units, -1)


def regular_segments(rows: Ids) -> list[Segment | None]:
    """For every fibre, its rows as a segment, where they form one.

    Args:
        rows: for each fibre and unit, the indices that move with it: (fibres, units, indices).
    """
    count, units, width = rows.shape
    order = np.argsort(rows[:, :1], axis=2)
    rows = np.take_along_axis(rows, order, axis=2) if width > 1 else rows
    offset, inner = rows[:, 0, 0], rows[:, 1, 0] - rows[:, 0, 0]
    found: list[Segment | None] = [None] * count
    for step in set(inner.tolist()):
        if step < 1 or width % step:
            continue
        outer = width // step
        segment = np.arange(outer * units * step).reshape(outer, units, step)
        expected = segment.transpose(1, 0, 2).reshape(units, width)
        regular = np.all(rows == offset[:, None, None] + expected, axis=(1, 2)) & (inner == step)
        for number in np.flatnonzero(regular).tolist():
            found[number] = int(offset[number]), outer, step
    return found
