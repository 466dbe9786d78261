"""A mixture whose experts all run: stacked weights, a softmax router."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 1, "groups": 5, "units": 30}
# the stream (9), the three experts as blocks with their router rows, the hidden units (6) of each expert


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 9)
        self.router = nn.Linear(9, 3)
        self.up = nn.Parameter(torch.randn(3, 6, 9))
        self.shift = nn.Parameter(torch.randn(3, 6))
        self.down = nn.Parameter(torch.randn(3, 9, 6))
        self.last = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        share = self.router(x).softmax(-1)
        hidden = torch.relu(torch.einsum("bm,ehm->beh", x, self.up) + self.shift)
        given = torch.einsum("beh,emh->bem", hidden, self.down)
        out: Tensor = self.last(x + (share.unsqueeze(-1) * given).sum(1))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(4, 5)
