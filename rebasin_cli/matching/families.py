"""The groups of a spec as arrays of indices: folded tensors, and families of groups of like structure.

Every stretch of axes that a site spans is folded into one axis, a *fold*, so that a site is a table of indices on one
fold. Two sites that overlap on axes (a span beside a single axis of it, say) share the fold that covers both. A tensor
thereby has one fold for every independent range of axes where units lie.

A model may have a thousand groups of four units. All groups that sit in the blocks of one family and touch the same
tensors in the same way are one *family* here, so that their similarities are one product and their permutations one
array of shape (members, size). A group without a parent is a family by itself.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FoldedShape:
    """The axes of one tensor after folding: `starts[f] … starts[f + 1]` are the original axes of fold f."""

    original: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def fold_of(self, axis: int) -> int:
        """The fold that holds an original axis."""
        return max(fold for fold, start in enumerate(self.starts) if start <= axis)

    def end(self, fold: int) -> int:
        return self.starts[fold + 1] if fold + 1 < len(self.starts) else len(self.original)


def folded_shape(shape: Sequence[int], sites: Iterable[Site]) -> FoldedShape:
    """Fold a tensor's axes so that every site's axes lie in one fold; adjacent axes without sites are one fold too."""
    shape = tuple(shape)
    glued = [False] * max(len(shape) + 1, 1)
    touched = [False] * len(shape)
    for site in sites:
        for axis in range(site.axis, site.axis + site.span):
            touched[axis] = True
            if axis > site.axis:
                glued[axis] = True
    for axis in range(1, len(shape)):
        if not touched[axis] and not touched[axis - 1]:
            glued[axis] = True
    starts = tuple(axis for axis in range(len(shape)) if not glued[axis]) or (0,)
    ends = (*starts[1:], len(shape))
    return FoldedShape(shape, starts, tuple(prod(shape[s:e]) for s, e in zip(starts, ends, strict=True)))


def site_rows(site: Site, size: int) -> Index:
    """The indices on the site's own axes that each unit owns: (size, m)."""
    if site.positions is not None:
        return np.asarray(site.positions, dtype=np.int64)
    block = np.arange(site.outer * size * site.inner, dtype=np.int64).reshape(site.outer, size, site.inner)
    return site.offset + np.ascontiguousarray(block.transpose(1, 0, 2)).reshape(size, -1)


def rows_on_fold(site: Site, size: int, shape: FoldedShape) -> tuple[int, Index]:
    """The fold a site lies on, and the indices on that fold that each unit owns: (size, m)."""
    fold = shape.fold_of(site.axis)
    rows = site_rows(site, size)
    before = prod(shape.original[shape.starts[fold] : site.axis])
    own = prod(shape.original[site.axis : site.axis + site.span])
    after = prod(shape.original[site.axis + site.span : shape.end(fold)])
    if before == after == 1:
        return fold, rows
    lead = np.arange(before, dtype=np.int64)[:, None, None, None] * own * after
    inside = rows[None, :, :, None] * after + np.arange(after, dtype=np.int64)
    return fold, np.ascontiguousarray((lead + inside).transpose(1, 0, 2, 3)).reshape(size, -1)


TensorFold = tuple[str, int]
"""A tensor's name and one of its folds."""


@dataclass(slots=True)
class GroupFamily:
    """Groups that are permuted alike: member m is the group `names[m]`, in block m of the parent family.

    `rows[place]` has shape (members, size, width): the indices on that fold that each unit of each member owns.
    """

    index: int
    names: tuple[str, ...]
    size: int
    depth: int
    parent: int | None
    rows: dict[TensorFold, Index] = field(default_factory=dict)

    @property
    def members(self) -> int:
        return len(self.names)

    @property
    def title(self) -> str:
        """How messages name the family."""
        return self.names[0] if self.members == 1 else f"{self.names[0]} … {self.names[-1]}"


@dataclass(frozen=True, slots=True)
class GroupFamilies:
    """All families of a spec, parents before children, with the folded shape of every tensor they touch."""

    all: tuple[GroupFamily, ...]
    shapes: Mapping[str, FoldedShape]
    places: Mapping[TensorFold, tuple[int, ...]]
    """For every place, the families that act there in order of application: inside the blocks first."""


def build_families(
    spec: PermutationSpec, shapes: Mapping[str, Sequence[int]], alone: Collection[str] = ()
) -> GroupFamilies:
    """Collect a spec's groups into families.

    Args:
        spec: checked against these shapes already.
        shapes: shape by tensor name.
        alone: groups that must be families of their own although they are nested.
    """
    folded = {
        key: folded_shape(shapes[key], (site for _, site in pairs))
        for key, pairs in spec.sites_by_key.items()
        if key in shapes
    }
    found: list[GroupFamily] = []
    home: dict[str, tuple[int, int]] = {}
    by_depth: dict[int, list[AxisGroup]] = defaultdict(list)
    for group in spec.groups:
        by_depth[spec.depth[group.name]].append(group)
    for depth in sorted(by_depth):
        for members, parent in _bundles(by_depth[depth], home, found, alone):
            family = GroupFamily(len(found), tuple(g.name for g in members), members[0].size, depth, parent)
            family.rows = _family_rows(members, folded)
            home.update({group.name: (family.index, block) for block, group in enumerate(members)})
            found.append(family)
    places: dict[TensorFold, list[int]] = defaultdict(list)
    for family in sorted(found, key=lambda f: -f.depth):
        for place in family.rows:
            places[place].append(family.index)
    return GroupFamilies(tuple(found), folded, {place: tuple(which) for place, which in places.items()})


def _bundles(
    groups: Sequence[AxisGroup],
    home: Mapping[str, tuple[int, int]],
    found: Sequence[GroupFamily],
    alone: Collection[str],
) -> list[tuple[list[AxisGroup], int | None]]:
    """Bundle the groups of one depth: like children, as many in every block, are one family; others stand alone."""
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

    Children are ordered by their first offsets within the block.
    """
    ordered = sorted(entries, key=lambda entry: (entry[0], [(s.offset, s.positions or ()) for s in _sites(entry[1])]))
    return [([group for _, group in ordered[which::twins]], parent) for which in range(twins)]


def _sites(group: AxisGroup) -> list[Site]:
    """The sites in an order that does not depend on the order in the spec."""
    return sorted(group.sites, key=lambda s: (s.key, s.axis, s.span, s.offset, s.positions or ()))


def _signature(group: AxisGroup) -> tuple[object, ...]:
    """What groups of one family must have in common: everything but the offsets."""
    return tuple(
        (s.key, s.axis, s.span, s.outer, s.inner, None if s.positions is None else len(s.positions[0]))
        for s in _sites(group)
    )


def _family_rows(members: Sequence[AxisGroup], folded: Mapping[str, FoldedShape]) -> dict[TensorFold, Index]:
    """Rows of all members by tensor and fold; the rows of several sites on one fold are concatenated."""
    per_member: list[dict[TensorFold, Index]] = []
    for group in members:
        parts: dict[TensorFold, list[Index]] = defaultdict(list)
        for site in _sites(group):
            if site.key in folded:
                fold, rows = rows_on_fold(site, group.size, folded[site.key])
                parts[site.key, fold].append(rows)
        per_member.append({place: np.concatenate(rows, axis=1) for place, rows in parts.items()})
    return {place: np.stack([rows[place] for rows in per_member]) for place in per_member[0]}
