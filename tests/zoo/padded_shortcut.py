"""A shortcut that pads the missing channels with zeros on both sides (ResNet's option A)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 4, "families": 0, "groups": 4, "units": 30}
# the first stage (6), which lives on in the middle of the second; the channels around it (6: three before, three after,
# all added to zeros, so any may trade with any); the hidden channels of either block (9, 9)


class Block(nn.Module):
    def __init__(self, width: int, hidden: int, out: int, stride: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, hidden, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(hidden)
        self.two = nn.Conv2d(hidden, out, 3, 1, 1, bias=False)
        self.stride, self.extra = stride, out - width

    def forward(self, x: Tensor) -> Tensor:
        short = x[:, :, :: self.stride, :: self.stride]
        short = F.pad(short, (0, 0, 0, 0, self.extra // 2, self.extra // 2))
        return short + self.two(torch.relu(self.norm(self.one(x))))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.stage1 = Block(6, 9, 6, 1)
        self.stage2 = Block(6, 9, 12, 2)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(self.first(x)))
        out: Tensor = self.last(torch.relu(x).mean((2, 3)))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 6, 6)
