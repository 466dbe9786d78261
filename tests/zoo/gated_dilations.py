"""Dilated causal convolutions with gates, a residual stream and a sum of skips; the last residual is never read."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 4, "families": 0, "groups": 4, "units": 23}
# the stream (6), the gated units of either layer (5, 5), the sum of skips (7)


class Layer(nn.Module):
    def __init__(self, dilation: int) -> None:
        super().__init__()
        self.gate = nn.Conv1d(6, 10, 2, dilation=dilation)
        self.onward = nn.Conv1d(5, 6, 1)
        self.skip = nn.Conv1d(5, 7, 1)
        self.dilation = dilation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, gate = self.gate(F.pad(x, (self.dilation, 0))).chunk(2, dim=1)
        units = torch.tanh(value) * torch.sigmoid(gate)
        return x + self.onward(units), self.skip(units)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, 6, 1)
        self.layers = nn.ModuleList([Layer(1), Layer(2)])
        self.last = nn.Conv1d(7, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.first(x), 0
        for layer in self.layers:
            x, skip = layer(x)
            total = total + skip
        out: Tensor = self.last(torch.relu(total))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 2, 9)
