"""Convolutions flattened into a linear layer, pooled adaptively before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 3, "families": 0, "groups": 3, "units": 21}
# the channels of either convolution (6, 7): each is four columns of the linear layer, whose units are (8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3),
            nn.PReLU(6),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 7, 3),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Dropout(),
            nn.Linear(28, 8),
            nn.ReLU(inplace=True),
            nn.Linear(8, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 12, 12)
