"""Loss, top-1 and top-5 accuracy of every network of a sweep, and the user's own metric, from one pass over the data.

Each measure is a float64 sum and the weight by which it is divided at the end, all in one vector. So sums of batches,
of pieces of batches and of processes are added in the same way, and an unfinished pass is plain numbers.
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
from rebasin_cli.data.contract import IGNORED
from rebasin_cli.data.outputs import logits_of
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, RebasinError, folded
from rebasin_cli.execution.agreement import EndOutputs, Ends, agreement_sums
from rebasin_cli.execution.dataset_pass import RunningSums, run_pass
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, ModelSlot, Network
from rebasin_cli.execution.targets import Fit, fitted, fitted_or_refused

FIELDS = ("samples", "skipped", "loss", "loss_weight", "top1", "top5", "classified", "metric", "metric_weight")
Score = Callable[[Any, Any], Any]
"""`f(output, target)`: a mean over the batch, one value per sample, or a pair (sum, count)."""


@dataclass(frozen=True, slots=True)
class Values:
    """The measures of one network. Accuracies lie in [0, 1]; None means not measured.

    `loss` and `metric` are also None where they are infinite or not a number; then `finite` is False.
    """

    loss: float | None
    accuracy: float | None
    top5: float | None
    metric: float | None
    n: int
    finite: bool


@dataclass(frozen=True, slots=True)
class Measure:
    """Cross-entropy and accuracies; the user's `loss` replaces cross-entropy, and `metric` is an additional measure."""

    loss: Score | None = None
    metric: Score | None = None

    def sums(self, output: Any, batch: Batch) -> Tensor:
        """The vector of `FIELDS` for the outputs of one batch.

        Raises:
            DataError: no loss was given and cross-entropy does not apply to these outputs and targets, or the user's
            function fails.
        """
        found = dict.fromkeys(FIELDS, 0.0)
        found["samples"], found["skipped"] = float(batch.size), float(batch.skipped)
        if isinstance(batch.target, Ends):
            found.update(agreement_sums(output, batch.target))
            return torch.tensor([found[name] for name in FIELDS], dtype=torch.float64)
        pair = fitted_or_refused(output, batch) if self.loss is None else _fit_if_any(output, batch)
        if pair is not None:
            _count_hits(pair.scores, pair.target, found)
        if self.loss is not None:
            found["loss"], found["loss_weight"] = _score(self.loss, output, batch, "--loss")
        elif pair is not None:
            each = F.cross_entropy(pair.scores.float(), pair.target, reduction="none", ignore_index=IGNORED)
            found["loss"], found["loss_weight"] = float(each.double().sum()), found["classified"]
        if self.metric is not None:
            found["metric"], found["metric_weight"] = _score(self.metric, output, batch, "--metric")
        return torch.tensor([found[name] for name in FIELDS], dtype=torch.float64)


def values(sums: Tensor) -> Values:
    """Means from sums."""
    found = dict(zip(FIELDS, sums.tolist(), strict=True))
    loss, metric = _mean(found, "loss", "loss_weight"), _mean(found, "metric", "metric_weight")
    classified = found["classified"] > 0
    return Values(
        loss=_finite(loss),
        accuracy=found["top1"] / found["classified"] if classified else None,
        top5=found["top5"] / found["classified"] if classified and found["top5"] >= 0 else None,
        metric=_finite(metric),
        n=int(found["samples"]),
        finite=all(value is None or math.isfinite(value) for value in (loss, metric)),
    )


def evaluate(
    slot: ModelSlot,
    source: BatchSource,
    networks: Sequence[Network],
    measure: Measure,
    running: RunningSums,
    *,
    adjustments: Mapping[str, Adjustment] | None = None,
    unlabelled: bool = False,
    ranks: Ranks = ALONE,
    progress: Callable[[int, str], None] | None = None,
) -> Mapping[str, Tensor]:
    """Extend the running sums to the end of the data and return the vector of `FIELDS` for each network by name.

    Args:
        adjustments: changes of interpolated networks, by name; see `recalibration`.
        unlabelled: compare the outputs with those of the ends, for want of labels; see `agreement`.

    Raises:
        DataError: a batch cannot be read or does not fit the model.
    """
    ends = EndOutputs(slot, networks) if unlabelled else None
    by_name = {network.name: network for network in networks}
    changed = adjustments or {}

    def step(name: str, batches: Sequence[Batch]) -> Tensor:
        total = torch.zeros(len(FIELDS), dtype=torch.float64)
        if batches:
            slot.load(by_name[name], changed.get(name, NO_ADJUSTMENT))
        for batch in batches:
            if not batch.size:
                total[FIELDS.index("skipped")] += batch.skipped
            beside = batch if ends is None else ends.beside(by_name[name], batch)
            for piece, output in slot.outputs(beside):
                total += measure.sums(output, piece)
        return total

    run_pass(
        source,
        list(by_name),
        step,
        running,
        ranks,
        prepare=None if ends is None else ends.observe,
        device=slot.device,
        progress=progress,
    )
    return running.sums


def _fit_if_any(output: Any, batch: Batch) -> Fit | None:
    """Class numbers for accuracies, where the user's loss decides what targets are."""
    try:
        return fitted(output, batch)
    except DataError:
        return None


def _count_hits(logits: Tensor, target: Tensor, found: dict[str, float]) -> None:
    counted = target != IGNORED
    found["classified"] = float(counted.sum())
    found["top1"] = float(((logits.argmax(1) == target) & counted & ~logits.isnan().any(1)).sum())
    if logits.shape[1] > 5:
        five = logits.topk(5, dim=1).indices
        found["top5"] = float(((five == target.unsqueeze(1)).any(1) & counted & ~logits.isnan().any(1)).sum())
    else:
        found["top5"] = -found["classified"]  # meaningless for five classes or fewer; negative means none


def _score(function: Score, output: Any, batch: Batch, option: str) -> tuple[float, float]:
    """The user's value as (sum, weight)."""
    total, weight = _sum_and_weight(function, output, batch, option)
    return float(total), float(weight)


def mean_score(function: Score, output: Any, batch: Batch, option: str = "--loss") -> Tensor:
    """The user's value as a mean over the batch, differentiable where the function is.

    Raises:
        DataError: the function fails, or returns no number.
    """
    total, weight = _sum_and_weight(function, output, batch, option)
    mean: Tensor = torch.as_tensor(total) / weight
    return mean


def _sum_and_weight(function: Score, output: Any, batch: Batch, option: str) -> tuple[Any, Any]:
    hint = "it takes (output, target) and returns a mean, one value per sample, or (sum, count)"
    try:
        value = function(output, _same_device(batch.target, output))
        if isinstance(value, tuple):
            total, weight = value
            if not float(weight) > 0 and float(total) != 0:
                raise ValueError(f"a sum of {float(total)} over a count of {float(weight)}")
            return total, weight
        scores = torch.as_tensor(value)
    except RebasinError as error:  # of the user's function, with its file and line
        raise DataError(f"{option}: the function failed: {error.message}", hint=hint, slug="user_function") from error
    except Exception as error:
        raise DataError(
            f"{option}: the function returned {type(error).__name__}: {folded(error)}", hint=hint, slug="user_function"
        ) from error
    if scores.is_complex() or not scores.numel():
        raise DataError(f"{option}: the function returned no real number", hint=hint, slug="user_function")
    if scores.dim() == 0:
        return scores.double() * batch.size, batch.size
    return scores.double().sum(), scores.numel()


def _same_device(target: Any, output: Any) -> Any:
    logits = logits_of(output)
    return target.to(logits.device) if isinstance(target, Tensor) and logits is not None else target


def _mean(found: Mapping[str, float], total: str, weight: str) -> float | None:
    return found[total] / found[weight] if found[weight] else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
