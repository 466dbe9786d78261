"""Weights under a mask (Germain et al. 2015, MADE): hidden units with equal rows of the mask may be exchanged."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EXPECTED = {"roots": 4, "families": 0, "groups": 4, "units": 20}
# ten hidden units of degrees 0, 1, 2, 0, …: four, three and three of a degree; ten more behind them without a mask


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 10), nn.Linear(10, 10), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        degree = torch.arange(10) % 3
        mask = (degree[:, None] >= torch.arange(3)[None]).float()
        hidden = F.linear(x, self.first.weight * mask, self.first.bias).relu()
        out: Tensor = self.last(self.second(hidden).relu())
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> tuple[Tensor]:
    return (torch.linspace(-1.0, 1.0, 12).view(4, 3),)
