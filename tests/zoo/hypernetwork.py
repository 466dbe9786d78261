"""A matrix made by another network and used as a weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 0, "groups": 2, "units": 9}
# the maker's hidden units (5), and the rows (4) of the matrix that it makes, blocks of its output


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 5)
        self.maker = nn.Linear(5, 12)
        self.last = nn.Linear(4, 2)

    def forward(self, x: Tensor, about: Tensor) -> Tensor:
        weight = self.maker(torch.relu(self.first(about))).view(4, 3)
        out: Tensor = self.last(torch.relu(x @ weight.t()))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> tuple[Tensor, Tensor]:
    return torch.randn(6, 3), torch.randn(2)
