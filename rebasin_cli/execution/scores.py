"""What networks score, as sums: the measures, and what the standard errors of their means are computed from.

Each measure is a float64 sum and the weight by which it is divided at the end, all in one vector. So sums of batches,
of pieces of batches and of processes are added in the same way, and an unfinished pass is plain numbers.

The standard error of a mean `m = sum(x) / sum(w)` over samples with values x and weights w (for a loss per pixel or per
token, w is the number of those) is `sqrt(n / (n - 1) sum((x - m w)^2)) / sum(w)`. The rise of an interpolated network's
loss over the line between those of its ends is a mean over samples too, of
`loss_lam - ((1 - lam) loss_A + lam loss_B)`, so its error is that of the differences within each sample.

A user's loss that returns one mean for a batch gives no values of single samples. Then the batch is the unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MEASURES = ("samples", "skipped", "loss", "loss_weight", "top1", "top5", "classified", "metric", "metric_weight")
CHANCE = "chance"
"""The sum over classified elements of 1 / classes: the hits of a network that guesses."""
SPREAD = ("units", "sum", "weight", "sum_squared", "sum_times_weight", "weight_squared")
SPREADS = ("loss", "accuracy", "rise", "drop")
"""Means with a standard error: the rise is that of the loss, the drop that of the accuracy, between two ends."""
CELLS = 64
"""Labels are counted in this many cells, by their remainder: exact for fewer classes, and an upper bound for more."""
LABELS = tuple(f"label {cell}" for cell in range(CELLS))
FIELDS = (*MEASURES, CHANCE, *LABELS, "batch_means", *(f"{mean} {field}" for mean in SPREADS for field in SPREAD))


@dataclass(frozen=True, slots=True)
class Values:
    """The measures of one network. Accuracies lie in [0, 1]; None means not measured.

    `loss` and `metric` are also None where they are infinite or not a number; then `finite` is False. Standard errors
    are None for fewer than two units; those of rise and drop, for checkpoints. `chance` is the accuracy of guessing at
    random, `most_frequent` that of always guessing the most frequent class, where the data have it clearly more often.
    `batch_means` says that the user's loss gave one mean for each batch, so that batches were the units of its errors.
    """

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


@dataclass(frozen=True, slots=True)
class PerUnit:
    """Sums and weights of the units of a batch, float64 vectors of one length; a unit is a sample, or the batch."""

    sums: Tensor
    weights: Tensor

    @staticmethod
    def joined(pieces: Sequence[PerUnit], *, into_one: bool = False) -> PerUnit:
        """Those of the pieces of a batch, together; `into_one`: as one unit."""
        sums, weights = (torch.cat(rows) for rows in zip(*((one.sums, one.weights) for one in pieces), strict=True))
        return PerUnit(sums.sum().view(1), weights.sum().view(1)) if into_one else PerUnit(sums, weights)

    def totals(self) -> tuple[float, float]:
        """The sum and the weight of all units."""
        return float(self.sums.sum()), float(self.weights.sum())

    def spread(self) -> list[float]:
        """The numbers of `SPREAD`; units without weight do not count."""
        counted = self.weights > 0
        x, w = self.sums[counted], self.weights[counted]
        return [float(len(x)), *(float(row.sum()) for row in (x, w, x * x, x * w, w * w))]


NO_LABELS = torch.zeros(CELLS, dtype=torch.float64)
NO_UNITS = PerUnit(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))


def by_sample(each: Tensor) -> Tensor:
    """The sums of each sample's elements, float64 (n,) on the CPU."""
    return each.double().flatten(1).sum(1).cpu() if each.dim() > 1 else each.double().cpu()


@dataclass(frozen=True, slots=True)
class Scores:
    """What one network scores on one batch: the sums of `MEASURES`, and loss and hits of each unit.

    `chance` is the number of hits that guessing gives, `labels` the float64 numbers of labels in `CELLS` cells.
    `batch_mean`: the loss is one number for the whole batch.
    """

    measures: Tensor
    loss: PerUnit
    hits: PerUnit
    chance: float = 0.0
    labels: Tensor = NO_LABELS
    batch_mean: bool = False

    @staticmethod
    def of(
        found: Mapping[str, float],
        loss: PerUnit,
        hits: PerUnit,
        *,
        chance: float = 0.0,
        labels: Tensor = NO_LABELS,
        batch_mean: bool = False,
    ) -> Scores:
        """From those of the measures that were found by name, and the losses of the units."""
        total, weight = loss.totals()
        known = {**dict.fromkeys(MEASURES, 0.0), **found, "loss": total, "loss_weight": weight}
        measures = torch.tensor([known[name] for name in MEASURES], dtype=torch.float64)
        return Scores(measures, loss, hits, chance, labels, batch_mean)

    @staticmethod
    def joined(pieces: Sequence[Scores]) -> Scores:
        """Those of a batch that was run in pieces."""
        if len(pieces) == 1:
            return pieces[0]
        mean = any(piece.batch_mean for piece in pieces)
        return Scores(
            torch.stack([piece.measures for piece in pieces]).sum(0),
            PerUnit.joined([piece.loss for piece in pieces], into_one=mean),
            PerUnit.joined([piece.hits for piece in pieces]),
            sum(piece.chance for piece in pieces),
            torch.stack([piece.labels for piece in pieces]).sum(0),
            mean,
        )

    def vector(self, ends: tuple[Scores, Scores] | None = None, lam: float = 0.0) -> Tensor:
        """The vector of `FIELDS`; rise and drop against the ends, for a network between them."""
        rise, drop = NO_UNITS, NO_UNITS
        if ends is not None:
            rise = _above(self.loss, ends[0].loss, ends[1].loss, lam)
            below = _above(self.hits, ends[0].hits, ends[1].hits, lam)
            drop = PerUnit(-below.sums, below.weights)
        spreads = [number for one in (self.loss, self.hits, rise, drop) for number in one.spread()]
        rest = [self.chance, *self.labels.tolist(), float(self.batch_mean), *spreads]
        return torch.cat([self.measures, torch.tensor(rest, dtype=torch.float64)])


def _above(middle: PerUnit, a: PerUnit, b: PerUnit, lam: float) -> PerUnit:
    """Each unit's sum above the line between those of the ends; none where the units are not the same."""
    if not len(middle.sums) == len(a.sums) == len(b.sums):
        return NO_UNITS
    return PerUnit(middle.sums - ((1 - lam) * a.sums + lam * b.sums), middle.weights)


def values(sums: Tensor) -> Values:
    """Means and their standard errors from sums."""
    found = dict(zip(FIELDS, sums.tolist(), strict=True))
    loss, metric = _mean(found, "loss", "loss_weight"), _mean(found, "metric", "metric_weight")
    classified = found["classified"] > 0
    errors = {mean: _standard_error(*(found[f"{mean} {field}"] for field in SPREAD)) for mean in SPREADS}
    return Values(
        loss=_finite(loss),
        accuracy=found["top1"] / found["classified"] if classified else None,
        top5=found["top5"] / found["classified"] if classified and found["top5"] >= 0 else None,
        metric=_finite(metric),
        n=int(found["samples"]),
        finite=all(value is None or math.isfinite(value) for value in (loss, metric)),
        loss_standard_error=errors["loss"],
        accuracy_standard_error=errors["accuracy"],
        rise_standard_error=errors["rise"],
        drop_standard_error=errors["drop"],
        chance=found[CHANCE] / found["classified"] if classified and found[CHANCE] else None,
        most_frequent=_most_frequent(found) if classified and found[CHANCE] else None,
        batch_means=found["batch_means"] > 0,
    )


def label_counts(labels: Tensor) -> Tensor:
    """How many class numbers fall into each cell, float64 (CELLS,)."""
    return torch.bincount(labels.flatten().cpu() % CELLS, minlength=CELLS).double()


def _most_frequent(found: Mapping[str, float]) -> float | None:
    """The share of the most frequent label, if it exceeds 1 / classes by more than two standard errors."""
    n = found["classified"]
    share = max(found[cell] for cell in LABELS) / n
    return share if share - 2 * math.sqrt(share * (1 - share) / n) > found[CHANCE] / n else None


def _standard_error(units: float, x: float, w: float, xx: float, xw: float, ww: float) -> float | None:
    """Of the mean x / w, from the sums over units; None for fewer than two units, or where one is not finite.

    The squared deviations `xx - 2 m xw + m^2 ww` can come out negative by rounding where all units are equal.
    """
    if units < 2 or not w:
        return None
    mean = x / w
    deviations = max(0.0, xx - 2 * mean * xw + mean * mean * ww)
    return _finite(math.sqrt(deviations * units / (units - 1)) / w) if math.isfinite(deviations) else None


def _mean(found: Mapping[str, float], total: str, weight: str) -> float | None:
    return found[total] / found[weight] if found[weight] else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
