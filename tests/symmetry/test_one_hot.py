"""One-hot vectors of the nearest or largest: codes and experts move with what selects them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.symmetry.rules.bench import found, group_with, parameter


class Quantized(nn.Module):
    """The nearest of ten codes, by a one-hot vector."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.codes, self.last = nn.Linear(5, 8), parameter(10, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        nearest = torch.cdist(self.first(x), self.codes).argmin(-1)
        return self.last(F.one_hot(nearest, 10).to(x) @ self.codes)


def test_codes_that_a_one_hot_vector_selects_move() -> None:
    derivation = found(Quantized().double(), torch.randn(4, 5).double())
    assert group_with(derivation, "codes", 0).size == 10


class Experts(nn.Module):
    """Each sample by the one expert that its router prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(5, 4), parameter(4, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = F.one_hot(self.router(x).argmax(-1), num_classes=4).to(x)
        return torch.einsum("ne,ni,eio->no", chosen, x, self.experts)


@pytest.mark.parametrize("key", ["router.weight", "experts"])
def test_experts_of_a_hard_router_move(key: str) -> None:
    assert group_with(found(Experts().double(), torch.randn(6, 5).double()), key, 0).size == 4
