"""`nn.GRU`: two layers, both directions, after a linear embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 5, "families": 0, "groups": 5, "units": 34}
# the embedding (6), and the state (7) of either direction in either layer


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.body = nn.GRU(6, 7, num_layers=2, bidirectional=True, batch_first=True)
        self.last = nn.Linear(14, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(self.embed(x))[0])
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 4, 5)
