"""Chooses where the units of every group are observed: axes of what operations read or return.

What matters of a unit is what the weights after it read, so it is observed there: after the norm, whose gains are part
of it, and after the nonlinearity. Before a LayerNorm the scale is arbitrary, and before a ReLU half of it is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np

from rebasin_cli.spec import Site, Tap
from rebasin_cli.symmetry.positions import AxisLayout, RowChoice
from rebasin_cli.symmetry.readout import FibreSite, Irregular, Readout
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.tracing.graph import Call, Ref, Trace
from rebasin_cli.tracing.operations import CONTRACTION, WHOLE, has, is_counted

TAPS_PER_GROUP = 8
"""A residual stream is read by many operations; this many, spread over the pass, represent it."""

_SUMMED = {"weight": 1, "mat2": 0, "self": 1, "mat1": 1}
"""The axis of weights that a contraction sums over, by the name of the argument that they are."""

Name = tuple[int, int]
"""Family and fibre: what a group is before it has a name."""


class Place(Enum):
    """Kinds of places, the best first; a group is observed at those of the first kind that it has."""

    WEIGHTS = "what a contraction with weights along the group's axis reads"
    CONTRACTION = "what another contraction reads, such as queries and keys"
    RESULT = "what an operation returns"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible tap: an axis of an operation's argument, or of its result where `operand` is empty.

    Attributes:
        source: the value of which the argument is another arrangement; two operations may read the same.
        reader: see `Tap`.
    """

    ordinal: int
    operand: str
    axis: int
    length: int
    source: int
    reader: tuple[str, int] | None = None

    @property
    def key(self) -> tuple[int, str, int]:
        return self.ordinal, self.operand, self.axis


def choose_taps(
    trace: Trace,
    relations: Relations,
    closure: Closure,
    layouts: Mapping[int, AxisLayout],
    names: Mapping[Name, str],
) -> tuple[Tap, ...]:
    """Taps for all groups whose units lie along one axis somewhere; see `Place` for which are preferred."""
    sites = _Sites(closure, relations, layouts, names)
    visible = _Visible(trace, layouts)
    seen: dict[str, list[Candidate]] = {}
    present: dict[tuple[int, str, int], list[tuple[str, Site]]] = {}
    for kind in Place:
        if len(seen) == len(names):
            break
        found: dict[str, list[Candidate]] = {}
        for ordinal, call, operand, value, weights in visible.of(kind):
            read = {name for one in weights.values() for name, _ in sites.of(one)}
            for name, site in sites.of(value):
                if site.span == 1 and (kind is not Place.WEIGHTS or name in read):
                    length = trace.values[value].shape[site.axis]
                    reader = visible.reader(call, weights, length)
                    candidate = Candidate(ordinal, operand or "", site.axis, length, visible.source(value), reader)
                    if name not in seen:
                        found.setdefault(name, []).append(candidate)
                    alone = ((other, one) for other, one in sites.of(value) if (one.axis, one.span) == (site.axis, 1))
                    present[candidate.key] = list(alone)
        seen.update(found)
    chosen = {candidate.key: candidate for candidates in seen.values() for candidate in _best(candidates)}
    return tuple(_tap(candidate, present[key], sites.sizes) for key, candidate in sorted(chosen.items()))


def _tap(candidate: Candidate, sites: Sequence[tuple[str, Site]], sizes: Mapping[str, int]) -> Tap:
    """A tap; where one group alone fills the axis, of its units with their positions.

    So a tap on the channels of an image that is flattened before it is read is as long as there are channels.
    """
    name, site = sites[0]
    units, operand = sizes[name], candidate.operand or None
    alone = len(sites) == 1 and site.positions is None
    acts: tuple[tuple[str, Site], ...] = tuple(sites)
    outer = inner = 1
    if alone and candidate.length == units * site.outer * site.inner:
        acts = ((name, replace(site, outer=1, inner=1)),)
        outer, inner = site.outer, site.inner
    else:
        units = candidate.length
    return Tap(candidate.ordinal, operand, candidate.axis, units, acts, outer, inner, candidate.reader)


class _Sites:
    """The sites of groups in the values of a pass, and the sizes of the groups."""

    def __init__(
        self, closure: Closure, relations: Relations, layouts: Mapping[int, AxisLayout], names: Mapping[Name, str]
    ) -> None:
        self._readout, self._layouts, self._names = Readout(closure, relations), layouts, names
        counts = {family: np.bincount(closure.families[family].fibre) for family, _ in names}
        self.sizes = {name: int(counts[family][fibre]) for (family, fibre), name in names.items()}
        self._known: dict[int, list[tuple[str, Site]]] = {}

    def of(self, value: int) -> list[tuple[str, Site]]:
        """Groups and where they act; none where a site is irregular, as activations need not be permuted."""
        if value not in self._known:
            self._known[value] = [
                (self._names[placed.family, placed.fibre], placed.site)
                for placed in self._placed(value)
                if (placed.family, placed.fibre) in self._names
            ]
        return self._known[value]

    def _placed(self, value: int) -> list[FibreSite]:
        if value not in self._layouts:
            return []
        try:
            return list(self._readout.sites("", self._layouts[value]))
        except Irregular:
            return []


class _Visible:
    """What can be observed while the model runs again: values that depend on its input."""

    def __init__(self, trace: Trace, layouts: Mapping[int, AxisLayout]) -> None:
        self._trace, self._layouts = trace, layouts
        self._moving = set(trace.inputs)
        self._sources: dict[int, int] = {}
        for call in trace.calls:
            if not self._moving.isdisjoint(call.inputs):
                self._moving.update(value for value in call.results if value is not None)
            if has(call.name, WHOLE) and len(call.inputs) == 1 and call.results[0] is not None:
                self._sources[call.results[0]] = self.source(call.inputs[0])

    def source(self, value: int) -> int:
        """The value of which this one is another arrangement, or itself."""
        return self._sources.get(value, value)

    def reader(self, call: Call, weights: Mapping[str, int], length: int) -> tuple[str, int] | None:
        """The argument that holds the weights of a contraction, and its axis for units along an axis of this length.

        That is the axis that is summed over; of a convolution channel by channel, that of the channels.
        """
        for name, value in weights.items():
            shape = self._trace.values[value].shape
            axis = _SUMMED.get(name, 0) if not call.arguments.get("transposed") else 0
            if name == "weight" and len(shape) > 2 and shape[1] == 1:
                axis = 0
            if len(shape) > 1 and shape[axis] == length:
                return name, axis
        return None

    def of(self, kind: Place) -> Iterator[tuple[int, Call, str | None, int, dict[str, int]]]:
        """Ordinal, call, argument name (None: the result) and value; and the weights that are contracted with it."""
        for ordinal, call in self._counted():
            for name, value, weights in self._values(call, kind):
                if self._is_observable(value):
                    yield ordinal, call, name, value, weights

    def _counted(self) -> Iterator[tuple[int, Call]]:
        live = {id(call) for call in self._trace.live}
        ordinal = -1
        for call in self._trace.calls:
            if not call.synthetic and is_counted(call.overload):
                ordinal += 1
                if id(call) in live:
                    yield ordinal, call

    def _values(self, call: Call, kind: Place) -> Iterable[tuple[str | None, int, dict[str, int]]]:
        if kind is Place.RESULT:
            return [(None, call.results[0], {})] if call.results and call.results[0] is not None else []
        if not has(call.name, CONTRACTION):
            return []
        read = [(name, ref.value) for name, ref in call.arguments.items() if isinstance(ref, Ref)]
        weights = {name: value for name, value in read if value not in self._moving}
        return [(name, value, weights) for name, value in read if kind is Place.CONTRACTION or weights]

    def _is_observable(self, value: int) -> bool:
        layout = self._layouts.get(value)
        if layout is None or not layout.entries or value not in self._moving:
            return False
        if any(isinstance(factor, RowChoice) for entry in layout.entries for factor in entry.factors):
            return False  # rows of different blocks: no axis contains the units of one of them
        return self._trace.values[value].dtype.is_floating_point


def _best(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """A few of the shortest axes, each value once, evenly spread over the pass and including the last."""
    shortest = min(candidate.length for candidate in candidates)
    once = {(candidate.source, candidate.axis): candidate for candidate in candidates if candidate.length == shortest}
    kept = list(once.values())
    if len(kept) <= TAPS_PER_GROUP:
        return kept
    last = len(kept) - 1
    return [kept[round(last * k / (TAPS_PER_GROUP - 1))] for k in range(TAPS_PER_GROUP)]
