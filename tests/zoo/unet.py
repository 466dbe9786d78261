"""A small U-Net: a transposed convolution on the way up meets the skip by concatenation; group norm below."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 4, "families": 1, "groups": 6, "units": 28}
# down (6), the two blocks of the norm at the bottom, up (5), merged (7); in either block of the norm its channels (4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 6, 3, padding=1)
        self.bottom = nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 5, 2, stride=2)
        self.merge = nn.Conv2d(11, 7, 3, padding=1)
        self.last = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        x = torch.relu(self.norm(self.bottom(skip)))
        x = torch.relu(self.up(x))
        x = torch.relu(self.merge(torch.cat([skip, x], dim=1)))
        out: Tensor = self.last(x)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 8, 8)
