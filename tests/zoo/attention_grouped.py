"""Grouped queries: four query heads share two heads of keys and values, repeated by expand and reshape."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 3, "groups": 8, "units": 30}
# the stream (12), two key heads as blocks; in each, its two query heads, its units of q and k (3), its units of v (3):
# 12 + 2 + 2 * (2 + 3 + 3)


def repeated(x: Tensor, times: int) -> Tensor:
    batch, heads, time, size = x.shape
    return x[:, :, None].expand(batch, heads, times, time, size).reshape(batch, heads * times, time, size)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.norm = nn.LayerNorm(12)
        self.query = nn.Linear(12, 12, bias=False)
        self.key = nn.Linear(12, 6, bias=False)
        self.value = nn.Linear(12, 6, bias=False)
        self.out = nn.Linear(12, 12, bias=False)
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q = self.query(x).view(batch, time, 4, 3).transpose(1, 2)
        k = repeated(self.key(x).view(batch, time, 2, 3).transpose(1, 2), 2)
        v = repeated(self.value(x).view(batch, time, 2, 3).transpose(1, 2), 2)
        weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        out: Tensor = self.out((weights @ v).transpose(1, 2).reshape(batch, time, 12))
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
