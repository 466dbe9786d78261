"""Groups of like structure held together: a *family* is one root group, or the groups inside the blocks of one parent.

A model may have a thousand groups of four units. All groups that sit in the blocks of one family and touch the same
tensors in the same way are one family here, so that their similarities are one product and their permutations one array
of shape (members, size). A *cluster* is a root family with all families nested in its blocks: what one step solves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rebasin_cli.matching.folds import FoldedShape, Index, folded_shape, rows_on_fold
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

Place = tuple[str, int]
"""A tensor's name and one of its folds."""


@dataclass(slots=True)
class Family:
    """Groups that are permuted alike: member m is the group `names[m]`, in block m of the parent family.

    `rows[place]` has shape (members, size, width): the indices on that fold that each unit of each member owns.
    """

    index: int
    names: tuple[str, ...]
    size: int
    depth: int
    parent: int | None
    rows: dict[Place, Index] = field(default_factory=dict)

    @property
    def members(self) -> int:
        return len(self.names)

    @property
    def title(self) -> str:
        """How messages name the family."""
        return self.names[0] if self.members == 1 else f"{self.names[0]} … {self.names[-1]}"


@dataclass(frozen=True, slots=True)
class Families:
    """All families of a spec, parents before children, with the folded shape of every tensor they touch."""

    all: tuple[Family, ...]
    shapes: Mapping[str, FoldedShape]
    places: Mapping[Place, tuple[int, ...]]
    """For every place, the families that act there in order of application: inside the blocks first."""


def build_families(spec: PermutationSpec, shapes: Mapping[str, Sequence[int]], alone: Collection[str] = ()) -> Families:
    """Sort a spec's groups into families.

    Args:
        spec: checked against these shapes already.
        shapes: shape by tensor name.
        alone: groups that are to be families of their own although they are nested.
    """
    folded = {
        key: folded_shape(shapes[key], (site for _, site in pairs))
        for key, pairs in spec.sites_by_key.items()
        if key in shapes
    }
    found: list[Family] = []
    home: dict[str, tuple[int, int]] = {}
    by_depth: dict[int, list[AxisGroup]] = defaultdict(list)
    for group in spec.groups:
        by_depth[spec.depth[group.name]].append(group)
    for depth in sorted(by_depth):
        for members, parent in _bundles(by_depth[depth], home, found, alone):
            family = Family(len(found), tuple(g.name for g in members), members[0].size, depth, parent)
            family.rows = _family_rows(members, folded)
            home.update({group.name: (family.index, block) for block, group in enumerate(members)})
            found.append(family)
    places: dict[Place, list[int]] = defaultdict(list)
    for family in sorted(found, key=lambda f: -f.depth):
        for place in family.rows:
            places[place].append(family.index)
    return Families(tuple(found), folded, {place: tuple(which) for place, which in places.items()})


def _bundles(
    groups: Sequence[AxisGroup],
    home: Mapping[str, tuple[int, int]],
    found: Sequence[Family],
    alone: Collection[str],
) -> list[tuple[list[AxisGroup], int | None]]:
    """Bundle the groups of one depth: complete sets of like children become one family, all others stand alone."""
    bundles: list[tuple[list[AxisGroup], int | None]] = []
    children: dict[tuple[int, int, tuple[object, ...]], list[tuple[int, AxisGroup]]] = defaultdict(list)
    for group in groups:
        if group.parent is None or group.name in alone:
            bundles.append(([group], None))
            continue
        family, member = home[group.parent.group]
        block = member * found[family].size + group.parent.block
        children[family, group.size, _signature(group)].append((block, group))
    for (family, _, _), entries in children.items():
        blocks = found[family].members * found[family].size
        per_block = Counter(block for block, _ in entries)
        if len(per_block) == blocks and len(set(per_block.values())) == 1:
            bundles.extend(_twins(entries, len(entries) // blocks, family))
        else:
            bundles.extend(([group], None) for _, group in entries)
    return bundles


def _twins(
    entries: Sequence[tuple[int, AxisGroup]], twins: int, parent: int
) -> list[tuple[list[AxisGroup], int | None]]:
    """Several like children in every block: the first of each block form one family, the second another, …

    Which belongs with which is told by where they lie: in the order of their first offsets within the block.
    """
    ordered = sorted(entries, key=lambda entry: (entry[0], [(s.offset, s.positions or ()) for s in _sites(entry[1])]))
    return [([group for _, group in ordered[which::twins]], parent) for which in range(twins)]


def _sites(group: AxisGroup) -> list[Site]:
    """The sites in an order that does not hang on how the spec lists them."""
    return sorted(group.sites, key=lambda s: (s.key, s.axis, s.span, s.offset, s.positions or ()))


def _signature(group: AxisGroup) -> tuple[object, ...]:
    """What like groups have in common: everything but the offsets."""
    return tuple(
        (s.key, s.axis, s.span, s.outer, s.inner, None if s.positions is None else len(s.positions[0]))
        for s in _sites(group)
    )


def _family_rows(members: Sequence[AxisGroup], folded: Mapping[str, FoldedShape]) -> dict[Place, Index]:
    """Rows of all members by place; several sites on one fold stand side by side."""
    per_member: list[dict[Place, Index]] = []
    for group in members:
        parts: dict[Place, list[Index]] = defaultdict(list)
        for site in _sites(group):
            if site.key in folded:
                fold, rows = rows_on_fold(site, group.size, folded[site.key])
                parts[site.key, fold].append(rows)
        per_member.append({place: np.concatenate(rows, axis=1) for place, rows in parts.items()})
    return {place: np.stack([rows[place] for rows in per_member]) for place in per_member[0]}
