"""The permutation spec: which axes of which tensors must be permuted together, and what else they allow.

A `PermutationSpec` is plain data: it can be printed, saved as JSON, edited by hand and loaded back. Matching depends on
nothing else of a model.

A site reads the axes `axis … axis + span - 1` of a tensor as one, takes the segment `[offset, offset + outer*n*inner)`
of it, sees that as `(outer, n, inner)` and gathers it on its middle. Where units lie otherwise, `positions` lists for
every unit the `m` indices it owns, and `new[positions[i]] = old[positions[perm[i]]]`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from typing import Any

from rebasin_cli.errors import ModelError
from rebasin_cli.freedom import (
    Gauge,
    Pairing,
    ScaleFreedom,
    SymmetryClass,
    gauge_from_json,
    gauge_to_json,
    pairing_from_json,
    scale_from_json,
    scale_to_json,
)

SCHEMA = "rebasin.spec/2"
READABLE = ("rebasin.spec/1", SCHEMA)
"""Schema 1 has no classes: each of its groups is permuted and no more."""


@dataclass(frozen=True, slots=True)
class Site:
    """The segment of one axis (or of `span` consecutive axes read as one) of one tensor where a permutation acts.

    `dual`: the axis is contracted with the group's values, so that other maps act on it transposed and inverted.
    """

    key: str
    axis: int
    offset: int = 0
    outer: int = 1
    inner: int = 1
    span: int = 1
    positions: tuple[tuple[int, ...], ...] | None = None
    dual: bool = False

    def extent(self, shape: Sequence[int]) -> int:
        """Length of the axis, or of the merged axes, that this site indexes in a tensor of this shape."""
        return prod(shape[self.axis : self.axis + self.span])

    def rows(self, size: int) -> list[list[int]]:
        """The indices that each of the `size` units owns: `size` rows of equal length."""
        if self.positions is not None:
            return [list(row) for row in self.positions]
        block = size * self.inner
        return [
            [self.offset + o * block + unit * self.inner + i for o in range(self.outer) for i in range(self.inner)]
            for unit in range(size)
        ]


@dataclass(frozen=True, slots=True)
class Tap:
    """Where the units of some groups can be observed: one axis of what an operation reads or returns.

    Args:
        ordinal: index of the operation among those that are counted (`tracing.operations.is_counted`).
        operand: name of the observed argument; None for the first result.
        axis: the axis of that tensor.
        length: units along the axis, which is read as (outer, length, inner). A batch may be merged into it, as the
            outermost part.
        sites: for each group observed here, its name and its site among these units.
        outer, inner: positions of each unit.
        reader: the argument of the same operation that holds the weights which read the units, and the axis of it that
            has as many positions as the observed one; None where no weights do.
    """

    ordinal: int
    operand: str | None
    axis: int
    length: int
    sites: tuple[tuple[str, Site], ...]
    outer: int = 1
    inner: int = 1
    reader: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class ParentBlock:
    """A nested group lies in block `block` of the group named `group`, and moves with that block."""

    group: str
    block: int


@dataclass(frozen=True, slots=True)
class AxisGroup:
    """All sites moved by one permutation of `size` units, or by one map of the group's class.

    Args:
        symmetry: the maps that keep the function.
        class_reason: why they are no more.
        gauges: parameters that a map of a class beyond monomial leaves in place.
        scales: the diagonals of a signed or monomial group.
        centred: every reader takes the mean over the units away, so that adding one number to all of them changes
            nothing: maps act on writers without their mean over the units.
        pairing: which units share a plane.
    """

    name: str
    size: int
    sites: tuple[Site, ...]
    parent: ParentBlock | None = None
    symmetry: SymmetryClass = SymmetryClass.PERMUTATION
    class_reason: str | None = None
    gauges: tuple[Gauge, ...] = ()
    scales: tuple[ScaleFreedom, ...] = ()
    centred: bool = False
    pairing: Pairing | None = None

    def permuted(self) -> AxisGroup:
        """The group with the permutations of its units and no more."""
        return AxisGroup(self.name, self.size, tuple(replace(site, dual=False) for site in self.sites), self.parent)


@dataclass(frozen=True, slots=True)
class PinnedAxis:
    """An axis that no group permutes, with a short reason for users."""

    key: str
    axis: int
    reason: str


@dataclass(frozen=True)
class PermutationSpec:
    """All axis groups of a model, in the order of the forward pass, and all pinned axes.

    Nested groups gather inside their block first, in the original coordinates; then the parent moves whole blocks.
    """

    groups: tuple[AxisGroup, ...]
    pinned: tuple[PinnedAxis, ...] = field(default=())

    @cached_property
    def by_name(self) -> Mapping[str, AxisGroup]:
        return {group.name: group for group in self.groups}

    @cached_property
    def depth(self) -> Mapping[str, int]:
        """Nesting depth by group name: 0 for a group that has no parent.

        Raises:
            ModelError: a parent is missing, or groups are each other's ancestors.
        """
        depths: dict[str, int] = {}
        for group in self.groups:
            chain: list[AxisGroup] = []
            node = group
            while node.name not in depths and node.parent is not None:
                if node in chain:
                    raise ModelError(f"spec: group {node.name!r} is its own ancestor")
                chain.append(node)
                if node.parent.group not in self.by_name:
                    raise ModelError(
                        f"spec: group {node.name!r} names a parent {node.parent.group!r} that does not exist"
                    )
                node = self.by_name[node.parent.group]
            depths.setdefault(node.name, 0)
            for child in reversed(chain):
                assert child.parent is not None
                depths[child.name] = depths[child.parent.group] + 1
        return depths

    @cached_property
    def innermost_first(self) -> tuple[AxisGroup, ...]:
        """Groups in the order in which their permutations are applied: inside the blocks first, then the blocks."""
        return tuple(sorted(self.groups, key=lambda group: -self.depth[group.name]))

    @cached_property
    def sites_by_key(self) -> Mapping[str, tuple[tuple[AxisGroup, Site], ...]]:
        """For each tensor, its (group, site) pairs in order of application."""
        found: dict[str, list[tuple[AxisGroup, Site]]] = {}
        for group in self.innermost_first:
            for site in group.sites:
                found.setdefault(site.key, []).append((group, site))
        return {key: tuple(pairs) for key, pairs in found.items()}

    @cached_property
    def permutable(self) -> PermutationSpec:
        """The spec of permutations alone: without the groups that have none, and without classes.

        A group inside the blocks of one that is left out does not occur: only inner groups have no permutations.
        """
        kept = tuple(group.permuted() for group in self.groups if group.symmetry.permutable)
        return self if kept == self.groups else PermutationSpec(kept, self.pinned)

    @property
    def units(self) -> int:
        """Sum of the group sizes; a nested group counts once for every block it occurs in."""
        return sum(group.size for group in self.groups)

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Check that every site fits the tensors.

        Args:
            shapes: shape by tensor name.

        Raises:
            ModelError: a name occurs twice, a site names a tensor, an axis or a segment that does not exist, or what a
                group says of its class does not fit its sites.
        """
        names = [group.name for group in self.groups]
        for name in names:
            if len(self.by_name) != len(names) and names.count(name) > 1:
                raise ModelError(f"spec: the group name {name!r} occurs more than once")
        assert self.depth is not None
        for group in self.groups:
            for site in group.sites:
                _check_site(group, site, shapes)
            _check_class(group, shapes)

    def check_ties(self, ties: Mapping[str, str]) -> None:
        """Check that all names of one tensor are permuted alike.

        Args:
            ties: for each further name of a tensor, its first one.

        Raises:
            ModelError: they do not; a file that contains both would then be inconsistent.
        """
        for key, first in ties.items():
            one, other = (
                [(group.name, replace(site, key="")) for group, site in self.sites_by_key.get(name, ())]
                for name in (first, key)
            )
            if one != other:
                raise ModelError(
                    f"spec: {key} and {first} are one tensor in this model, but they are permuted differently",
                    hint="give both the same sites",
                    slug="tied-apart",
                )

    def to_json(self) -> dict[str, Any]:
        """The content of a spec file (schema `rebasin.spec/2`)."""
        return {
            "schema": SCHEMA,
            "groups": [_group_to_json(group) for group in self.groups],
            "pinned": [{"key": pin.key, "axis": pin.axis, "reason": pin.reason} for pin in self.pinned],
        }

    @staticmethod
    def from_json(document: Any) -> PermutationSpec:
        """Read a spec document.

        Raises:
            ModelError: the document is not a spec of a known schema, or an entry is malformed.
        """
        if not isinstance(document, dict) or document.get("schema") not in READABLE:
            seen = document.get("schema") if isinstance(document, dict) else type(document).__name__
            raise ModelError(f"not a permutation spec: expected schema {SCHEMA!r}, found {seen!r}")
        try:
            return PermutationSpec(
                groups=tuple(_group_from_json(entry) for entry in document["groups"]),
                pinned=tuple(
                    PinnedAxis(str(entry["key"]), int(entry["axis"]), str(entry["reason"]))
                    for entry in document.get("pinned", ())
                ),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ModelError(f"malformed permutation spec: {type(error).__name__}: {error}") from error

    @staticmethod
    def loads(text: str) -> PermutationSpec:
        """Read a spec from JSON text; raises ModelError for text that is not JSON."""
        try:
            return PermutationSpec.from_json(json.loads(text))
        except json.JSONDecodeError as error:
            raise ModelError(f"not a permutation spec: invalid JSON: {error}") from error


def _group_to_json(group: AxisGroup) -> dict[str, Any]:
    parent = None if group.parent is None else {"group": group.parent.group, "block": group.parent.block}
    entry: dict[str, Any] = {
        "name": group.name,
        "size": group.size,
        "class": group.symmetry.value,
        "class_reason": group.class_reason,
        "parent": parent,
        "sites": [_site_to_json(site) for site in group.sites],
    }
    if group.gauges:
        entry["gauges"] = [gauge_to_json(gauge) for gauge in group.gauges]
    if group.scales:
        entry["scales"] = [scale_to_json(freedom) for freedom in group.scales]
    if group.centred:
        entry["centred"] = True
    if group.pairing is not None:
        entry["pairing"] = group.pairing
    return entry


def _site_to_json(site: Site) -> dict[str, Any]:
    entry: dict[str, Any] = {"key": site.key, "axis": site.axis}
    if site.positions is not None:
        entry["positions"] = [list(row) for row in site.positions]
    else:
        entry.update(offset=site.offset, outer=site.outer, inner=site.inner)
    if site.span != 1:
        entry["span"] = site.span
    if site.dual:
        entry["dual"] = True
    return entry


def _group_from_json(entry: Mapping[str, Any]) -> AxisGroup:
    parent = entry.get("parent")
    reason = entry.get("class_reason")
    return AxisGroup(
        name=str(entry["name"]),
        size=int(entry["size"]),
        sites=tuple(_site_from_json(site) for site in entry["sites"]),
        parent=None if parent is None else ParentBlock(str(parent["group"]), int(parent["block"])),
        symmetry=SymmetryClass(entry.get("class", "permutation")),
        class_reason=None if reason is None else str(reason),
        gauges=tuple(gauge_from_json(gauge) for gauge in entry.get("gauges", ())),
        scales=tuple(scale_from_json(freedom) for freedom in entry.get("scales", ())),
        centred=bool(entry.get("centred", False)),
        pairing=pairing_from_json(entry.get("pairing")),
    )


def _site_from_json(entry: Mapping[str, Any]) -> Site:
    rows: Iterable[Iterable[int]] | None = entry.get("positions")
    return Site(
        key=str(entry["key"]),
        axis=int(entry["axis"]),
        offset=int(entry.get("offset", 0)),
        outer=int(entry.get("outer", 1)),
        inner=int(entry.get("inner", 1)),
        span=int(entry.get("span", 1)),
        positions=None if rows is None else tuple(tuple(int(i) for i in row) for row in rows),
        dual=bool(entry.get("dual", False)),
    )


def _check_site(group: AxisGroup, site: Site, shapes: Mapping[str, Sequence[int]]) -> None:
    where = f"spec: group {group.name!r}, tensor {site.key!r}"
    if site.key not in shapes:
        raise ModelError(f"{where}: the model has no such tensor")
    shape = tuple(shapes[site.key])
    if site.span < 1 or not 0 <= site.axis <= len(shape) - site.span:
        raise ModelError(f"{where}: axis {site.axis} (span {site.span}) does not exist in shape {shape}")
    extent = site.extent(shape)
    if site.positions is None:
        end = site.offset + site.outer * group.size * site.inner
        if min(site.outer, site.inner, group.size) < 1 or site.offset < 0 or end > extent:
            raise ModelError(
                f"{where}: segment [{site.offset}, {end}) does not fit axis {site.axis} of length {extent}"
            )
        return
    flat = [index for row in site.positions for index in row]
    if len(site.positions) != group.size or len({len(row) for row in site.positions}) > 1:
        raise ModelError(f"{where}: positions must be {group.size} rows of equal length")
    if len(set(flat)) != len(flat) or any(not 0 <= index < extent for index in flat):
        raise ModelError(f"{where}: positions must be distinct and lie in [0, {extent})")


def _check_class(group: AxisGroup, shapes: Mapping[str, Sequence[int]]) -> None:
    where = f"spec: group {group.name!r}, class {group.symmetry.value}"
    if (group.symmetry is SymmetryClass.PLANES) != (group.pairing is not None) or (group.pairing and group.size % 2):
        raise ModelError(f"{where}: a group of planes, and no other, has a pairing, and an even number of units")
    if group.gauges and not group.symmetry.is_matrix:
        raise ModelError(f"{where}: only classes beyond monomial have gauges")
    if bool(group.scales) != (group.symmetry in (SymmetryClass.SIGNED, SymmetryClass.MONOMIAL)):
        raise ModelError(f"{where}: a signed or monomial group, and no other, has scales")
    if group.centred and group.symmetry is not SymmetryClass.ORTHOGONAL_ONES:
        raise ModelError(f"{where}: only a group of class orthogonal_ones is centred")
    listed = [site for gauge in group.gauges for site in gauge.sites]
    listed += [site for freedom in group.scales for site, _ in freedom.sites]
    for index in listed:
        if not 0 <= index < len(group.sites):
            raise ModelError(
                f"{where}: names site {index}, but the group has {len(group.sites)} sites",
                hint="gauges and scales count sites from 0: edit them too, or give the group class permutation",
            )
    if any(power not in (1, -1) for freedom in group.scales for _, power in freedom.sites):
        raise ModelError(f"{where}: the power of a scale is 1 or -1")
    for gauge in group.gauges:
        for key in (gauge.scale, gauge.shift, *gauge.biases):
            if key is not None and key not in shapes:
                raise ModelError(f"{where}: a gauge names the tensor {key!r}, which the model does not have")
        for site in (group.sites[index] for index in gauge.sites):
            for key in (gauge.scale, gauge.shift):
                if key is not None and prod(shapes[key]) != site.extent(shapes[site.key]):
                    raise ModelError(f"{where}: {key} does not fit axis {site.axis} of {site.key}")
        if gauge.biases and len(gauge.biases) != len(gauge.sites):
            raise ModelError(f"{where}: a gauge lists {len(gauge.biases)} biases for {len(gauge.sites)} sites")
