"""Neighbouring tokens concatenated by strided slices, normalised and projected."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 0, "groups": 2, "units": 18}
# the channels before (6), at four places in the norm and the projection, and after (12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 6, 2, stride=2)
        self.norm = nn.LayerNorm(24)
        self.project = nn.Linear(24, 12, bias=False)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        corners = [x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)]
        x = torch.relu(self.project(self.norm(torch.cat(corners, -1))))
        out: Tensor = self.last(x.mean((1, 2)))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 8, 8)
