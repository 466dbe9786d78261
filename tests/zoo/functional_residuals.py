"""Residual blocks written with bare parameters and functions: no module is ever called."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 3, "families": 0, "groups": 3, "units": 32}
# the stream (8) through both additions, and the hidden units (12) of either block


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(8, 5))
        self.up = nn.ParameterList([torch.randn(12, 8) for _ in range(2)])
        self.down = nn.ParameterList([torch.randn(8, 12) for _ in range(2)])
        self.last = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.first.t()
        for up, down in zip(self.up, self.down, strict=True):
            x = x + F.linear(F.gelu(F.linear(x, up)), down)
        return torch.einsum("bi,oi->bo", x, self.last)


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(4, 5)
