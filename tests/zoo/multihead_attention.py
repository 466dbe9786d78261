"""`nn.MultiheadAttention` on itself, batch first, weights returned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 2, "groups": 8, "units": 39}
# the stream (12), three heads as blocks; in each head its units of q and k (4), and its units of v (4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.norm = nn.LayerNorm(12)
        self.inner = nn.MultiheadAttention(12, 3, batch_first=True)
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.inner(x, x, x)[0]
        return mixed

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.attend(self.norm(x))
        out: Tensor = self.last(x)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 4, 5)
