"""Chooses where the units of every group are observed: axes of what operations read or return."""

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
"""A residual stream can be observed at many operations; this many, spread over the pass, represent it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible tap: an axis of an operation's argument, or of its result where `operand` is empty."""

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
    """Taps for all groups whose units lie along one axis somewhere; what contractions read is preferred."""
    readout = Readout(closure, relations)
    seen: dict[str, list[Candidate]] = {}
    present: dict[tuple[int, str, int], list[tuple[str, Site]]] = {}
    for read in (True, False):
        if len(seen) == len(names):
            break
        found: dict[str, list[Candidate]] = {}
        for ordinal, operand, value in _visible(trace, layouts, read):
            for placed in _sites(readout, layouts[value]):
                name, site = names.get((placed.family, placed.fibre)), placed.site
                if name is not None and site.span == 1:
                    candidate = Candidate(ordinal, operand or "", site.axis, trace.values[value].shape[site.axis])
                    present.setdefault(candidate.key, []).append((name, site))
                    if name not in seen:
                        found.setdefault(name, []).append(candidate)
        seen.update(found)
    chosen = {candidate.key: candidate.length for candidates in seen.values() for candidate in _best(candidates)}
    return tuple(
        Tap(ordinal, operand or None, axis, length, tuple(present[ordinal, operand, axis]))
        for (ordinal, operand, axis), length in sorted(chosen.items())
    )


def _sites(readout: Readout, layout: AxisLayout) -> list[FibreSite]:
    """All sites in an activation; none where they are irregular, as activations need not be permuted."""
    try:
        return list(readout.sites("", layout))
    except Irregular:
        return []


def _best(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """A few of the shortest axes, evenly spread over the pass and including the last."""
    shortest = min(candidate.length for candidate in candidates)
    candidates = [candidate for candidate in candidates if candidate.length == shortest]
    if len(candidates) <= TAPS_PER_GROUP:
        return candidates
    last = len(candidates) - 1
    return [candidates[round(last * k / (TAPS_PER_GROUP - 1))] for k in range(TAPS_PER_GROUP)]


def _visible(trace: Trace, layouts: Mapping[int, AxisLayout], read: bool) -> Iterable[tuple[int, str | None, int]]:
    """Ordinal, argument name and value of what `OBSERVED` operations read, or of what counted operations return."""
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
                continue  # rows of different blocks: no axis contains the units of one of them
            if layout is not None and layout.entries and layout.leaf is None and floating and value not in weights:
                yield ordinal, name, value
