"""From the record of a forward pass to a permutation spec: apply the rules, close the relations, read out the
groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod

import numpy as np

from rebasin_cli.errors import ModelError
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, PinnedAxis
from rebasin_cli.symmetry import rules as _rules  # noqa: F401  (the rules register themselves)
from rebasin_cli.symmetry.naming import group_names
from rebasin_cli.symmetry.positions import Layout, Leaf, fixed_layout, free_layout
from rebasin_cli.symmetry.readout import FibreSite, sites_of_leaf
from rebasin_cli.symmetry.registry import RULES, Op, constant_layout, fixed_results, hold_all
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.rules.pointwise import is_pointwise, pointwise
from rebasin_cli.symmetry.solver import Closure, solve
from rebasin_cli.symmetry.taps import Tap, choose_taps
from rebasin_cli.trace.graph import Call, Trace

INPUT = "the model's input keeps its order"
OUTPUT = "the model's output keeps its order"
TABLE = "a counter or an index table"
UNREAD = "not read in this forward pass"
DEAD = "the model does not read these numbers: they are overwritten or cancel out"
ASKED = "pinned by request"


@dataclass(frozen=True, slots=True)
class UnknownOp:
    """An operation without a rule: everything that it touches keeps its order."""

    op: str
    scope: str
    pinned_axes: int


@dataclass(frozen=True)
class Derivation:
    """What a model's symmetries are.

    Attributes:
        spec: the axis groups and the pinned axes.
        unknown_ops: operations that no rule covers.
        roots, families: groups that act on their own; families of inner groups, one group for each block of a parent.
        parameters: number of floating-point elements in the state.
        free_fraction: share of them that at least one group moves.
        taps: where the units of the groups can be seen at work, if that was asked for.
    """

    spec: PermutationSpec
    unknown_ops: tuple[UnknownOp, ...]
    roots: int
    families: int
    parameters: int
    free_fraction: float
    taps: tuple[Tap, ...] = ()

    @property
    def units(self) -> int:
        return self.spec.units


def derive(trace: Trace, *, pins: tuple[str, ...] = (), strict: bool = False, with_taps: bool = False) -> Derivation:
    """Find every permutation symmetry of the recorded pass.

    Args:
        trace: the record.
        pins: patterns of tensor names (`*.bias`) whose axes all keep their order.
        strict: refuse operations without a rule instead of pinning what they touch.
        with_taps: also say where activations of every group can be read.

    Raises:
        ModelError: `strict`, and an operation has no rule.
    """
    analysis = _Analysis(trace, pins)
    analysis.run()
    if strict and analysis.unknown:
        worst = analysis.unknown[0]
        where = f" (in module {worst.scope!r})" if worst.scope else ""
        raise ModelError(
            f"no rule covers the operation {worst.op}{where}", hint="leave out --strict to pin what it touches"
        )
    closure = analysis.close(with_taps)
    return _read_out(trace, analysis, closure, with_taps)


@dataclass
class _Analysis:
    trace: Trace
    pins: tuple[str, ...]
    relations: Relations = field(default_factory=Relations)
    layouts: dict[int, Layout] = field(default_factory=dict)
    leaves: dict[int, Leaf] = field(default_factory=dict)
    unknown: list[UnknownOp] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key, value in self.trace.state.items():
            described = self.trace.values[value]
            if value in self.leaves or value in self.layouts:
                continue
            if value in self.trace.constants or not described.dtype.is_floating_point:
                self.layouts[value] = fixed_layout(described.shape, TABLE)
            elif any(fnmatchcase(key, pattern) for pattern in self.pins):
                self.layouts[value] = fixed_layout(described.shape, ASKED)
            else:
                self.leaves[value] = Leaf(key, free_layout(described.shape))
        for value in self.trace.inputs:
            self.layouts[value] = fixed_layout(self.trace.values[value].shape, INPUT)

    def layout_of(self, value: int) -> Layout:
        if value in self.leaves:
            return self.leaves[value].view(range(len(self.leaves[value].layout.dims)))
        layout = self.layouts.get(value)
        if layout is None:
            numbers = self.trace.constants.get(value)
            shape = self.trace.values[value].shape
            layout = fixed_layout(shape, TABLE) if numbers is None else constant_layout(numbers)
            self.layouts[value] = layout
        if layout.leaf is not None:
            return layout.leaf.view(layout.axes)
        return layout

    def shape_of(self, value: int) -> tuple[int, ...]:
        return self.trace.values[value].shape

    def run(self) -> None:
        for call in self.trace.live:
            results = [value for value in call.results if value is not None]
            if all(value in self.trace.constants for value in results):
                continue
            op = Op(call, self.relations, self.layout_of, self.shape_of, self.trace.constants.get)
            if all(0 in shape for shape in op.result_shapes):
                found: list[Layout | None] = list(fixed_results(op, "empty"))
            else:
                found = self._apply(op, call)
            for value, layout in zip(results, found, strict=True):
                if layout is not None:
                    self._check(call, value, layout)
                    self.layouts[value] = layout
        for value in self.trace.outputs:
            hold_all(self.relations, self.layout_of(value), OUTPUT)

    def _apply(self, op: Op, call: Call) -> list[Layout | None]:
        rule = RULES.get(call.name) or (pointwise if is_pointwise(call.overload) else None)
        if rule is None:
            return self._pin(op, call)
        result = rule(op)
        return [result] if isinstance(result, Layout) else list(result)

    def _pin(self, op: Op, call: Call) -> list[Layout | None]:
        reason = f"the operation {call.name} has no rule"
        pinned = 0
        for layout in op.tensors:
            pinned += sum(1 for factor in layout.factors if factor not in layout.fixed)
            hold_all(self.relations, layout, reason)
        self.unknown.append(UnknownOp(call.overload, call.scope, pinned))
        return list(fixed_results(op, reason))

    def _check(self, call: Call, value: int, layout: Layout) -> None:
        if layout.shape != self.shape_of(value):
            raise AssertionError(f"rule for {call.overload}: {layout.shape} for a tensor of {self.shape_of(value)}")

    def close(self, with_activations: bool) -> Closure:
        used = {value for call in self.trace.live for value in call.inputs}
        for value, leaf in self.leaves.items():
            if value not in used and value not in self.trace.outputs:
                leaf.layout = fixed_layout(self.shape_of(value), UNREAD)
            for entry in leaf.layout.entries:
                self.relations.ids(entry)
        if with_activations:
            for layout in self.layouts.values():
                for entry in layout.entries:
                    self.relations.ids(entry)
        return solve(self.relations)


def _read_out(trace: Trace, analysis: _Analysis, closure: Closure, with_taps: bool) -> Derivation:
    order = _order_of_use(trace)
    found: dict[tuple[int, int], list[FibreSite]] = {}
    keys: dict[int, list[str]] = {}
    for key, value in trace.state.items():
        keys.setdefault(value, []).append(key)
    dead: set[tuple[str, int]] = set()
    parameters = 0
    for value, leaf in sorted(analysis.leaves.items(), key=lambda item: order.get(item[0], len(trace.values))):
        parameters += prod(analysis.shape_of(value))
        for placed in sites_of_leaf(closure, analysis.relations, leaf.key, leaf.layout):
            found.setdefault((placed.family, placed.fibre), []).append(placed)
    for value, layout in analysis.layouts.items():
        if value in keys and trace.values[value].dtype.is_floating_point:
            parameters += prod(layout.shape)
    for group, placed_sites in list(found.items()):
        only = placed_sites[0].site.key
        if len(placed_sites) == 1 and len(analysis.shape_of(trace.state[only])) == 1:
            del found[group]
            dead.add((only, 0))
    names = group_names(trace, closure, found)
    groups = _groups(trace, closure, found, keys, names)
    moved_axes = {(item.site.key, axis) for placed in found.values() for item in placed for axis in item.axes}
    moved = sum(prod(analysis.shape_of(trace.state[key])) for key in {key for key, _ in moved_axes})
    pinned = tuple(_pinned(trace, analysis, closure, moved_axes, dead))
    families = {family for family, _ in found}
    nested = sum(1 for family in families if closure.families[family].parents)
    return Derivation(
        spec=PermutationSpec(groups, pinned),
        unknown_ops=tuple(analysis.unknown),
        roots=len(families) - nested,
        families=nested,
        parameters=parameters,
        free_fraction=moved / parameters if parameters else 0.0,
        taps=choose_taps(trace, analysis.relations, closure, analysis.layouts, names) if with_taps else (),
    )


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
    for (family, fibre), placed in found.items():
        own = closure.families[family]
        members = np.flatnonzero(own.fibre == fibre)
        sites = tuple(replace(item.site, key=key) for item in placed for key in keys[trace.state[item.site.key]])
        parent = _parent(closure, family, members, names)
        groups.append(AxisGroup(names[family, fibre], len(members), sites, parent))
    return tuple(groups)


def _parent(
    closure: Closure, family: int, members: np.ndarray, names: dict[tuple[int, int], str]
) -> ParentBlock | None:
    """The group whose block these units live in; a parent that cannot move itself is passed over for its own parent."""
    own = closure.families[family]
    unit = int(members[0])
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
    analysis: _Analysis,
    closure: Closure,
    moved_axes: set[tuple[str, int]],
    dead: set[tuple[str, int]],
) -> list[PinnedAxis]:
    """Every axis of more than one position that no group moves, with the reason."""
    pinned = []
    for key, value in trace.state.items():
        leaf = analysis.leaves.get(value)
        layout = leaf.layout if leaf is not None else analysis.layout_of(value)
        first = leaf.key if leaf is not None else key
        for axis, dim in enumerate(layout.dims):
            if dim and (first, axis) not in moved_axes:
                reason = DEAD if (first, axis) in dead else _reason(analysis.relations, closure, layout, axis)
                pinned.append(PinnedAxis(key, axis, reason))
    return pinned


def _reason(relations: Relations, closure: Closure, layout: Layout, axis: int) -> str:
    for factor in layout.dims[axis]:
        if factor in layout.fixed:
            return layout.fixed[factor]
    for factor in layout.dims[axis]:
        for entry in layout.entries:
            if factor in entry.factors:
                known = closure.reason[relations.ids(entry).ravel()]
                known = known[known >= 0]
                if len(known):
                    return closure.reasons[int(known[0])]
    return "its units are told apart by how the model uses them"
