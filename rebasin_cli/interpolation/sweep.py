"""The results of a sweep: the points of each curve, the barrier, the best network.

Barrier = max over lam in (0, 1) of `loss(lam) - ((1 - lam) loss(A) + lam loss(B))`, at least 0; for accuracy with the
sign turned. A line through more than two checkpoints has the largest of its segments' barriers. Where statistics are
measured for the interpolated networks, A and B are the checkpoints with statistics measured in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from rebasin_cli.execution.scores import FIELDS, Values, values
from rebasin_cli.interpolation.line import Point, SweepNetworks

BestBy = Literal["loss", "accuracy"]


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One network on a curve, `lam` in its segment. None means not finite or not measured.

    The standard errors of rise and drop are those of the loss above, and of the accuracy below, the line between the
    values at the segment's ends: None at the ends. `chance` and `most_frequent` are accuracies of
    guessing, see `Values`. `batch_means`: the user's loss
    gives one mean for each batch, so the standard error of the loss is that over batches. `mixed`: lam is another one
    for some tensors, see `lams`; such a network is not on the line.
    """

    segment: int
    lam: float
    loss: float | None
    accuracy: float | None
    top5: float | None
    metric: float | None
    n: int
    finite: bool
    loss_standard_error: float | None = None
    accuracy_standard_error: float | None = None
    rise_standard_error: float | None = None
    drop_standard_error: float | None = None
    chance: float | None = None
    most_frequent: float | None = None
    batch_means: bool = False
    mixed: bool = False

    @property
    def at_end(self) -> bool:
        """Whether it is a checkpoint."""
        return self.lam in (0.0, 1.0) and not self.mixed

    @property
    def between(self) -> bool:
        """Whether it lies on the line between two checkpoints."""
        return 0.0 < self.lam < 1.0 and not self.mixed


@dataclass(frozen=True, slots=True)
class Barrier:
    """None where a point of the curve was not measured or is not finite.

    A standard error is that of the rise at the lam where it is largest, paired over samples. It is not corrected for
    that choice of lam: the largest of several measured rises is a little too large on average.
    """

    loss: float | None
    accuracy: float | None
    loss_standard_error: float | None = None
    accuracy_standard_error: float | None = None


@dataclass(frozen=True, slots=True)
class Best:
    """The best network of one curve, its ends included; `path` is where it was saved."""

    curve: str
    segment: int
    lam: float
    loss: float | None
    accuracy: float | None
    path: Path | None = None
    mixed: bool = False


@dataclass(frozen=True, slots=True)
class Ends:
    """The checkpoints along each curve: as they were loaded, and with statistics measured, where any are."""

    as_loaded: Mapping[str, tuple[SweepPoint, ...]]
    as_treated: Mapping[str, tuple[SweepPoint, ...]] | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """All curves of a run; `skipped` counts samples that could not be read."""

    curves: Mapping[str, tuple[SweepPoint, ...]]
    barrier: Mapping[str, Barrier]
    ends: Ends | None
    best: Best | None
    n: int
    skipped: int


NOTHING_EVALUATED = Sweep(curves={}, barrier={}, ends=None, best=None, n=0, skipped=0)


def summarize(networks: SweepNetworks, sums: Mapping[str, Tensor], *, best_by: BestBy = "loss") -> Sweep:
    """Curves, barriers and the best network from sums by network."""
    curves = {
        curve: tuple(_point(point, values(sums[name])) for point, name in row) for curve, row in networks.curves.items()
    }
    any_sums = next(iter(sums.values()))
    return Sweep(
        curves=curves,
        barrier={curve: barrier(points) for curve, points in curves.items()},
        ends=_ends(networks, curves, sums),
        best=best(curves, best_by),
        n=int(any_sums[FIELDS.index("samples")]),
        skipped=int(any_sums[FIELDS.index("skipped")]),
    )


def _ends(networks: SweepNetworks, curves: Mapping[str, Sequence[SweepPoint]], sums: Mapping[str, Tensor]) -> Ends:
    loaded = {
        curve: tuple(_point(_place(number, len(names)), values(sums[name])) for number, name in enumerate(names))
        for curve, names in networks.loaded.items()
    }
    if not any(network.treated for network in networks.all):
        return Ends(loaded, None)
    treated = {
        curve: tuple(_at(points, _place(number, len(loaded[curve]))) for number in range(len(loaded[curve])))
        for curve, points in curves.items()
    }
    return Ends(loaded, treated)


def _place(number: int, checkpoints: int) -> Point:
    """The point of a checkpoint: the first of its segment, but for the last."""
    return Point(number, 0.0) if number < checkpoints - 1 else Point(number - 1, 1.0)


def _at(points: Sequence[SweepPoint], place: Point) -> SweepPoint:
    return next(point for point in points if point.at_end and (point.segment, point.lam) == (place.segment, place.lam))


def _point(point: Point, found: Values) -> SweepPoint:
    return SweepPoint(
        segment=point.segment,
        lam=point.lam,
        loss=found.loss,
        accuracy=found.accuracy,
        top5=found.top5,
        metric=found.metric,
        n=found.n,
        finite=found.finite,
        loss_standard_error=found.loss_standard_error,
        accuracy_standard_error=found.accuracy_standard_error,
        rise_standard_error=found.rise_standard_error,
        drop_standard_error=found.drop_standard_error,
        chance=found.chance,
        most_frequent=found.most_frequent,
        batch_means=found.batch_means,
        mixed=point.mixed,
    )


def barrier(points: Sequence[SweepPoint]) -> Barrier:
    """The barriers of one curve, with the standard errors at the points where they are reached."""
    points = [point for point in points if not point.mixed]
    losses = highest_rise([(point.segment, point.lam, point.loss) for point in points])
    drops = [(point.segment, point.lam, None if point.accuracy is None else -point.accuracy) for point in points]
    accuracies = highest_rise(drops)
    return Barrier(
        None if losses is None else max(0.0, losses[0]),
        None if accuracies is None else max(0.0, accuracies[0]),
        None if losses is None else points[losses[1]].rise_standard_error,
        None if accuracies is None else points[accuracies[1]].drop_standard_error,
    )


def highest_rise(points: Sequence[tuple[int, float, float | None]]) -> tuple[float, int] | None:
    """The largest rise above the linear interpolation of the values at the segment's ends, and the index of its point.

    Only points between the ends count. None if a segment has no such point, or a value is missing.

    Args:
        points: (segment, lam, value) each.
    """
    found: list[tuple[float, int]] = []
    for segment in sorted({segment for segment, _, _ in points}):
        row = {lam: (value, index) for index, (number, lam, value) in enumerate(points) if number == segment}
        a, b = (row.get(lam, (None, 0))[0] for lam in (0.0, 1.0))
        inner = {lam: value for lam, value in row.items() if 0.0 < lam < 1.0}
        if a is None or b is None or not inner:
            return None
        for lam, (value, index) in inner.items():
            if value is None:
                return None
            found.append((value - (a + lam * (b - a)), index))
    return max(found, key=lambda rise: rise[0]) if found else None


def best(curves: Mapping[str, Sequence[SweepPoint]], by: BestBy = "loss") -> Best | None:
    """The network with the lowest loss or the highest accuracy on the curve after alignment, or on the only curve.

    The curve before alignment does not take part where there is another: its networks are not those that were asked
    for. Of several equal ones, the one that is better by the other measure is taken, then the first along the line.
    """
    if not curves:
        return None
    curve = "matched" if "matched" in curves else next(iter(curves))

    def order(point: SweepPoint) -> tuple[float, float]:
        loss = math.inf if point.loss is None else point.loss
        error = math.inf if point.accuracy is None else -point.accuracy
        return (loss, error) if by == "loss" else (error, loss)

    found = [point for point in curves[curve] if point.loss is not None and math.isfinite(order(point)[0])]
    if not found:
        return None
    point = min(found, key=order)
    return Best(curve, point.segment, point.lam, point.loss, point.accuracy, mixed=point.mixed)
