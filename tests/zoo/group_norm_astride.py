"""Group norm over two concatenated tensors, one of its groups half in either."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 4, "families": 0, "groups": 4, "units": 12}
# the norm's groups are cut by the concatenation into (4), (2), (2), (4), and no two of these lie alike


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 6, 1)
        self.right = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.GroupNorm(3, 12)
        self.last = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1))))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 5, 5)
