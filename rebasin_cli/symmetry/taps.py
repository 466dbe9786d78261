"""Where the units of every group can be seen at work: results of operations, and the sites of the groups in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from rebasin_cli.spec import Site
from rebasin_cli.symmetry.positions import Layout
from rebasin_cli.symmetry.readout import FibreSite, sites_of_leaf
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import Closure
from rebasin_cli.trace.capture import Tap, counts
from rebasin_cli.trace.graph import Trace

CONTRACTIONS = frozenset(
    f"aten.{name}" for name in ("addmm", "baddbmm", "bmm", "convolution", "linear", "mm", "native_layer_norm")
)
"""Operations that read units: what goes into them is what the units say to the rest of the network."""

TAPS_PER_GROUP = 4
"""A residual stream is seen at many places; so many of them, spread over the pass, speak for it."""


def choose_taps(
    trace: Trace,
    relations: Relations,
    closure: Closure,
    layouts: Mapping[int, Layout],
    names: Mapping[tuple[int, int], str],
) -> tuple[Tap, ...]:
    """Taps for all groups whose units lie along one axis of some result; those that weights read are preferred."""
    read = {value for call in trace.live if call.name in CONTRACTIONS for value in call.inputs}
    seen: dict[str, list[tuple[bool, int, FibreSite]]] = {}
    ordinal = -1
    live = {id(call) for call in trace.live}
    for call in trace.calls:
        counted = not call.synthetic and counts(call.overload)
        ordinal += counted
        if not counted or id(call) not in live or not call.results or call.results[0] is None:
            continue
        value = call.results[0]
        layout = layouts.get(value)
        if layout is None or not trace.values[value].dtype.is_floating_point or not layout.entries:
            continue
        for placed in sites_of_leaf(closure, relations, str(value), layout):
            name = names.get((placed.family, placed.fibre))
            if name is not None and placed.site.span == 1:
                seen.setdefault(name, []).append((value in read, ordinal, placed))
    return _gathered(trace, seen)


def _gathered(trace: Trace, seen: Mapping[str, list[tuple[bool, int, FibreSite]]]) -> tuple[Tap, ...]:
    taps: dict[tuple[int, int], list[tuple[str, Site]]] = {}
    for name, places in seen.items():
        best = [place for place in places if place[0]] or places
        shortest = min(_length(trace, placed) for _, _, placed in best)
        best = [place for place in best if _length(trace, place[2]) == shortest]
        for _, ordinal, placed in _spread(best):
            taps.setdefault((ordinal, placed.site.axis), []).append((name, placed.site))
    return tuple(
        Tap(ordinal, axis, site_length(trace, sites), tuple((name, replace(site, key="")) for name, site in sites))
        for (ordinal, axis), sites in sorted(taps.items())
    )


def _spread(places: list[tuple[bool, int, FibreSite]]) -> Iterable[tuple[bool, int, FibreSite]]:
    """A few of them, evenly over the pass, the last always among them."""
    if len(places) <= TAPS_PER_GROUP:
        return places
    last = len(places) - 1
    return [places[round(last * k / (TAPS_PER_GROUP - 1))] for k in range(TAPS_PER_GROUP)]


def _length(trace: Trace, placed: FibreSite) -> int:
    return trace.values[int(placed.site.key)].shape[placed.site.axis]


def site_length(trace: Trace, sites: list[tuple[str, Site]]) -> int:
    site = sites[0][1]
    return trace.values[int(site.key)].shape[site.axis]
