"""Two ShuffleNet units: half of the channels pass, the other half is convolved, then all are interleaved."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 8, "families": 0, "groups": 8, "units": 24}
# the stem's passing half is cut in two by the second unit (2, 2), its other half (4) is consumed; so is the first
# branch (2, 2); the middles of both branches (4, 4); the second branch (4)


class Unit(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(4, 4, 1)
        self.depth = nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.two = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        keep, take = x.chunk(2, dim=1)
        take = self.two(self.norm(self.depth(torch.relu(self.one(take)))))
        joint = torch.cat([keep, take], dim=1)
        batch, width, high, wide = joint.shape
        return joint.view(batch, 2, width // 2, high, wide).transpose(1, 2).reshape(batch, width, high, wide)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.units = nn.Sequential(Unit(), Unit())
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.units(self.stem(x))).mean((2, 3)))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 6, 6)
