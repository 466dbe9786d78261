"""Group norm over two concatenated tensors, its groups within either of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 2, "groups": 6, "units": 16}
# the two blocks of the norm in either tensor (2, 2), and in each of the four blocks its channels (3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 1)
        self.right = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.GroupNorm(4, 12)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1))))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 5, 5)
