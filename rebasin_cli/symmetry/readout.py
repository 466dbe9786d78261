"""From closed relations to sites: where in which tensor every symmetric group acts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from math import prod

import numpy as np

from rebasin_cli.spec import Site
from rebasin_cli.symmetry.families import UnitFamily
from rebasin_cli.symmetry.positions import AxisLayout, Factor, Ids, all_differ, coordinates
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.sites import FactorFrame, Segment, SiteCache, regular_segments
from rebasin_cli.symmetry.solver import Closure


@dataclass(frozen=True, slots=True)
class FibreSite:
    """A site of one fibre of one family."""

    family: int
    fibre: int
    site: Site
    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copies:
    """Some copies of one family's units in a tensor: those whose ids have one of these colours."""

    family: int
    colours: frozenset[int]


@dataclass(frozen=True, slots=True)
class Readout:
    """The sites of tensors, given a solution.

    Many tensors have the same ids (a norm's four, the same shapes in every layer), so results are cached.
    """

    closure: Closure
    relations: Relations
    _moved: dict[bytes, list[FibreMovement]] = field(default_factory=dict)
    _cache: SiteCache = field(default_factory=dict)

    def sites(self, key: str, layout: AxisLayout, only: Copies | None = None) -> Iterator[FibreSite]:
        """All sites of the moving families in one tensor.

        Args:
            key: the tensor's name.
            layout: of the tensor.
            only: some copies of the units of one family; None for everything.

        Raises:
            Irregular: the overlapping entries of the tensor are not permuted by one movement.
        """
        found: dict[tuple[int, int], list[EntryRows]] = {}
        for entry in layout.entries:
            others = [other for other in layout.entries if other is not entry]
            shared = tuple(f for f in entry.factors if any(f in other.factors for other in others))
            ids = self.relations.ids(entry).ravel()
            for moved in self._moved_among(ids):
                rows, segment = moved.rows, moved.segment
                if only is not None:
                    if moved.family != only.family:
                        continue
                    colours = self.closure.colour[ids[rows[0]]].tolist()
                    kept = [place for place, colour in enumerate(colours) if colour in only.colours]
                    if len(kept) < len(colours):
                        rows, segment = rows[:, kept], None
                    if not rows.size:
                        continue
                part = EntryRows(entry.factors, shared, rows, ids, segment)
                found.setdefault((moved.family, moved.fibre), []).append(part)
        frames: dict[tuple[Factor, ...], FactorFrame] = {}
        for (family, fibre), parts in found.items():
            for factors, rows, segment in movements(parts):
                if factors not in frames:
                    frames[factors] = FactorFrame.of(layout, factors)
                site, axes = frames[factors].site(key, rows, segment, self._cache)
                yield FibreSite(family, fibre, site, axes)

    def _moved_among(self, ids: Ids) -> list[FibreMovement]:
        key = blake2b(ids.tobytes()).digest()
        if key not in self._moved:
            self._moved[key] = moved_by_fibres(self.closure, ids)
        return self._moved[key]


@dataclass(frozen=True, slots=True)
class FibreMovement:
    """What one fibre of one family permutes in an array of ids.

    Args:
        family, fibre: their numbers.
        rows: for each unit, the indices that move with it: (units, indices).
        segment: the rows as a segment, if they form one.
    """

    family: int
    fibre: int
    rows: Ids
    segment: Segment | None


def moved_by_fibres(closure: Closure, ids: Ids) -> list[FibreMovement]:
    """What the fibres of all moving families permute among these ids, family by family."""
    family_of = closure.family[ids]
    owners = np.unique(family_of).tolist()
    return [
        moved
        for which in _moving(closure, owners)
        for moved in _moved_by_family(closure, ids, family_of, which, owners)
    ]


def _moving(closure: Closure, owners: list[int]) -> list[int]:
    """The moving families among the given ones and all above them."""
    families = closure.families
    return sorted({a for owner in owners for a in families[owner].ancestors if families[a].moves})


def _moved_by_family(
    closure: Closure, ids: Ids, family_of: Ids, which: int, owners: list[int]
) -> Iterator[FibreMovement]:
    family = closure.families[which]
    places, units, keys = [], [], []
    for owner in owners:
        source = closure.families[owner]
        if which not in source.ancestors:
            continue
        here = np.flatnonzero(family_of == owner)
        number = closure.unit[ids[here]]
        places.append(here)
        units.append(source.ancestors[which][number])
        keys.append(_relative_keys(closure.families, source, which, number, closure.colour[ids[here]]))
    place, unit, key = places[0], units[0], keys[0]
    if len(places) > 1:
        place, unit = np.concatenate(places), np.concatenate(units)
        width = max(len(key) for key in keys)
        padded = [[*key, *[np.full(len(key[0]), -1)] * (width - len(key))] for key in keys]
        key = [np.concatenate(columns) for columns in zip(*padded, strict=True)]
    order = np.lexsort((*reversed(key), family.local[unit], family.fibre[unit]))
    place, fibre = place[order], family.fibre[unit][order]
    size = int(family.local.max()) + 1
    cuts = [0, *(np.flatnonzero(fibre[1:] != fibre[:-1]) + 1).tolist(), len(fibre)]
    alike = len({end - start for start, end in itertools.pairwise(cuts)}) == 1
    fibres = [place.reshape(len(cuts) - 1, size, -1)] if alike else _apart(place, cuts, size)
    numbers = iter(fibre[cuts[:-1]].tolist())
    for rows in fibres:
        for own, segment in zip(rows, regular_segments(rows), strict=True):
            yield FibreMovement(which, next(numbers), own, segment)


def _apart(place: Ids, cuts: list[int], size: int) -> list[Ids]:
    return [place[start:end].reshape(1, size, -1) for start, end in itertools.pairwise(cuts)]


def _relative_keys(families: list[UnitFamily], source: UnitFamily, which: int, number: Ids, colour: Ids) -> list[Ids]:
    """Keys that order the indices of one unit of family `which` in the same way for all units of its fibre.

    The indices of two units must correspond, since a permutation exchanges the first with the first, and so on. An id
    is identified by its colour and its index within the fibre of every other ancestor; the movement preserves both.
    """
    others = [ancestor for ancestor in source.ancestors if ancestor != which]
    return [colour, *(families[ancestor].local[source.ancestors[ancestor][number]] for ancestor in others)]


Movement = tuple[tuple[Factor, ...], Ids, Segment | None]
"""Factors; for each unit the joint positions along them that move with it; these as a segment if they form one."""


@dataclass(frozen=True, slots=True, eq=False)
class EntryRows:
    """The positions of one entry that one group moves.

    The weight of a grouped convolution has entries over (g, o) and (g, i). A group inside block g moves along one of
    them. A group of blocks moves both, yet the tensor must be gathered once: by whole slabs of g where the insides of
    all slabs stay as they are, else by joint positions (g, o, i), each inside permuted as its entry says.


    Args:
        factors: of the entry.
        shared: those of them in other entries of the tensor too.
        rows: for each unit, the joint positions along `factors` that move with it: (units, positions).
        ids: all ids of the entry.
        segment: the rows as a segment, if they are one.
    """

    factors: tuple[Factor, ...]
    shared: tuple[Factor, ...]
    rows: Ids
    ids: Ids
    segment: Segment | None

    @property
    def rest(self) -> tuple[Factor, ...]:
        return tuple(factor for factor in self.factors if factor not in self.shared)

    def index(self, factors: tuple[Factor, ...]) -> Ids:
        """Position along some of the factors, read as one axis: like `rows`."""
        places = coordinates(self.rows, self.factors)
        index = np.zeros(self.rows.shape, dtype=np.int64)
        for factor in factors:
            index = index * factor.size + places[factor]
        return index


class Irregular(Exception):
    """The entries of a tensor cannot be permuted by one movement; `ids` must be pinned."""

    def __init__(self, ids: Ids) -> None:
        super().__init__()
        self.ids = ids


def movements(parts: Sequence[EntryRows]) -> Iterator[Movement]:
    """The movements of one group in one tensor.

    Raises:
        Irregular: see there.
    """
    across = [part for part in parts if part.shared and _crosses(part)]
    for part in parts:
        if part not in across:
            yield part.factors, part.rows, part.segment
    if len(across) == 1:
        yield across[0].factors, across[0].rows, across[0].segment
    elif across:
        yield (*_together(across), None)


def _crosses(part: EntryRows) -> bool:
    """Whether the units of the group lie at different positions along the shared factors."""
    if part.segment is not None and part.factors[: len(part.shared)] == part.shared:
        offset, outer, inner = part.segment
        width = prod(factor.size for factor in part.rest)
        if offset // width == (offset + outer * len(part.rows) * inner - 1) // width:
            return False
    slab = np.sort(part.index(part.shared), axis=1)
    return bool(np.any(slab != slab[0]))


def _together(parts: Sequence[EntryRows]) -> tuple[tuple[Factor, ...], Ids]:
    first, inside = _blocks(parts[0])
    insides = [inside]
    for part in parts[1:]:
        slab, inside = _blocks(part)
        if part.shared != parts[0].shared or not np.array_equal(slab, first):
            raise Irregular(part.ids)
        insides.append(inside)
    if all(np.array_equal(inside, np.broadcast_to(np.arange(inside.shape[2]), inside.shape)) for inside in insides):
        return parts[0].shared, first
    factors, rows = parts[0].shared, first[:, :, None]
    for part, inside in zip(parts, insides, strict=True):
        width = inside.shape[2]
        rows = (rows[:, :, :, None] * width + inside[:, :, None, :]).reshape(*first.shape, -1)
        factors = (*factors, *part.rest)
    return factors, rows.reshape(len(rows), -1)


def _blocks(part: EntryRows) -> tuple[Ids, Ids]:
    """For each unit the slabs that move with it, (units, slabs), and the order inside them, (units, slabs, width)."""
    slab, inside = part.index(part.shared), part.index(part.rest)
    order = np.lexsort((inside[0], slab[0]))
    slab, inside = slab[:, order], inside[:, order]
    width = prod(factor.size for factor in part.rest)
    if part.rows.shape[1] % width:
        raise Irregular(part.ids)
    blocks, insides = slab.reshape(len(slab), -1, width), inside.reshape(len(slab), -1, width)
    whole = np.all(blocks == blocks[:, :, :1]) and np.all(np.sort(insides, axis=2) == np.arange(width))
    if not whole or not all_differ(blocks[:, :, 0]):
        raise Irregular(part.ids)
    return blocks[:, :, 0], insides
