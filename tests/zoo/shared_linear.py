"""One linear layer used twice in a row: its rows feed its own columns."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 1, "families": 0, "groups": 1, "units": 8}
# what goes in is what came out before, so both axes of the shared matrix move as one (8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.shared = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.shared(x))
        x = torch.relu(self.shared(x))
        out: Tensor = self.last(x)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(4, 5)
