"""Puts the classes into a spec: for every group the maps that its operations allow, and on which sites how they act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod

from rebasin_cli.freedom import Gauge, ScaleFreedom, SymmetryClass
from rebasin_cli.spec import AxisGroup, Site
from rebasin_cli.symmetry.analysis import Analysis
from rebasin_cli.symmetry.classes.gauges import Leaf, Mixing, Part, Refusal, limits_of, mixing, votes_of
from rebasin_cli.symmetry.classes.ledger import Limit, Node, Product
from rebasin_cli.symmetry.classes.others import handler_of
from rebasin_cli.symmetry.classes.planes import Heads, proposed
from rebasin_cli.symmetry.classes.scales import Freedom, equations_of, freedoms
from rebasin_cli.symmetry.classes.slots import Slot
from rebasin_cli.symmetry.classes.walk import Place, Reading, Walk
from rebasin_cli.symmetry.readout import Copies, FibreSite, Readout
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.tracing.graph import Trace

BLOCKS = "its units are blocks, whose insides are groups of their own"

Fibre = tuple[int, int]
"""Number of a family, and of one of its blocks."""


@dataclass(frozen=True, slots=True)
class NodeSite:
    """A site, and the node whose map acts there."""

    site: Site
    node: Node


@dataclass(slots=True)
class Classifier:
    """One derivation whose groups get classes.

    Args:
        keys: the names of every state value.
        placed: the sites that were read out of every parameter.
    """

    trace: Trace
    analysis: Analysis
    closure: Closure
    keys: Mapping[int, Sequence[str]]
    placed: Mapping[int, Sequence[FibreSite]]
    walk: Walk = field(init=False)
    _sites: dict[Fibre, list[NodeSite]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.walk = Walk(self.trace, self.analysis, self.closure)
        self.walk.run(handler_of)

    def groups(self, groups: Mapping[Fibre, AxisGroup]) -> tuple[AxisGroup, ...]:
        """The groups with their classes."""
        self._sites = self._all_sites()
        ledger = self.walk.ledger
        limits, votes = limits_of(ledger), votes_of(ledger)
        products: dict[int, list[Product]] = {}
        for product in ledger.products:
            products.setdefault(ledger.family[product.out], []).append(product)
        parts: dict[int, list[Node]] = {}
        for node in range(len(ledger.family)):
            if ledger.find(node)[0] == node:
                parts.setdefault(ledger.family[node], []).append(node)
        blocks = {
            above
            for family in self.closure.families
            if family.moves
            for above in family.ancestors
            if self.closure.families[above] is not family
        }
        inside: dict[str, list[AxisGroup]] = {}
        for group in groups.values():
            if group.parent is not None:
                inside.setdefault(group.parent.group, []).append(group)
        crossed = {ledger.family[node] for node, _, _ in self.walk.crossed}
        shapes = {key: self.analysis.shape_of(value) for key, value in self.trace.state.items()}
        found = []
        for (family, fibre), group in groups.items():
            sites = self._sites.get((family, fibre), [])
            if family in blocks:
                found.append(replace(group, class_reason=BLOCKS))
            else:
                one = _Family(self, group, sites, products.get(family, []), parts.get(family, []), limits, votes)
                found.append(one.classified())
            if family in crossed:
                own = [(known.site, known.node) for known in sites]
                heads = Heads(group, family, own, inside.get(group.name, []))
                found += proposed(self.walk, heads, shapes, self.trace.owners)
        return tuple(found)

    def _all_sites(self) -> dict[Fibre, list[NodeSite]]:
        """For every block of every family, its sites with their nodes; sites are split where their parts differ."""
        readout = Readout(self.closure, self.analysis.relations)
        order: dict[int, int] = {}
        for place, call in enumerate(self.trace.live):
            for value in call.inputs:
                order.setdefault(value, place)
        found: dict[Fibre, list[NodeSite]] = {}
        values = {**self.analysis.leaves, **self.analysis.cuts}
        for value in sorted(values, key=lambda value: order.get(value, len(self.trace.values))):
            for placed, node in self._sites_of(readout, value):
                for key in self.keys[value]:
                    site = placed.site if key == placed.site.key else replace(placed.site, key=key)
                    found.setdefault((placed.family, placed.fibre), []).append(NodeSite(site, node))
        return found

    def _sites_of(self, readout: Readout, value: int) -> Iterator[tuple[FibreSite, Node]]:
        cut = self.analysis.cuts.get(value)
        if cut is None:
            yield from self._split(readout, self.analysis.leaves[value].key, value)
            return
        pieces = [list(self._split(readout, cut.pieces[0].key, (value, number))) for number in range(len(cut.pieces))]
        known = [{(placed, self.walk.ledger.find(node)) for placed, node in piece} for piece in pieces]
        shape = self.analysis.shape_of(value)
        for number, piece in enumerate(pieces):
            for placed, node in piece:
                alike = (placed, self.walk.ledger.find(node))
                if cut.axis not in placed.axes and all(alike in others for others in known):
                    if number == 0:
                        yield placed, node
                else:
                    yield cut.in_the_whole(self.closure, placed, number, shape), node

    def _split(self, readout: Readout, key: str, place: Place) -> Iterator[tuple[FibreSite, Node]]:
        """The sites of a parameter or a piece of it, apart where copies of the units lie in different parts."""
        walk = self.walk
        layout = (
            self.analysis.relations.layout(self.analysis.cuts[place[0]].pieces[place[1]])
            if isinstance(place, tuple)
            else self.analysis.layout_of(place)  # type: ignore[arg-type]
        )
        bundles: dict[tuple[int, tuple[int, ...]], dict[tuple[Node, int], list[Slot]]] = {}
        for slot in walk.slots(place):
            status = walk.ledger.find(walk.node(place, slot))
            bundles.setdefault((slot.family, slot.dims), {}).setdefault(status, []).append(slot)
        divided = {family for (family, _), statuses in bundles.items() if len(statuses) > 1}
        known = self.placed.get(place) if isinstance(place, int) else None
        for placed in readout.sites(key, layout) if known is None else known:
            nearest = None if placed.family in divided else _nearest(walk.slots(place), placed)
            if nearest is not None:
                yield placed, walk.node(place, nearest)
        for (family, dims), statuses in bundles.items():
            if family in divided:
                for slots in statuses.values():
                    copies = Copies(family, frozenset(walk.tags_of(slots)))
                    for placed in readout.sites(key, layout, copies):
                        if set(placed.axes) >= set(dims):
                            yield placed, walk.node(place, slots[0])


def _nearest(slots: Sequence[Slot], placed: FibreSite) -> Slot | None:
    """The slot of a site: of its family, and along its axes."""
    own = [slot for slot in slots if slot.family == placed.family]
    along = [slot for slot in own if set(slot.dims) <= set(placed.axes) and slot.dims]
    return next(iter(along or own), None)


@dataclass(slots=True)
class _Family:
    """One group, and what is known of its family."""

    owner: Classifier
    group: AxisGroup
    sites: Sequence[NodeSite]
    products: Sequence[Product]
    parts: Sequence[Node]
    limits: Mapping[Node, Part]
    votes: Mapping[Node, int]

    def classified(self) -> AxisGroup:
        ledger = self.owner.walk.ledger
        tensors: dict[Node, int] = {}
        for known in self.sites:
            part = ledger.find(known.node)[0]
            tensors[part] = tensors.get(part, 0) + 1
        state = self.owner.trace.state
        seen: dict[int, str] = {}
        tied = next(
            (k.site.key for k in self.sites if seen.setdefault(state[k.site.key], k.site.key) != k.site.key), None
        )
        found = mixing(ledger, self.limits, self.votes, self.products, tensors, tied, self.owner.keys)
        if isinstance(found, Mixing):
            made = self._mixed(found)
            if isinstance(made, AxisGroup):
                return made
            found = made
        return self._scaled(found)

    def _mixed(self, found: Mixing) -> AxisGroup | Refusal:
        """The group with a class of matrices, its dual sites and gauges."""
        ledger, state = self.owner.walk.ledger, self.owner.trace.state
        leaves = {leaf.part: leaf for leaf in found.leaves}
        scales = {leaf.scale for leaf in found.leaves}
        behind: dict[Node, list[int]] = {part: [] for part in leaves}
        shifts: dict[Node, list[int]] = {part: [] for part in leaves}
        sites: list[Site] = []
        for index, known in enumerate(self.sites):
            part, parity = ledger.find(known.node)
            dual = False
            if part == found.core:
                dual = bool(parity ^ found.parity)
            elif part in leaves:
                leaf = leaves[part]
                dual = bool(parity ^ leaf.parity)
                if leaf.side == "write" and dual:
                    return Refusal(f"{known.site.key} reads before a scale")
                (behind if dual or leaf.side == "write" else shifts)[part].append(index)
            elif state[known.site.key] not in scales:
                return Refusal(f"{known.site.key} has units in another way")
            sites.append(replace(known.site, dual=dual))
        gauges = []
        for part, leaf in leaves.items():
            gauge = self._gauge(leaf, sites, behind[part], shifts[part])
            if isinstance(gauge, Refusal):
                return gauge
            gauges += gauge
        symmetry = {
            Limit.LINEAR: SymmetryClass.LINEAR,
            Limit.ORTHOGONAL: SymmetryClass.ORTHOGONAL,
            Limit.ONES: SymmetryClass.ORTHOGONAL_ONES,
        }[found.limit]
        reason = None if found.reason is None else f"{_words(symmetry)}, not general linear: {found.reason}"
        centred = symmetry is SymmetryClass.ORTHOGONAL_ONES and self._is_centred(found, sites)
        return replace(
            self.group,
            sites=tuple(sites),
            symmetry=symmetry,
            class_reason=reason,
            gauges=tuple(gauges),
            centred=centred,
        )

    def _is_centred(self, found: Mixing, sites: Sequence[Site]) -> bool:
        """Whether nothing but layer norms reads the core."""
        ledger = self.owner.walk.ledger
        own = [node for node, _, _ in ledger.limits if ledger.find(node)[0] == found.core]
        read = any(
            site.dual for site, known in zip(sites, self.sites, strict=True) if ledger.find(known.node)[0] == found.core
        )
        return not read and all(node in self.owner.walk.mean_free for node in own)

    def _gauge(
        self, leaf: Leaf, sites: Sequence[Site], behind: Sequence[int], shifts: Sequence[int]
    ) -> list[Gauge] | Refusal:
        """The gauges of one leaf: one for each name of its scale and shift."""
        keys, state = self.owner.keys, self.owner.trace.state
        values = {state[sites[index].key] for index in shifts}
        if len(values) > 1 or any(prod(self.owner.analysis.shape_of(value)) != _long(self, value) for value in values):
            return Refusal(f"{sites[shifts[0]].key} is added behind a scale")
        shift = next(iter(values), None)
        length = prod(self.owner.analysis.shape_of(leaf.scale))
        for index in behind:
            if sites[index].extent(self.owner.analysis.shape_of(state[sites[index].key])) != length:
                return Refusal(f"{sites[index].key} is only in part behind a scale")
        biases = tuple(self._bias(sites[index]) for index in behind) if shift is not None else ()
        return [
            Gauge(
                side=leaf.side,
                scale=keys[leaf.scale][0],
                shift=None if shift is None else keys[shift][0],
                sites=tuple(behind),
                biases=biases,
                offset=leaf.offset,
            )
        ]

    def _bias(self, site: Site) -> str | None:
        """The name of the bias that can take what a reader makes of a shift; None where there is none."""
        value = self.owner.trace.state[site.key]
        shape = self.owner.analysis.shape_of(value)
        readings: list[Reading] = [reading for reading in self.owner.walk.readings if reading.weight == value]
        biases = {reading.bias if reading.plain else None for reading in readings}
        (only,) = biases if len(biases) == 1 else (None,)
        whole = site.positions is None and site.outer * self.group.size * site.inner == site.extent(shape)
        if only is None or not whole or site.span != 1:
            return None
        others = {reading.weight for reading in self.owner.walk.readings if reading.bias == only}
        kept = [size for axis, size in enumerate(shape) if axis != site.axis]
        kernel = len(shape) > 2 and site.axis == 1 and len(self.owner.analysis.shape_of(only)) == 1
        wanted = kept[0] if kernel else prod(kept)
        fits = prod(self.owner.analysis.shape_of(only)) == wanted
        return self.owner.keys[only][0] if fits and others == {value} else None

    def _scaled(self, refusal: Refusal) -> AxisGroup:
        """The group with its diagonals; without those of norms whose scale only stands before readers."""
        ledger = self.owner.walk.ledger
        held = [ledger.find(product.right)[0] for product in self.products if self._folds(product)]
        found = self._scales(held)
        if any(freedom.sign != "sign" for freedom in found):
            found = self._scales(())
        sites = tuple(known.site for known in self.sites)
        scales = tuple(self._listed(freedom) for freedom in found)
        symmetry, reason = SymmetryClass.PERMUTATION, refusal.reason
        if scales:
            signs = all(freedom.sign == "sign" for freedom in scales)
            symmetry = SymmetryClass.SIGNED if signs else SymmetryClass.MONOMIAL
            if signs and refusal.pointwise:
                moved = {part for freedom in found for part in freedom.exponents}
                reason = next((why for node, why in ledger.still if ledger.find(node)[0] in moved), reason)
        else:
            sites = self.group.sites
        return replace(
            self.group, sites=sites, symmetry=symmetry, class_reason=f"{_words(symmetry)}: {reason}", scales=scales
        )

    def _folds(self, product: Product) -> bool:
        """Whether a scale stands beside a part that nothing limits, so that it is a gauge."""
        ledger = self.owner.walk.ledger
        before, after = ledger.find(product.left)[0], ledger.find(product.out)[0]
        return product.scale is not None and before != after and (before not in self.limits or after not in self.limits)

    def _scales(self, held: Sequence[Node]) -> list[Freedom]:
        ledger = self.owner.walk.ledger
        listed = {ledger.find(known.node)[0] for known in self.sites}
        found = freedoms(equations_of(ledger, self.parts, self.products, held))
        return [
            freedom
            for freedom in found
            if any(part in listed for part in freedom.exponents)
            and all(abs(power) == 1 for part, power in freedom.exponents.items() if part in listed)
        ]

    def _listed(self, freedom: Freedom) -> ScaleFreedom:
        ledger = self.owner.walk.ledger
        powers = []
        for index, known in enumerate(self.sites):
            part, parity = ledger.find(known.node)
            power = freedom.exponents.get(part, 0)
            if power:
                powers.append(
                    (
                        index,
                        -power
                        if parity and freedom.sign != "sign"
                        else abs(power)
                        if freedom.sign == "sign"
                        else power,
                    )
                )
        if sum(power for _, power in powers[:1]) < 0:
            powers = [(index, -power) for index, power in powers]
        return ScaleFreedom(freedom.sign, tuple(powers))


def _long(family: _Family, value: int) -> int:
    return max(family.owner.analysis.shape_of(value), default=0)


def _words(symmetry: SymmetryClass) -> str:
    return symmetry.value.replace("_", " fixing ")
