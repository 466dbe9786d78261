"""Planes: under a rotary embedding, pairs of units inside heads may be multiplied by one complex number each.

A rotation by an angle that depends on the place in time pins the inner axis of q and k: no two units are exchangeable.
But it acts on pairs of units, and commutes with every rotation and scale of such a pair. That is proposed for heads
whose q and k are multiplied with each other over units that no group moves, are not normalised inside the head, and are
taken apart along that axis; how they are taken apart tells which units make a pair. Execution decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rebasin_cli.freedom import Pairing, SymmetryClass
from rebasin_cli.spec import AxisGroup, ParentBlock, Site
from rebasin_cli.symmetry.classes.ledger import Node
from rebasin_cli.symmetry.classes.walk import Walk
from rebasin_cli.symmetry.sites import site_of_rows

REASON = "planes, not general linear: a rotation that depends on the place acts on pairs of units"


@dataclass(frozen=True, slots=True)
class Heads:
    """A group of blocks, its sites with their parts, and the groups inside its blocks."""

    group: AxisGroup
    family: int
    sites: Sequence[tuple[Site, Node]]
    inside: Sequence[AxisGroup]


def proposed(
    walk: Walk, heads: Heads, shapes: Mapping[str, Sequence[int]], owners: Mapping[str, str]
) -> Iterator[AxisGroup]:
    """For every block, the units of q and k that no group moves, in planes.

    Args:
        shapes, owners: by tensor name.
    """
    ledger = walk.ledger
    normed = {ledger.find(node)[0] for node in walk.normed}
    turned: dict[Node, Pairing] = {}
    for node, pairing in walk.taken_apart:
        part = ledger.find(node)[0]
        if turned.get(part) != "adjacent":
            turned[part] = pairing
    seen: set[tuple[Node, ...]] = set()
    for query, key, size in walk.crossed:
        if ledger.family[query] != heads.family:
            continue
        parts = (ledger.find(query)[0], ledger.find(key)[0])
        pairings = [turned[part] for part in parts if part in turned]
        if parts[0] == parts[1] or parts in seen or not pairings or normed & set(parts):
            continue
        seen.add(parts)
        sides = [[site for site, node in heads.sites if ledger.find(node)[0] == part] for part in parts]
        if all(sides):
            yield from _groups(heads, sides[0], sides[1], size, pairings[0], shapes, owners)


def _groups(
    heads: Heads,
    queries: Sequence[Site],
    keys: Sequence[Site],
    size: int,
    pairing: Pairing,
    shapes: Mapping[str, Sequence[int]],
    owners: Mapping[str, str],
) -> Iterator[AxisGroup]:
    for block in range(heads.group.size):
        inside = [group for group in heads.inside if group.parent == ParentBlock(heads.group.name, block)]
        left = {site: _left(site, heads.group.size, block, inside) for site in (*queries, *keys)}
        counts = {len(left[site]) for site in keys}
        if len(counts) != 1 or (count := counts.pop()) < 2 or count % 2 or count > size:
            return
        if any(len(left[site]) % count for site in queries):
            return
        sites = [_site(site, left[site], count, False, shapes) for site in keys]
        sites += [_site(site, left[site], count, True, shapes) for site in queries]
        stem = owners.get(keys[0].key) or keys[0].key
        yield AxisGroup(
            name=f"{stem}[{block}]#planes",
            size=count,
            sites=tuple(sites),
            parent=ParentBlock(heads.group.name, block),
            symmetry=SymmetryClass.PLANES,
            class_reason=REASON,
            pairing=pairing,
        )


def _left(site: Site, blocks: int, block: int, inside: Sequence[AxisGroup]) -> list[int]:
    """The positions of one block that no inner group moves one by one, in order."""
    covered = {
        position
        for group in inside
        for inner in group.sites
        if (inner.key, inner.axis, inner.span) == (site.key, site.axis, site.span) and inner.inner == 1
        for row in inner.rows(group.size)
        for position in row
    }
    return sorted(set(site.rows(blocks)[block]) - covered)


def _site(site: Site, left: Sequence[int], count: int, dual: bool, shapes: Mapping[str, Sequence[int]]) -> Site:
    """The site of `count` units of which each has a place in every repeat (the query heads of one key head)."""
    rows = np.array(left, dtype=np.int64).reshape(-1, count).T
    found = site_of_rows(site.key, site.axis, shapes[site.key][site.axis : site.axis + site.span], rows)
    return Site(found.key, found.axis, found.offset, found.outer, found.inner, found.span, found.positions, dual=dual)
