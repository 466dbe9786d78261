"""Where the units of every group can be seen at work: results of operations, and the sites of the groups in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rebasin_cli.spec import Site, Tap
from rebasin_cli.symmetry.positions import AxisLayout, RowChoice
from rebasin_cli.symmetry.readout import FibreSite, Irregular, Readout
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.tracing.graph import Ref, Trace
from rebasin_cli.tracing.operations import OBSERVED, has, is_counted

TAPS_PER_GROUP = 4
"""A residual stream is seen at many places; so many of them, spread over the pass, speak for it."""


@dataclass(frozen=True, slots=True)
class Place:
    """An axis along which units lie: of an operation's argument, or of its result where `operand` is empty."""

    ordinal: int
    operand: str
    axis: int
    length: int

    @property
    def key(self) -> tuple[int, str, int]:
        return self.ordinal, self.operand, self.axis


def choose_taps(
    trace: Trace,
    relations: Relations,
    closure: Closure,
    layouts: Mapping[int, AxisLayout],
    names: Mapping[tuple[int, int], str],
) -> tuple[Tap, ...]:
    """Taps for all groups whose units lie along one axis somewhere; where weights read them is preferred."""
    readout = Readout(closure, relations)
    seen: dict[str, list[Place]] = {}
    present: dict[tuple[int, str, int], list[tuple[str, Site]]] = {}
    for read in (True, False):
        if len(seen) == len(names):
            break
        found: dict[str, list[Place]] = {}
        for ordinal, operand, value in _visible(trace, layouts, read):
            for placed in _sites(readout, layouts[value]):
                name, site = names.get((placed.family, placed.fibre)), placed.site
                if name is not None and site.span == 1:
                    place = Place(ordinal, operand or "", site.axis, trace.values[value].shape[site.axis])
                    present.setdefault(place.key, []).append((name, site))
                    if name not in seen:
                        found.setdefault(name, []).append(place)
        seen.update(found)
    chosen = {place.key: place.length for places in seen.values() for place in _best(places)}
    return tuple(
        Tap(ordinal, operand or None, axis, length, tuple(present[ordinal, operand, axis]))
        for (ordinal, operand, axis), length in sorted(chosen.items())
    )


def _sites(readout: Readout, layout: AxisLayout) -> list[FibreSite]:
    """All sites in a result; none where they are irregular: what nobody permutes needs no site of its own."""
    try:
        return list(readout.sites("", layout))
    except Irregular:
        return []


def _best(places: Sequence[Place]) -> Sequence[Place]:
    """Of the shortest axes a few, evenly over the pass, the last always among them."""
    shortest = min(place.length for place in places)
    places = [place for place in places if place.length == shortest]
    if len(places) <= TAPS_PER_GROUP:
        return places
    last = len(places) - 1
    return [places[round(last * k / (TAPS_PER_GROUP - 1))] for k in range(TAPS_PER_GROUP)]


def _visible(trace: Trace, layouts: Mapping[int, AxisLayout], read: bool) -> Iterable[tuple[int, str | None, int]]:
    """Ordinal, argument name and value of what contractions read, or of what counted operations give."""
    ordinal = -1
    live = {id(call) for call in trace.live}
    weights = set(trace.state.values())
    for call in trace.calls:
        counted = not call.synthetic and is_counted(call.overload)
        ordinal += counted
        if not counted or id(call) not in live:
            continue
        values: list[tuple[str | None, int]] = []
        if not read and call.results and call.results[0] is not None:
            values.append((None, call.results[0]))
        elif read and has(call.name, OBSERVED):
            values.extend((name, ref.value) for name, ref in call.arguments.items() if isinstance(ref, Ref))
        for name, value in values:
            layout = layouts.get(value)
            floating = trace.values[value].dtype.is_floating_point
            if layout is not None and any(isinstance(f, RowChoice) for entry in layout.entries for f in entry.factors):
                continue  # rows of different blocks: no axis holds the units of one of them
            if layout is not None and layout.entries and layout.leaf is None and floating and value not in weights:
                yield ordinal, name, value
