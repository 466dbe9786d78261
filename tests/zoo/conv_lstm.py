"""A convolutional LSTM: gates from a convolution over the concatenation of input and state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 0, "groups": 2, "units": 11}
# the embedded channels (5), and the state's channels (6) in four gates and behind the embedding's in every kernel


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(2, 5, 3, padding=1)
        self.gates = nn.Conv2d(11, 24, 3, padding=1)
        self.last = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _, high, wide = x.shape
        hidden = torch.zeros(batch, 6, high, wide)
        cell = torch.zeros(batch, 6, high, wide)
        for step in range(time):
            given = torch.relu(self.embed(x[:, step]))
            keep, write, show, new = torch.split(self.gates(torch.cat([given, hidden], dim=1)), 6, dim=1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(new)
            hidden = torch.sigmoid(show) * torch.tanh(cell)
        out: Tensor = self.last(hidden)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(1, 3, 2, 5, 5)
