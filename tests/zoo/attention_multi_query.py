"""Multi-query attention: one head of keys and values serves three query heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 4, "families": 0, "groups": 4, "units": 23}
# the stream (12), the three query heads, the units of q and k (4) shared by all heads, the units of v (4) likewise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.norm = nn.LayerNorm(12)
        self.query = nn.Linear(12, 12)
        self.pair = nn.Linear(12, 8)
        self.out = nn.Linear(12, 12)
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q = self.query(x).view(batch, time, 3, 4).transpose(1, 2)
        k, v = self.pair(x).split(4, dim=-1)
        weights = torch.softmax(torch.einsum("bhtd,bsd->bhts", q, k), dim=-1)
        mixed = torch.einsum("bhts,bsd->bthd", weights, v)
        out: Tensor = self.out(mixed.reshape(batch, time, 12))
        return out

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.attend(self.norm(x))
        out: Tensor = self.last(x)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 4, 5)
