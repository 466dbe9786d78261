"""Derives a permutation spec from a recorded pass: apply the rules, close the relations, read the groups out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import prod

import numpy as np

from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, PinnedAxis, Site, Tap
from rebasin_cli.symmetry.analysis import Analysis, UnknownOp
from rebasin_cli.symmetry.colouring import first_places
from rebasin_cli.symmetry.families import IRREGULAR
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.readout import FibreSite, Irregular, Readout
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.symmetry.sums import choose_sums
from rebasin_cli.symmetry.taps import choose_taps
from rebasin_cli.tracing.graph import Trace, collector_paused

OVERWRITTEN = "values never used (overwritten, or only the shape is read)"
ALONE = "order is irrelevant, and no other tensor depends on it"


@dataclass(frozen=True)
class Derivation:
    """The permutation symmetries of a model.

    Attributes:
        spec: the axis groups and the pinned axes.
        unknown_ops: operations that no rule covers.
        roots, families: groups that act on their own; families of inner groups, one group for each block of a parent.
        parameters: number of floating-point elements in the state.
        free_fraction: share of them that at least one group moves.
        unread: parameters of which the pass read nothing, or not everything along an axis that moves. With
            data-dependent control flow (`Trace.decisions`), another input may read them.
        look, look_at_sums: choose the taps, when they are first asked for.
        classify: finds the classes of the groups, when they are first asked for.
    """

    spec: PermutationSpec
    unknown_ops: tuple[UnknownOp, ...]
    roots: int
    families: int
    parameters: int
    free_fraction: float
    unread: tuple[str, ...] = ()
    look: Callable[[], tuple[Tap, ...]] = tuple
    classify: Callable[[], PermutationSpec] | None = None
    look_at_sums: Callable[[], tuple[Tap, ...]] = tuple

    @cached_property
    def classified(self) -> PermutationSpec:
        """The spec with the symmetry class of every group, and the groups that have no permutations."""
        return self.spec if self.classify is None else self.classify()

    @cached_property
    def taps(self) -> tuple[Tap, ...]:
        """Where the units of the groups can be observed."""
        return self.look()

    @cached_property
    def sums(self) -> tuple[Tap, ...]:
        """Where activations are added along the axes of groups: what norms and layers then read."""
        return self.look_at_sums()

    @property
    def units(self) -> int:
        return self.spec.units


def derive(trace: Trace, *, pins: tuple[str, ...] = (), strict: bool = False, cautious: bool = False) -> Derivation:
    """Find every permutation symmetry of the recorded pass.

    Args:
        trace: the record.
        pins: patterns of tensor names (`*.bias`) whose axes are all pinned.
        strict: refuse operations that no rule covers instead of pinning what they touch.
        cautious: hold what the code around every decision on computed values handles; another input may lead it to
            operations that the trace does not have.

    Raises:
        ModelError: `strict`, and an operation has no rule, or one that does not cover how it is used.
    """
    with collector_paused():
        found = _derive(Analysis(trace, pins, strict, cautious))
        tangled = _tangled(trace, found)
        if not tangled:
            return found
        apart = _derive(Analysis(trace, pins, strict, cautious, Relations(by_axis=tangled)))
    return max(found, apart, key=lambda one: (one.free_fraction, one.units))


def _derive(analysis: Analysis) -> Derivation:
    analysis.run()
    found = None
    while found is None:
        found = _attempt(analysis.trace, analysis)
    return found


def _tangled(trace: Trace, found: Derivation) -> frozenset[str]:
    """Square tensors that were given up as irregular.

    Where the operation that read them first related their axes to nothing, every element got an id of its own: rows
    that are permuted apart, as in heads. If both axes turn out to be the same units, the axes must have ids instead.
    """
    given_up = {axis.key for axis in found.spec.pinned if axis.reason == IRREGULAR}
    shapes = {key: trace.values[trace.state[key]].shape for key in given_up}
    return frozenset(key for key, shape in shapes.items() if len(set(shape) - {1}) < len([n for n in shape if n != 1]))


def _attempt(trace: Trace, analysis: Analysis) -> Derivation | None:
    """Close the relations and read the groups out; None if something had to be pinned, so that it must be repeated."""
    try:
        return _read_out(trace, analysis, analysis.close())
    except Irregular as irregular:
        analysis.relations.pin(irregular.ids, IRREGULAR)
        return None


def _read_out(trace: Trace, analysis: Analysis, closure: Closure) -> Derivation:
    order = _order_of_use(trace)
    readout = Readout(closure, analysis.relations)
    found: dict[tuple[int, int], list[FibreSite]] = {}
    keys: dict[int, list[str]] = {}
    for key, value in trace.state.items():
        keys.setdefault(value, []).append(key)
    placed_in: dict[int, list[FibreSite]] = {}
    alone: set[tuple[str, int]] = set()
    parameters = 0
    for value in sorted({**analysis.leaves, **analysis.cuts}, key=lambda value: order.get(value, len(trace.values))):
        parameters += _real_elements(trace, value)
        placed_in[value] = list(_sites(analysis, readout, value))
        for placed in placed_in[value]:
            found.setdefault((placed.family, placed.fibre), []).append(placed)
    parameters += sum(_real_elements(trace, value) for value in analysis.layouts if value in keys)
    for group, placed_sites in list(found.items()):
        only = placed_sites[0].site.key
        if len(placed_sites) == 1 and len(analysis.shape_of(trace.state[only])) == 1:
            del found[group]
            alone.add((only, 0))
    names = _group_names(trace, closure, found)
    groups = _groups(trace, closure, found, keys, names)
    moved_axes = {(item.site.key, axis) for placed in found.values() for item in placed for axis in item.axes}
    moved = sum(_real_elements(trace, trace.state[key]) for key in {key for key, _ in moved_axes})
    pinned = tuple(_pinned(trace, analysis, closure, moved_axes, alone))
    families = {family for family, _ in found}
    nested = sum(1 for family in families if closure.families[family].parents)
    return Derivation(
        spec=PermutationSpec(groups, pinned),
        unknown_ops=tuple(analysis.unknown),
        roots=len(families) - nested,
        families=nested,
        parameters=parameters,
        free_fraction=moved / parameters if parameters else 0.0,
        unread=tuple(analysis.unread),
        look=partial(choose_taps, trace, analysis.relations, closure, analysis.layouts, names),
        classify=partial(
            _classify, trace, analysis, closure, keys, placed_in, dict(zip(found, groups, strict=True)), pinned
        ),
        look_at_sums=partial(choose_sums, trace, analysis.relations, closure, analysis.layouts, names),
    )


def _real_elements(trace: Trace, value: int) -> int:
    """The elements of a tensor; 0 for a mask, an index or a counter."""
    described = trace.values[value]
    return prod(described.shape) if described.dtype.is_floating_point or described.dtype.is_complex else 0


def _classify(
    trace: Trace,
    analysis: Analysis,
    closure: Closure,
    keys: dict[int, list[str]],
    placed: dict[int, list[FibreSite]],
    groups: dict[tuple[int, int], AxisGroup],
    pinned: tuple[PinnedAxis, ...],
) -> PermutationSpec:
    from rebasin_cli.symmetry.classes.classify import Classifier

    with collector_paused():
        return PermutationSpec(Classifier(trace, analysis, closure, keys, placed).groups(groups), pinned)


def _sites(analysis: Analysis, readout: Readout, value: int) -> Iterator[FibreSite]:
    cut = analysis.cuts.get(value)
    if cut is not None:
        return cut.sites(readout, cut.pieces[0].key, analysis.shape_of(value))
    leaf = analysis.leaves[value]
    return readout.sites(leaf.key, analysis.relations.layout(leaf))


def _order_of_use(trace: Trace) -> dict[int, int]:
    order: dict[int, int] = {}
    for place, call in enumerate(trace.live):
        for value in call.inputs:
            order.setdefault(value, place)
    return order


def _groups(
    trace: Trace,
    closure: Closure,
    found: dict[tuple[int, int], list[FibreSite]],
    keys: dict[int, list[str]],
    names: dict[tuple[int, int], str],
) -> tuple[AxisGroup, ...]:
    groups = []
    of_family: dict[int, tuple[list[int], list[int]]] = {}
    for (family, fibre), placed in found.items():
        if family not in of_family:
            fibres = closure.families[family].fibre
            of_family[family] = np.bincount(fibres).tolist(), first_places(fibres).tolist()
        sizes, firsts = of_family[family]
        sites = tuple(site for item in placed for site in _everywhere(item.site, keys[trace.state[item.site.key]]))
        parent = _parent(closure, family, firsts[fibre], names)
        groups.append(AxisGroup(names[family, fibre], sizes[fibre], sites, parent))
    return tuple(groups)


def _everywhere(site: Site, keys: Sequence[str]) -> list[Site]:
    """The site under all names of its tensor."""
    return [site if key == site.key else replace(site, key=key) for key in keys]


def _parent(closure: Closure, family: int, unit: int, names: dict[tuple[int, int], str]) -> ParentBlock | None:
    """The group whose block contains this unit. A parent that does not move is skipped in favour of its own parent."""
    own = closure.families[family]
    while own.parents:
        which, upward = own.parents[0]
        unit = int(upward[unit])
        own = closure.families[which]
        key = (which, int(own.fibre[unit]))
        if key in names:
            return ParentBlock(names[key], int(own.local[unit]))
    return None


def _pinned(
    trace: Trace,
    analysis: Analysis,
    closure: Closure,
    moved_axes: set[tuple[str, int]],
    alone: set[tuple[str, int]],
) -> list[PinnedAxis]:
    """Every axis of more than one position that no group moves, with the reason."""
    pinned = []
    counted = trace.numbers_read
    for key, value in trace.state.items():
        cut = analysis.cuts.get(value)
        leaves = cut.pieces if cut is not None else (analysis.leaves[value],) if value in analysis.leaves else ()
        layouts = [analysis.relations.layout(leaf) for leaf in leaves] or [analysis.layout_of(value)]
        first = leaves[0].key if leaves else key
        for axis, size in enumerate(analysis.shape_of(value)):
            if size != 1 and (first, axis) not in moved_axes:
                if (first, axis) in alone:
                    reason = ALONE if value in counted else OVERWRITTEN
                else:
                    reason = _reason(analysis.relations, closure, layouts, axis)
                pinned.append(PinnedAxis(key, axis, reason))
    return pinned


def _reason(relations: Relations, closure: Closure, layouts: Sequence[AxisLayout], axis: int) -> str:
    for layout in layouts:
        for factor in layout.dims[axis]:
            if factor in layout.fixed:
                return layout.fixed[factor]
    for entry in (e for layout in layouts for f in layout.dims[axis] for e in layout.entries if f in e.factors):
        known = closure.reason[relations.ids(entry).ravel()]
        known = known[known >= 0]
        if len(known):
            return closure.reasons[int(known[0])]
    return "no two units are interchangeable"


def _group_names(
    trace: Trace, closure: Closure, found: dict[tuple[int, int], list[FibreSite]]
) -> dict[tuple[int, int], str]:
    """A name for every (family, fibre), unique in the model."""
    names: dict[tuple[int, int], str] = {}
    used: dict[tuple[str, bool], int] = {}
    makers = {key: _maker(trace, placed) for key, placed in found.items()}
    stems: dict[int, tuple[str, str]] = {}
    for (family, fibre), maker in makers.items():
        nested = bool(closure.families[family].parents)
        if family not in stems:
            count = used[maker, nested] = used.get((maker, nested), 0) + 1
            stems[family] = maker, "" if count == 1 else f"#{count}"
        stem, which = stems[family]
        names[family, fibre] = f"{stem}[{fibre}]{which}" if nested else f"{stem}{which}"
    return names


def _maker(trace: Trace, placed: list[FibreSite]) -> str:
    """The module that produces these units: of a weight whose rows they are, if there is one."""
    trained = [item.site for item in placed if item.site.key in trace.trainable] or [item.site for item in placed]
    rows = [site for site in trained if site.axis == 0 and trace.values[trace.state[site.key]].shape[1:]]
    site = (rows or trained)[0]
    return trace.owners.get(site.key) or site.key
