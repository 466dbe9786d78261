"""The user's own loss or metric: called, checked, and read as values with weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.outputs import logits_of
from rebasin_cli.errors import DataError, RebasinError, folded
from rebasin_cli.execution.scores import PerUnit

Score = Callable[[Any, Any], Any]
"""`f(output, target)`: a mean over the batch, one value per sample, or a pair (sum, count)."""
_HINT = "it takes (output, target) and returns a mean, one value per sample, or (sum, count)"


class _Given(NamedTuple):
    """Sums and weights, vectors of one length: of each sample, or one of the whole batch."""

    sums: Tensor
    weights: Tensor
    whole: bool


def units_of(function: Score, output: Any, batch: Batch, option: str) -> tuple[PerUnit, bool]:
    """The user's values, and whether they are one for the whole batch.

    Raises:
        DataError: the function fails, or returns no number.
    """
    found = _given(function, output, batch, option)
    return PerUnit(found.sums.detach().cpu(), found.weights.cpu()), found.whole


def mean_score(function: Score, output: Any, batch: Batch, option: str = "--loss") -> Tensor:
    """The user's value as a mean over the batch, differentiable where the function is.

    Raises:
        DataError: the function fails, or returns no number.
    """
    found = _given(function, output, batch, option)
    return found.sums.sum() / found.weights.sum()


def _given(function: Score, output: Any, batch: Batch, option: str) -> _Given:
    try:
        value = function(output, _same_device(batch.target, output))
        if isinstance(value, tuple):
            return _pair(*value)
        scores = torch.as_tensor(value)
    except RebasinError as error:  # of the user's function, with its file and line
        raise DataError(f"{option}: the function failed: {error.message}", hint=_HINT, slug="user_function") from error
    except Exception as error:
        raise DataError(
            f"{option}: the function returned {type(error).__name__}: {folded(error)}", hint=_HINT, slug="user_function"
        ) from error
    if scores.is_complex() or not scores.numel():
        raise DataError(f"{option}: the function returned no real number", hint=_HINT, slug="user_function")
    scores = scores.double()
    if scores.dim() == 0:
        return _whole(scores * batch.size, batch.size)
    if scores.shape[0] != batch.size:
        return _whole(scores.sum(), scores.numel())
    sums = scores.flatten(1).sum(1) if scores.dim() > 1 else scores
    return _Given(sums, torch.full_like(sums, scores.numel() // batch.size), whole=False)


def _pair(total: Any, weight: Any) -> _Given:
    if not float(weight) > 0 and float(total) != 0:
        raise ValueError(f"a sum of {float(total)} over a count of {float(weight)}")
    return _whole(torch.as_tensor(total).double(), float(weight))


def _whole(total: Tensor, weight: float) -> _Given:
    sums = total.reshape(1)
    return _Given(sums, torch.full_like(sums, weight), whole=True)


def _same_device(target: Any, output: Any) -> Any:
    logits = logits_of(output)
    return target.to(logits.device) if isinstance(target, Tensor) and logits is not None else target
