"""What is summed over batches for each network: loss, top-1, top-5, and whatever the user's function measures.

Everything is a float64 sum with the weight it is to be divided by, in one vector, so that sums of batches, of pieces of
batches and of processes are added alike, and a half-done pass can be kept as numbers in a file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_cli.data import Batch
from rebasin_cli.errors import DataError, one_line

FIELDS = ("samples", "skipped", "loss", "loss_weight", "top1", "top5", "classified", "metric", "metric_weight")
IGNORED = -100
Score = Callable[[Any, Any], Any]
"""`f(output, target)`: a mean over the batch, one value a sample, or a pair (sum, count)."""


@dataclass(frozen=True, slots=True)
class Values:
    """The measures of one network. Accuracies are shares of 1; None where nothing of the kind was measured.

    `loss` and `metric` are None, and `finite` False, where they are infinite or not a number.
    """

    loss: float | None
    accuracy: float | None
    top5: float | None
    metric: float | None
    n: int
    finite: bool


@dataclass(frozen=True, slots=True)
class Measure:
    """Cross-entropy and accuracies, unless the user's `loss` replaces the first; `metric` comes on top."""

    loss: Score | None = None
    metric: Score | None = None

    def sums(self, output: Any, batch: Batch) -> Tensor:
        """The vector of `FIELDS` for the outputs of one batch.

        Raises:
            DataError: no loss was given and these are not a classifier's outputs and targets, or the user's function
            fails.
        """
        found = dict.fromkeys(FIELDS, 0.0)
        found["samples"], found["skipped"] = float(batch.size), float(batch.skipped)
        logits = logits_of(output)
        target = batch.target.to(logits.device) if logits is not None and isinstance(batch.target, Tensor) else None
        pair = (logits, target) if logits is not None and target is not None else None
        if pair is not None and not _fit_together(*pair):
            pair = None
        if pair is not None:
            _count_hits(*pair, found)
        if self.loss is not None:
            found["loss"], found["loss_weight"] = _score(self.loss, output, batch, "--loss")
        elif pair is not None:
            each = F.cross_entropy(pair[0].float(), pair[1].long(), reduction="none", ignore_index=IGNORED)
            found["loss"], found["loss_weight"] = float(each.double().sum()), found["classified"]
        else:
            seen = f"outputs {_shape(output)} and targets {_shape(batch.target)}"
            raise DataError(
                f"cross-entropy needs outputs (n, classes, …) and class numbers (n, …), found {seen}",
                hint="give your own with --loss file.py:function",
                slug="loss",
            )
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
    """How many classes a classifier's output (n, classes) tells apart; None for outputs of another kind."""
    logits = logits_of(output)
    if logits is None or logits.dim() != 2 or not isinstance(target, Tensor) or target.dim() != 1:
        return None
    return None if target.is_floating_point() else int(logits.shape[1])


def _fit_together(logits: Tensor, target: Tensor) -> bool:
    if target.is_floating_point() or target.is_complex() or logits.dim() < 2:
        return False
    return (logits.shape[0], *logits.shape[2:]) == tuple(target.shape)


def _count_hits(logits: Tensor, target: Tensor, found: dict[str, float]) -> None:
    counted = target != IGNORED
    found["classified"] = float(counted.sum())
    found["top1"] = float(((logits.argmax(1) == target) & counted & ~logits.isnan().any(1)).sum())
    if logits.shape[1] > 5:
        five = logits.topk(5, dim=1).indices
        found["top5"] = float(((five == target.unsqueeze(1)).any(1) & counted & ~logits.isnan().any(1)).sum())
    else:
        found["top5"] = -found["classified"]  # five guesses at five classes say nothing; negative stands for none


def _score(function: Score, output: Any, batch: Batch, option: str) -> tuple[float, float]:
    """The user's value as (sum, weight)."""
    try:
        value = function(output, _same_device(batch.target, output))
        if isinstance(value, tuple):
            return float(value[0]), float(value[1])
        scores = torch.as_tensor(value).detach().double()
        if scores.dim() == 0:
            return float(scores) * batch.size, float(batch.size)
        return float(scores.sum()), float(scores.numel())
    except Exception as error:  # the user's own code: told in its words
        raise DataError(
            f"{option}: the function failed: {one_line(error)}",
            hint="it takes (output, target) and returns a mean, one value a sample, or (sum, count)",
            slug="user_function",
        ) from error


def _same_device(target: Any, output: Any) -> Any:
    logits = logits_of(output)
    return target.to(logits.device) if isinstance(target, Tensor) and logits is not None else target


def _mean(found: Mapping[str, float], total: str, weight: str) -> float | None:
    return found[total] / found[weight] if found[weight] else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _shape(value: Any) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
