"""The results of a sweep: the points of each curve, the barrier, the best network.

Barrier = max over lam of `loss(lam) - ((1 - lam) loss(A) + lam loss(B))`; for accuracy with the sign turned.
A line through more than two checkpoints has the largest of its segments' barriers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rebasin_cli.execution.evaluation import FIELDS, values
from rebasin_cli.interpolation.line import SweepNetworks


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One network on a curve, `lam` in [0, 1] within its segment. None means not finite or not measured."""

    segment: int
    lam: float
    loss: float | None
    accuracy: float | None
    top5: float | None
    metric: float | None
    n: int
    finite: bool


@dataclass(frozen=True, slots=True)
class Barrier:
    """None where a point of the curve was not measured or is not finite."""

    loss: float | None
    accuracy: float | None


@dataclass(frozen=True, slots=True)
class Best:
    """The network with the lowest loss, checkpoints included; `path` is where it was saved."""

    curve: str
    segment: int
    lam: float
    loss: float | None
    accuracy: float | None
    path: Path | None = None


@dataclass(frozen=True, slots=True)
class Sweep:
    """All curves of a run; `skipped` counts samples that could not be read."""

    curves: Mapping[str, tuple[SweepPoint, ...]]
    barrier: Mapping[str, Barrier]
    best: Best | None
    n: int
    skipped: int


def summarize(networks: SweepNetworks, sums: Mapping[str, Tensor]) -> Sweep:
    """Curves, barriers and the best network from sums by network."""
    curves = {
        curve: tuple(_point(segment=point.segment, lam=point.lam, sums=sums[name]) for point, name in row)
        for curve, row in networks.curves.items()
    }
    any_sums = next(iter(sums.values()))
    return Sweep(
        curves=curves,
        barrier={curve: barrier(points) for curve, points in curves.items()},
        best=best(curves),
        n=int(any_sums[FIELDS.index("samples")]),
        skipped=int(any_sums[FIELDS.index("skipped")]),
    )


def _point(segment: int, lam: float, sums: Tensor) -> SweepPoint:
    found = values(sums)
    return SweepPoint(segment, lam, found.loss, found.accuracy, found.top5, found.metric, found.n, found.finite)


def barrier(points: Sequence[SweepPoint]) -> Barrier:
    """The barriers of one curve; at least 0, because the maximum includes the ends."""
    losses = [(point.segment, point.lam, point.loss) for point in points]
    accuracies = [(point.segment, point.lam, None if point.accuracy is None else -point.accuracy) for point in points]
    return Barrier(highest_rise(losses), highest_rise(accuracies))


def highest_rise(points: Sequence[tuple[int, float, float | None]]) -> float | None:
    """The largest rise above the linear interpolation of the values at the segment's ends, at least 0.

    None if a segment has no point between its ends, or a value is missing.

    Args:
        points: (segment, lam, value) each.
    """
    found: list[float] = []
    for segment in sorted({segment for segment, _, _ in points}):
        row = {lam: value for number, lam, value in points if number == segment}
        a, b = row.get(0.0), row.get(1.0)
        if a is None or b is None:
            return None
        inner = {lam: value for lam, value in row.items() if lam not in (0.0, 1.0)}
        if not inner or any(value is None for value in inner.values()):
            return None  # nothing between the ends was measured, or not all of it
        found += [value - (a + lam * (b - a)) for lam, value in inner.items() if value is not None]
    return max(0.0, *found) if found else None


def best(curves: Mapping[str, Sequence[SweepPoint]]) -> Best | None:
    """The network with the lowest finite loss; the first of several equal ones."""
    found: Best | None = None
    for curve, points in curves.items():
        for point in points:
            if point.loss is not None and (found is None or found.loss is None or point.loss < found.loss):
                found = Best(curve, point.segment, point.lam, point.loss, point.accuracy)
    return found
