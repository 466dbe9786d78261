"""Loss, top-1 and top-5 accuracy of every network of a sweep, and the user's own metric, from one pass over the data.

Each measure is a float64 sum and the weight by which it is divided at the end, all in one vector. So sums of batches,
of pieces of batches and of processes are added in the same way, and an unfinished pass is plain numbers.

The standard error of a mean `m = sum(x) / sum(w)` over samples with values x and weights w (for a loss per pixel, w is
the number of pixels) is `sqrt(n / (n - 1) sum((x - m w)^2)) / sum(w)`. The rise of an interpolated network's loss over
the line between those of its ends is a mean over samples too, of `loss_lam - ((1 - lam) loss_A + lam loss_B)`, so its
error is that of the differences within each sample. The losses of the ends are kept for one chunk of the data at a
time: every network is run on the same batches in memory, so the samples are paired whatever order a loader has.

A user's loss that returns one mean for a batch gives no values of single samples. Then the batch is the unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, one_line
from rebasin_cli.execution.dataset_pass import RunningSums, run_pass
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, ModelSlot, Network

MEASURES = ("samples", "skipped", "loss", "loss_weight", "top1", "top5", "classified", "metric", "metric_weight")
CHANCE = "chance"
"""The sum over classified elements of 1 / classes: the hits of a network that guesses."""
SPREAD = ("units", "sum", "weight", "sum_squared", "sum_times_weight", "weight_squared")
SPREADS = ("loss", "accuracy", "rise", "drop")
"""Means with a standard error: the rise is that of the loss, the drop that of the accuracy, between two ends."""
FIELDS = (*MEASURES, CHANCE, "batch_means", *(f"{mean} {field}" for mean in SPREADS for field in SPREAD))
IGNORED = -100
"""The target that cross-entropy and accuracies leave out, as in PyTorch."""

Score = Callable[[Any, Any], Any]
"""`f(output, target)`: a mean over the batch, one value per sample, or a pair (sum, count)."""


@dataclass(frozen=True, slots=True)
class Values:
    """The measures of one network. Accuracies lie in [0, 1]; None means not measured.

    `loss` and `metric` are also None where they are infinite or not a number; then `finite` is False. Standard errors
    are None for fewer than two units; those of rise and drop, for checkpoints. `chance` is the accuracy of guessing.
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

    def spread(self) -> list[float]:
        """The numbers of `SPREAD`; units without weight do not count."""
        counted = self.weights > 0
        x, w = self.sums[counted], self.weights[counted]
        return [float(len(x)), *(float(row.sum()) for row in (x, w, x * x, x * w, w * w))]


NONE_OF_THEM = PerUnit(torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64))


@dataclass(frozen=True, slots=True)
class Scores:
    """What one network scores on one batch: the sums of `MEASURES`, and loss and hits of each unit.

    `batch_mean`: the loss is one number for the whole batch.
    """

    measures: Tensor
    loss: PerUnit
    hits: PerUnit
    chance: float = 0.0
    batch_mean: bool = False

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
            mean,
        )

    def vector(self, ends: tuple[Scores, Scores] | None = None, lam: float = 0.0) -> Tensor:
        """The vector of `FIELDS`; rise and drop against the ends, for a network between them."""
        rise, drop = NONE_OF_THEM, NONE_OF_THEM
        if ends is not None:
            rise = _above(self.loss, ends[0].loss, ends[1].loss, lam)
            below = _above(self.hits, ends[0].hits, ends[1].hits, lam)
            drop = PerUnit(-below.sums, below.weights)
        spreads = [number for one in (self.loss, self.hits, rise, drop) for number in one.spread()]
        rest = [self.chance, float(self.batch_mean), *spreads]
        return torch.cat([self.measures, torch.tensor(rest, dtype=torch.float64)])


def _above(middle: PerUnit, a: PerUnit, b: PerUnit, lam: float) -> PerUnit:
    """Each unit's sum above the line between those of the ends; none where the units are not the same."""
    if not len(middle.sums) == len(a.sums) == len(b.sums):
        return NONE_OF_THEM
    return PerUnit(middle.sums - ((1 - lam) * a.sums + lam * b.sums), middle.weights)


@dataclass(frozen=True, slots=True)
class Measure:
    """Cross-entropy and accuracies; the user's `loss` replaces cross-entropy, and `metric` is an additional measure."""

    loss: Score | None = None
    metric: Score | None = None

    def sums(self, output: Any, batch: Batch) -> Tensor:
        """The vector of `FIELDS` for the outputs of one batch; see `scores`."""
        return self.scores(output, batch).vector()

    def scores(self, output: Any, batch: Batch) -> Scores:
        """What the outputs of one batch score.

        Raises:
            DataError: no loss was given and cross-entropy does not apply to these outputs and targets, or the user's
            function fails.
        """
        found = dict.fromkeys(MEASURES, 0.0)
        found["samples"], found["skipped"] = float(batch.size), float(batch.skipped)
        logits = logits_of(output)
        target = batch.target.to(logits.device) if logits is not None and isinstance(batch.target, Tensor) else None
        pair = (logits, target) if logits is not None and target is not None else None
        if pair is not None and not _fit_together(*pair):
            pair = None
        hits, chance, mean = NONE_OF_THEM, 0.0, False
        if pair is not None:
            hits = _count_hits(*pair, found)
            chance = found["classified"] / pair[0].shape[1]
        if self.loss is not None:
            loss, mean = _score(self.loss, output, batch, "--loss")
        elif pair is not None:
            each = F.cross_entropy(pair[0].float(), pair[1].long(), reduction="none", ignore_index=IGNORED)
            loss = PerUnit(_by_sample(each), hits.weights)
        else:
            seen = f"outputs {_shape(output)} and targets {_shape(batch.target)}{_dtype(batch.target)}"
            raise DataError(
                f"cross-entropy needs outputs (n, classes, …) and class numbers (n, …), found {seen}",
                hint="class numbers are integers of shape (n,); for other targets pass --loss file.py:function",
                slug="loss",
            )
        found["loss"], found["loss_weight"] = float(loss.sums.sum()), float(loss.weights.sum())
        if self.metric is not None:
            metric, _ = _score(self.metric, output, batch, "--metric")
            found["metric"], found["metric_weight"] = float(metric.sums.sum()), float(metric.weights.sum())
        measures = torch.tensor([found[name] for name in MEASURES], dtype=torch.float64)
        return Scores(measures, loss, hits, chance, mean)


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
        chance=found[CHANCE] / found["classified"] if classified else None,
        batch_means=found["batch_means"] > 0,
    )


def _standard_error(units: float, x: float, w: float, xx: float, xw: float, ww: float) -> float | None:
    """Of the mean x / w, from the sums over units; None for fewer than two units, or where one is not finite.

    The squared deviations `xx - 2 m xw + m^2 ww` can come out negative by rounding where all units are equal.
    """
    if units < 2 or not w:
        return None
    mean = x / w
    deviations = max(0.0, xx - 2 * mean * xw + mean * mean * ww)
    return _finite(math.sqrt(deviations * units / (units - 1)) / w) if math.isfinite(deviations) else None


def evaluate(
    slot: ModelSlot,
    source: BatchSource,
    networks: Sequence[Network],
    measure: Measure,
    running: RunningSums,
    *,
    adjustments: Mapping[str, Adjustment] | None = None,
    ranks: Ranks = ALONE,
    progress: Callable[[int, str], None] | None = None,
) -> Mapping[str, Tensor]:
    """Extend the running sums to the end of the data and return the vector of `FIELDS` for each network by name.

    Args:
        adjustments: changes of interpolated networks, by name; see `recalibration`.

    Raises:
        DataError: a batch cannot be read or does not fit the model.
    """
    by_name = {network.name: network for network in networks}
    changed = adjustments or {}
    ends = _ends_of(networks)
    at_ends = {name for pair in ends.values() for name in pair}
    kept: dict[str, list[Scores]] = {}

    def forget(_: Sequence[Batch]) -> None:
        kept.clear()

    def scores(name: str, batches: Sequence[Batch]) -> list[Scores]:
        """On each batch of the chunk; those of the ends are kept until the next chunk."""
        if name not in kept:
            if batches:
                slot.load(by_name[name], changed.get(name, NO_ADJUSTMENT))
            found = [_scores(slot, measure, batch) for batch in batches]
            if name not in at_ends:
                return found
            kept[name] = found
        return kept[name]

    def step(name: str, batches: Sequence[Batch]) -> Tensor:
        # A pass that continues in the middle of a chunk has the ends' sums, but not their losses: they are run again.
        a, b = [scores(end, batches) for end in ends[name]] if name in ends else (None, None)
        total = torch.zeros(len(FIELDS), dtype=torch.float64)
        for number, one in enumerate(scores(name, batches)):
            pair = None if a is None or b is None else (a[number], b[number])
            total += one.vector(pair, by_name[name].lam)
        return total

    run_pass(source, list(by_name), step, running, ranks, prepare=forget, device=slot.device, progress=progress)
    return running.sums


def _ends_of(networks: Sequence[Network]) -> dict[str, tuple[str, str]]:
    """The names of the two ends of each interpolated network: as treated like it, where they were."""
    ends: dict[int, str] = {}
    for network in networks:
        if network.end is not None and (network.adjusted or network.end not in ends):
            ends[network.end] = network.name
    pairs = {network.name: network.between for network in networks if network.end is None}
    return {name: (ends[a], ends[b]) for name, (a, b) in pairs.items() if a in ends and b in ends}


def _scores(slot: ModelSlot, measure: Measure, batch: Batch) -> Scores:
    """Of the loaded network."""
    pieces = [measure.scores(output, piece) for piece, output in slot.outputs(batch)]
    if pieces:
        return Scores.joined(pieces)
    nothing = torch.zeros(len(MEASURES), dtype=torch.float64)
    nothing[MEASURES.index("skipped")] = batch.skipped
    return Scores(nothing, NONE_OF_THEM, NONE_OF_THEM)


def logits_of(output: Any) -> Tensor | None:
    """The tensor that scores classes: the output itself, its `logits` or `out`, or the first of several outputs."""
    if isinstance(output, Tensor):
        return output
    for name in ("logits", "out"):
        found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
        if isinstance(found, Tensor):
            return found
    if isinstance(output, (list, tuple)) and output and isinstance(output[0], Tensor):
        return output[0]
    return None


def class_count(output: Any, target: Any) -> int | None:
    """The number of classes of a classifier's output (n, classes); None for outputs of another kind."""
    logits = logits_of(output)
    if logits is None or logits.dim() != 2 or not isinstance(target, Tensor) or target.dim() != 1:
        return None
    return None if target.is_floating_point() else int(logits.shape[1])


def _fit_together(logits: Tensor, target: Tensor) -> bool:
    if target.is_floating_point() or target.is_complex() or logits.dim() < 2:
        return False
    return (logits.shape[0], *logits.shape[2:]) == tuple(target.shape)


def _by_sample(each: Tensor) -> Tensor:
    """The sums of each sample's elements, float64 (n,) on the CPU."""
    return each.double().flatten(1).sum(1).cpu() if each.dim() > 1 else each.double().cpu()


def _count_hits(logits: Tensor, target: Tensor, found: dict[str, float]) -> PerUnit:
    """Sum up what is classified, and return the hits of each sample with the number of its elements."""
    counted = target != IGNORED
    right = (logits.argmax(1) == target) & counted & ~logits.isnan().any(1)
    found["classified"] = float(counted.sum())
    found["top1"] = float(right.sum())
    if logits.shape[1] > 5:
        five = logits.topk(5, dim=1).indices
        found["top5"] = float(((five == target.unsqueeze(1)).any(1) & counted & ~logits.isnan().any(1)).sum())
    else:
        found["top5"] = -found["classified"]  # meaningless for five classes or fewer; negative means none
    return PerUnit(_by_sample(right), _by_sample(counted))


def _score(function: Score, output: Any, batch: Batch, option: str) -> tuple[PerUnit, bool]:
    """The user's values, and whether they are one for the whole batch."""
    try:
        value = function(output, _same_device(batch.target, output))
        if isinstance(value, tuple):
            return _whole(float(value[0]), float(value[1])), True
        scores = torch.as_tensor(value).detach().double()
        if scores.dim() == 0:
            return _whole(float(scores) * batch.size, float(batch.size)), True
        if scores.shape[0] != batch.size:
            return _whole(float(scores.sum()), float(scores.numel())), True
        return PerUnit(_by_sample(scores), _by_sample(torch.ones_like(scores))), False
    except Exception as error:  # the user's own code, so its message is quoted
        raise DataError(
            f"{option}: the function failed: {one_line(error)}",
            hint="it takes (output, target) and returns a mean, one value per sample, or (sum, count)",
            slug="user_function",
        ) from error


def _whole(total: float, weight: float) -> PerUnit:
    return PerUnit(torch.tensor([total], dtype=torch.float64), torch.tensor([weight], dtype=torch.float64))


def _same_device(target: Any, output: Any) -> Any:
    logits = logits_of(output)
    return target.to(logits.device) if isinstance(target, Tensor) and logits is not None else target


def _mean(found: Mapping[str, float], total: str, weight: str) -> float | None:
    return found[total] / found[weight] if found[weight] else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _dtype(value: Any) -> str:
    return f" of {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else ""


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
