"""What inverted inputs are moved towards: one class for all networks, or else outputs that go together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from rebasin_cli.data.outputs import logits_of


class Goal(Protocol):
    """Of one batch of inputs."""

    words: str

    def loss(self, outputs: Sequence[Any]) -> Tensor:
        """What is minimised, float32 (), from the output of every network."""

    def reached(self, outputs: Sequence[Any]) -> float:
        """The share of inputs that are where they should be, in [0, 1]."""


class OneClass:
    """A random class for each input, which all networks are to give; outputs are logits (n, classes)."""

    words = "a class that all networks give"

    def __init__(self, wanted: Tensor) -> None:
        self.wanted = wanted

    def loss(self, outputs: Sequence[Any]) -> Tensor:
        each = [F.cross_entropy(scores_of(output), self.wanted) for output in outputs]
        return torch.stack(each).sum()

    def reached(self, outputs: Sequence[Any]) -> float:
        hits = [scores_of(output).argmax(1) == self.wanted for output in outputs]
        return float(torch.stack(hits).all(0).float().mean())


class Together:
    """Outputs that vary from input to input in the same way for all networks, and not less than they did at first.

    The loss is one minus the correlation over inputs of the outputs of each network with the mean of all, and how much
    the logarithm of their variance has fallen. Nothing has to be known of the outputs but that they are numbers.
    """

    words = "outputs on which the networks agree"
    ENOUGH = 0.95

    def __init__(self, first: Sequence[Any]) -> None:
        self._spread = [_centred(output).square().mean().clamp_min(1e-12) for output in first]

    def loss(self, outputs: Sequence[Any]) -> Tensor:
        fallen = [
            F.relu((spread / _centred(output).square().mean().clamp_min(1e-12)).log())
            for output, spread in zip(outputs, self._spread, strict=True)
        ]
        return torch.stack(self._apart(outputs)).sum() + torch.stack(fallen).sum()

    def reached(self, outputs: Sequence[Any]) -> float:
        nearest = 1.0 - float(torch.stack(self._apart(outputs)).detach().max())
        return min(1.0, max(0.0, nearest) / self.ENOUGH)

    def _apart(self, outputs: Sequence[Any]) -> list[Tensor]:
        centred = [_centred(output) for output in outputs]
        plain = [one / one.norm().clamp_min(1e-12) for one in centred]
        mean = torch.stack(plain).mean(0)
        return [1 - (one * mean).sum() / mean.norm().clamp_min(1e-12) for one in plain]


def scores_of(output: Any) -> Tensor:
    """The tensor that scores classes, or the model's first tensor of numbers, float32.

    Raises:
        ValueError: there is none.
    """
    found = logits_of(output)
    if found is None:
        found = getattr(output, "last_hidden_state", None)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise ValueError("the model gives no tensor of numbers")
    return found.float()


def class_scores(output: Any, count: int) -> Tensor | None:
    """The logits (count, classes) of a classifier of whole inputs; None for other outputs."""
    found = logits_of(output)
    if found is None or not found.is_floating_point() or found.dim() != 2 or found.shape[0] != count:
        return None
    return found.float() if found.shape[1] > 1 else None


def _centred(output: Any) -> Tensor:
    """The outputs (n, numbers) about their mean over the inputs."""
    values = scores_of(output)
    rows = values.reshape(values.shape[0], -1)
    return rows - rows.mean(0)
