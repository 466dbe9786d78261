"""How a model's outputs and the targets of the data belong together, and in words why they do not.

Class numbers fit outputs (n, classes), (n, classes, …) as in segmentation, and (n, tokens, vocabulary) as in language
models. Everything else needs the user's own loss, and the reason says what to return or to pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.data import Batch
from rebasin_cli.data.contract import IGNORED
from rebasin_cli.data.outputs import logits_of
from rebasin_cli.errors import DataError

MASK_IGNORED = 255
"""The value of masks that marks pixels without a class, as in PASCAL VOC and Cityscapes; read as `IGNORED`."""
_LOSS = "pass --loss file.py:function"


@dataclass(frozen=True, slots=True)
class Fit:
    """Scores (n, classes, …) and the class numbers (n, …) that belong to them, int64, `IGNORED` where none counts."""

    scores: Tensor
    target: Tensor


def fitted(output: Any, batch: Batch) -> Fit | None:
    """Scores and class numbers; None where the data have no labels for these outputs, or real numbers instead.

    Raises:
        DataError: there are labels, and they do not fit or are out of range.
    """
    scores, target = logits_of(output), batch.target
    if scores is None or not isinstance(target, Tensor) or _is_real(target):
        return None
    target = target.to(scores.device)
    found = None if target.is_floating_point() else _paired(scores, target)
    if found is None:
        raise _refusal(output, target)
    if target.dim() > 1 and any(_same(value, target) for value in (*batch.args, *batch.kwargs.values())):
        raise DataError(
            "the labels are the inputs themselves: a network that predicts the next token is scored on labels that are "
            "shifted by one",
            hint=f"return (ids[:, :-1], ids[:, 1:]), or {_LOSS}",
            slug="loss",
        )
    return Fit(found[0], _in_range(found[1], int(found[0].shape[1])))


def fitted_or_refused(output: Any, batch: Batch) -> Fit:
    """The same, where nothing can be done without labels.

    Raises:
        DataError: the data have no class numbers for these outputs.
    """
    found = fitted(output, batch)
    if found is None:
        raise _refusal(output, batch.target)
    return found


def _same(value: Any, target: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == target.shape and torch.equal(value.to(target.device), target)


def _paired(scores: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
    if scores.dim() < 2 or scores.shape[1] < 2:
        return None
    by_class = (scores.shape[0], *scores.shape[2:]) == tuple(target.shape)
    by_token = scores.dim() == 3 and tuple(scores.shape[:2]) == tuple(target.shape) and scores.shape[2] > 1
    if by_class and by_token:
        return None
    if by_class:
        return scores, target.long()
    return (scores.transpose(1, 2), target.long()) if by_token else None


def _in_range(target: Tensor, classes: int) -> Tensor:
    """The class numbers, checked; the value of masks that stands for no class is left out.

    Raises:
        DataError: a label is not a class of the model.
    """
    if target.dim() > 1 and classes <= MASK_IGNORED:
        target = target.masked_fill(target == MASK_IGNORED, IGNORED)
    wrong = target[(target != IGNORED) & ((target < 0) | (target >= classes))]
    if len(wrong):
        marks = f" (0 … {classes - 1}; {IGNORED} or {MASK_IGNORED} leave a pixel out)" if target.dim() > 1 else ""
        raise DataError(
            f"label {int(wrong[0])} in the data, but the model has {classes} classes{marks or f' (0 … {classes - 1})'}",
            hint="check that the labels count from 0 and belong to this model",
            slug="label_range",
        )
    return target


def _is_real(target: Tensor) -> bool:
    """Whether the targets are real numbers, and not class numbers in another form."""
    return target.is_complex() or (target.is_floating_point() and _form_of_labels(target) is None)


def _form_of_labels(target: Tensor) -> str | None:
    """`one-hot` for rows with a single 1, `whole` for whole numbers that may be classes; None for other numbers."""
    if target.dim() == 2 and target.shape[1] > 1 and bool(((target == 0) | (target == 1)).all()):
        return "one-hot" if bool((target.sum(1) == 1).all()) else None
    if target.dim() == 1 and target.is_floating_point() and len(target) > 1:
        whole = bool((target == target.round()).all()) and float(target.min()) >= 0
        return "whole" if whole else None
    return None


def _refusal(output: Any, target: Any) -> DataError:
    seen = f"found outputs {_shape(output)} and targets {_shape(target)}{_dtype(target)}"
    said = "cross-entropy needs outputs (n, classes, …) and class numbers (n, …)"
    return DataError(f"{said}, {seen}", hint=_what_to_do(output, target), slug="loss")


def _what_to_do(output: Any, target: Any) -> str:
    scores = logits_of(output)
    if scores is None:
        hidden = hasattr(output, "last_hidden_state")
        return (
            "the model gives hidden states and no scores: choose the class with a head, such as "
            "--model-arg architecture=NAME"
            if hidden
            else f"the model gives no tensor of scores: {_LOSS}"
        )
    if not isinstance(target, Tensor):
        if target is None or isinstance(target, Mapping):
            return f"the data have no labels: give them, or {_LOSS}"
        return f"return class numbers as an integer tensor of shape (n,); for other targets {_LOSS}"
    if scores.dim() < 2 or scores.shape[1] < 2:
        return f"the model has one output for each sample: {_LOSS}, such as mean squared error"
    return _for_targets(scores, target)


def _for_targets(scores: Tensor, target: Tensor) -> str:
    form = _form_of_labels(target)
    if form == "one-hot":
        return f"these are one-hot: return class numbers, y.argmax(1); for several labels at once {_LOSS}"
    if form == "whole":
        return f"return class numbers as integers, y.long(); for real numbers {_LOSS}"
    if target.dim() == scores.dim() and target.shape[1:2] == (1,):
        return f"return class numbers without the axis of length 1, y.squeeze(1); for other targets {_LOSS}"
    if target.is_floating_point() and target.shape == scores.shape:
        return f"for several labels at once, or real numbers, {_LOSS}"
    if target.dim() > 1 and target.dim() == scores.dim() - 1:
        return f"masks and outputs must have one size: resize one of them in the loader or model; or {_LOSS}"
    return f"class numbers are integers of shape (n,); for other targets {_LOSS}"


def _dtype(value: Any) -> str:
    return f" of {str(value.dtype).removeprefix('torch.')}" if isinstance(value, Tensor) else ""


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return "none" if value is None else type(value).__name__


def class_count(output: Any, target: Any) -> int | None:
    """The number of classes of a classifier's output (n, classes); None for outputs of another kind."""
    logits = logits_of(output)
    if logits is None or logits.dim() != 2 or not isinstance(target, Tensor) or target.dim() != 1:
        return None
    return None if target.is_floating_point() or torch.is_complex(target) else int(logits.shape[1])
