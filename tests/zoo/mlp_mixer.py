"""Patches mixed along tokens and along channels by turns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 3, "families": 0, "groups": 3, "units": 25}
# the channels (8), the hidden units that mix tokens (7), those that mix channels (10); tokens are pinned


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 2, stride=2)
        self.norms = nn.ModuleList([nn.LayerNorm(8) for _ in range(3)])
        self.tokens = nn.Sequential(nn.Linear(9, 7), nn.GELU(), nn.Linear(7, 9))
        self.channels = nn.Sequential(nn.Linear(8, 10), nn.GELU(), nn.Linear(10, 8))
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channels(self.norms[1](x))
        out: Tensor = self.last(self.norms[2](x).mean(1))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 6, 6)
