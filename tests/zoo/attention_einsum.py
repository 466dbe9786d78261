"""Projections as parameters of shape (head, unit, stream), all in einsum notation."""

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
        self.query = nn.Parameter(torch.randn(3, 4, 12))
        self.key = nn.Parameter(torch.randn(3, 4, 12))
        self.value = nn.Parameter(torch.randn(3, 4, 12))
        self.bias = nn.Parameter(torch.randn(3, 1, 4))
        self.out = nn.Parameter(torch.randn(3, 4, 12))
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = (torch.einsum("btm,hdm->bhtd", x, part) for part in (self.query, self.key, self.value))
        weights = torch.einsum("bhtd,bhsd->bhts", q + self.bias, k).softmax(-1)
        return torch.einsum("bhts,bhsd,hdm->btm", weights, v, self.out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.attend(self.norm(x))
        out: Tensor = self.last(x)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 4, 5)
