"""Weight normalisation as a parametrization: a direction and a length for every row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 1, "families": 0, "groups": 1, "units": 8}
# the hidden units (8), along both parts of the first weight and the columns of the second's direction


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(5, 8))
        self.last = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x)))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(4, 5)
