"""`nn.Bilinear` between two hidden layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 3, "families": 0, "groups": 3, "units": 15}
# the hidden units on the left (4) and on the right (5), and what the bilinear layer makes of them (6)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(3, 5)
        self.both = nn.Bilinear(4, 5, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.both(torch.relu(self.left(x)), torch.tanh(self.right(x)))))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(4, 3)
