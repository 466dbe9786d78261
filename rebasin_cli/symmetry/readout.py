"""From closed relations to sites: where in which tensor every symmetric group acts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from rebasin_cli.spec import Site
from rebasin_cli.symmetry.families import Family
from rebasin_cli.symmetry.movements import Rows, movements
from rebasin_cli.symmetry.positions import Factor, Ids, Layout
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure


@dataclass(frozen=True, slots=True)
class FibreSite:
    """A site of one fibre of one family."""

    family: int
    fibre: int
    site: Site
    axes: tuple[int, ...]


def sites_of_leaf(closure: Closure, relations: Relations, key: str, layout: Layout) -> Iterator[FibreSite]:
    """All sites of the moving families in one tensor.

    Raises:
        Irregular: what overlapping entries say of a family is no single movement of the tensor.
    """
    found: dict[tuple[int, int], list[Rows]] = {}
    for entry in layout.entries:
        others = [other for other in layout.entries if other is not entry]
        shared = tuple(f for f in entry.factors if any(f in other.factors for other in others))
        ids = relations.ids(entry).ravel()
        owners = np.unique(closure.family[ids])
        for family in _moving(closure, owners):
            for fibre, rows in _rows_by_fibre(closure, ids, family, owners):
                found.setdefault((family, fibre), []).append(Rows(entry.factors, shared, rows, ids))
    for (family, fibre), parts in found.items():
        for factors, rows in movements(parts):
            site, axes = _site(key, layout, factors, rows)
            yield FibreSite(family, fibre, site, axes)


def _moving(closure: Closure, owners: Ids) -> list[int]:
    """The moving families among the given ones and all above them."""
    families = closure.families
    return sorted({a for owner in owners for a in families[owner].ancestors if families[a].moves})


def _rows_by_fibre(closure: Closure, ids: Ids, which: int, owners: Ids) -> Iterator[tuple[int, Ids]]:
    """For each fibre of a family, the places among `ids` that each of its units moves: (units, places)."""
    family = closure.families[which]
    places, units, keys = [], [], []
    for owner in owners:
        source = closure.families[owner]
        if which not in source.ancestors:
            continue
        here = np.flatnonzero(closure.family[ids] == owner)
        number = closure.unit[ids[here]]
        places.append(here)
        units.append(source.ancestors[which][number])
        keys.append(_relative_keys(closure.families, source, which, number, closure.colour[ids[here]]))
    place, unit, key = places[0], units[0], keys[0]
    if len(places) > 1:
        place, unit = np.concatenate(places), np.concatenate(units)
        width = max(key.shape[1] for key in keys)
        key = np.concatenate([np.pad(k, ((0, 0), (0, width - k.shape[1])), constant_values=-1) for k in keys])
    order = np.lexsort((*key.T[::-1], family.local[unit], family.fibre[unit]))
    place, fibre = place[order], family.fibre[unit][order]
    size = int(family.local.max()) + 1
    cuts = [0, *(np.flatnonzero(fibre[1:] != fibre[:-1]) + 1).tolist(), len(fibre)]
    for start, end in itertools.pairwise(cuts):
        yield int(fibre[start]), place[start:end].reshape(size, -1)


def _relative_keys(families: list[Family], source: Family, which: int, number: Ids, colour: Ids) -> Ids:
    """What tells apart the places that one unit of family `which` moves, alike for all units of its fibre."""
    others = [ancestor for ancestor in source.ancestors if ancestor != which]
    columns = [colour] + [families[ancestor].local[source.ancestors[ancestor][number]] for ancestor in others]
    return np.stack(columns, axis=1)


def _site(key: str, layout: Layout, over: tuple[Factor, ...], rows: Ids) -> tuple[Site, tuple[int, ...]]:
    """The site at which row u of `rows` (joint positions of the factors `over`) moves as unit u, and its axes."""
    axes = [axis for axis, dim in enumerate(layout.dims) if any(factor in over for factor in dim)]
    first, last = axes[0], axes[-1]
    factors = [factor for dim in layout.dims[first : last + 1] for factor in dim]
    shape = tuple(factor.size for factor in over)
    places = dict(zip(over, np.unravel_index(rows, shape), strict=True))
    found = _regular(factors, places, len(rows))
    span = last - first + 1
    if found is not None:
        site = _of_fewest_axes(Site(key, first, *found, span), layout.shape, len(rows))
        return site, tuple(axis for axis in axes if site.axis <= axis < site.axis + site.span)
    site = site_of_rows(key, first, layout.shape[first : last + 1], _positions(factors, places, len(rows)))
    return site, tuple(axis for axis in axes if site.axis <= axis < site.axis + site.span)


def _of_fewest_axes(site: Site, shape: Sequence[int], units: int) -> Site:
    """The same site without leading and trailing axes that are only gone through, position by position."""
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
    whole = Factor(prod(sizes))
    found = _regular([whole], {whole: rows}, len(rows))
    if found is not None:
        return Site(key, first, *found, len(sizes))
    return Site(key, first, span=len(sizes), positions=tuple(map(tuple, rows.tolist())))


def _same_for_each(along: Ids, rest: Ids, size: int) -> Ids | None:
    """`rest` for one position of an axis, where every unit has the same for each of them; None otherwise.

    Args:
        along, rest: (units, places), where each place lies along the axis, and where it lies otherwise.
    """
    if np.any(along != along[0]) or along.shape[1] % size:
        return None
    order = np.lexsort((rest[0], along[0]))
    along, rest = along[:, order], rest[:, order].reshape(len(rest), size, -1)
    if np.any(along[0] != np.repeat(np.arange(size), rest.shape[2])) or np.any(rest != rest[:, :1]):
        return None
    return rest[:, 0]


def _regular(factors: Sequence[Factor], places: dict[Factor, Ids], units: int) -> tuple[int, int, int] | None:
    """(offset, outer, inner) where the units lie as one segment (outer, units, inner); None where they lie
    otherwise.
    """
    queue = list(factors)
    offset, lead, tail = 0, 1, 1
    while queue and queue[0] in places and np.all(places[queue[0]] == places[queue[0]].flat[0]):
        factor = queue.pop(0)
        offset += int(places[factor].flat[0]) * prod(other.size for other in queue)
    while queue and queue[0] not in places:
        lead *= queue.pop(0).size
    while queue and queue[-1] not in places:
        tail *= queue.pop().size
    positions = _positions(queue, places, units)
    positions = positions[:, np.argsort(positions[0])]
    extent = prod(factor.size for factor in queue)
    base = positions[0]
    inner = int(positions[1, 0] - base[0])
    width = positions.shape[1]
    if inner < 1 or width % inner or np.any(positions != base + inner * np.arange(units)[:, None]):
        return None
    outer = width // inner
    expected = base[0] + (np.arange(outer)[:, None] * units * inner + np.arange(inner)).ravel()
    if np.any(base != expected):
        return None
    if lead > 1 and not (base[0] == 0 and outer * units * inner == extent):
        return None
    return offset + int(base[0]) * tail, lead * outer, inner * tail


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
