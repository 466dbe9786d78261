"""Random weights: the same from the same seed and key, in the scale that fits, whatever their size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rebasin_cli.execution.random_state import PERIOD, RandomState, random_tensor


def test_a_seed_and_a_key_give_the_numbers() -> None:
    first, again = (random_tensor("a.weight", (3, 4), 0) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, random_tensor("b.weight", (3, 4), 0))
    assert not torch.equal(first, random_tensor("a.weight", (3, 4), 1))


def test_numbers_beyond_the_period_lie_otherwise_in_every_row() -> None:
    made = random_tensor("table.weight", (PERIOD // 100, 512), 0)
    assert made.numel() > 5 * PERIOD
    assert len(torch.unique(made[:, :8], dim=0)) == len(made)
    assert float(made.std()) == pytest.approx((2 / 512) ** 0.5, rel=0.01)


def test_what_scales_and_what_shifts_have_ordinary_sizes() -> None:
    scale = random_tensor("norm.weight", (1000,), 0)
    assert 0.5 <= float(scale.min()) < float(scale.max()) <= 1.5
    assert float(random_tensor("norm.running_var", (1000,), 0).min()) >= 0.5
    assert float(random_tensor("norm.bias", (1000,), 0).abs().max()) < 1.0


def test_tied_names_give_one_tensor_and_tables_of_indices_stay() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
            self.other.weight = self.one.weight
            self.register_buffer("index", torch.tensor([2, 0, 1]))

    state = RandomState(Tied(), 0)
    assert torch.equal(state["one.weight"], state["other.weight"])
    assert state["index"].tolist() == [2, 0, 1]
    assert set(state) == {"one.weight", "one.bias", "other.weight", "other.bias", "index"}
