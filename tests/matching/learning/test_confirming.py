"""What was learned without data is believed only where held inputs of two kinds say that it is better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import pytest
import torch
from torch import Tensor

from rebasin_cli.matching.learning.confirming import doubt, lower
from rebasin_cli.matching.learning.judging import Judge

WEIGHTS, LEARNED = {"which": torch.tensor(0)}, {"which": torch.tensor(1)}


class Fixed:
    """Losses of the weights' midpoint and of the learned one, by batch."""

    def __init__(self, weights: list[float], learned: list[float]) -> None:
        self.found = [torch.tensor(losses, dtype=torch.float64) for losses in (weights, learned)]

    def losses(self, network: Mapping[str, Tensor]) -> Tensor:
        return self.found[int(network["which"])]


def judge(weights: list[float], learned: list[float]) -> Judge:
    return cast("Judge", Fixed(weights, learned))


BETTER = judge([1.0, 1.2, 0.9, 1.1], [0.8, 1.0, 0.75, 0.9])
WORSE = judge([1.0, 1.2, 0.9, 1.1], [1.3, 1.4, 1.0, 1.2])
NOISE = judge([1.0, 1.2, 0.9, 1.1], [0.8, 1.3, 0.7, 1.2])


def test_better_on_both_kinds_it_is_kept() -> None:
    judges = {"generated:inverted": BETTER, "generated:leaves": BETTER}
    assert doubt(LEARNED, WEIGHTS, judges, (0.9, 1.0)) is None


@pytest.mark.parametrize("other", [WORSE, NOISE])
def test_its_own_measure_is_not_enough(other: Judge) -> None:
    judges = {"generated:leaves": BETTER, "generated:noise": other}
    reason = doubt(LEARNED, WEIGHTS, judges, (0.9, 1.0))
    assert reason is not None
    assert "on generated:noise" in reason
    alone = doubt(LEARNED, WEIGHTS, {"generated:leaves": BETTER}, (0.9, 1.0))
    assert alone is not None
    assert "another kind" in alone


def test_a_similarity_that_has_collapsed_is_not_believed() -> None:
    judges = {"generated:inverted": BETTER, "generated:leaves": BETTER}
    assert "70 % of the similarity" in str(doubt(LEARNED, WEIGHTS, judges, (0.6, 1.0)))


def test_a_difference_within_its_error_is_none() -> None:
    before = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    assert lower(before - 0.1, before)
    assert not lower(before - torch.tensor([0.3, -0.2, 0.3, -0.1]), before)
    assert not lower(before, before)
    assert not lower(before[:1] - 1, before[:1])
