"""An LSTM cell by hand: four gates packed into one matrix, states that start at zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 0, "groups": 2, "units": 13}
# the embedding (6), and the units of the state (7) at both axes of the recurrent matrix, four gates alike


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.given = nn.Linear(6, 28)
        self.kept = nn.Linear(7, 28, bias=False)
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x.new_zeros(x.shape[0], 7)
        cell = torch.zeros_like(hidden)
        for step in self.embed(x).unbind(1):
            keep, write, new, show = (self.given(step) + self.kept(hidden)).chunk(4, -1)
            cell = torch.sigmoid(keep) * cell + torch.sigmoid(write) * torch.tanh(new)
            hidden = torch.sigmoid(show) * torch.tanh(cell)
        out: Tensor = self.last(hidden)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 4, 5)
