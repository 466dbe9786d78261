"""Channels scaled by a small network of their means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 0, "groups": 2, "units": 12}
# the channels (8) at both ends of the small network and in what it scales, its hidden units (4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.last = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)), inplace=True)
        scale = F.adaptive_avg_pool2d(x, 1)
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(scale), inplace=True)))
        out: Tensor = self.last(x * scale)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 6, 6)
