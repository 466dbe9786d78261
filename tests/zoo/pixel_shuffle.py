"""Channels moved to space: each four become a square of two by two."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 1, "families": 0, "groups": 1, "units": 4}
# the channels after the shuffle (4), each made of four before; which of the four is a place


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.norm(F.pixel_shuffle(self.first(x), 2))))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 4, 4)
