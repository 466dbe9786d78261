"""Channels scaled and shifted by another network's output for a second input."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 0, "groups": 2, "units": 13}
# the channels (8), twice in what modulates them, and that network's hidden units (5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.about = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 16))
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.about(condition)[:, :, None, None].chunk(2, dim=1)
        out: Tensor = self.last(torch.relu(self.first(x) * (1 + scale) + shift))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 5, 5), torch.randn(2, 4)
