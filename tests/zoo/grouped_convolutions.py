"""Grouped convolution between two dense ones, and a depthwise one behind."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 1, "families": 2, "groups": 7, "units": 30}
# the three blocks of the grouped convolution; in each block its inputs (4) and its outputs (5): 3 + 3 * 9


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 15, 3, padding=1, groups=3)
        self.depth = nn.Conv2d(15, 15, 3, padding=1, groups=15)
        self.last = nn.Conv2d(15, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.depth(torch.relu(self.grouped(torch.relu(self.first(x)))))))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 5, 5)
