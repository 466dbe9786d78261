"""An autoencoder that decodes with the transpose of its encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 1, "families": 0, "groups": 1, "units": 6}
# the code (6) along the rows of the one matrix


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 5))
        self.shift = nn.Parameter(torch.randn(6))
        self.back = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, self.weight, self.shift)), self.weight.t(), self.back)


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(4, 5)
