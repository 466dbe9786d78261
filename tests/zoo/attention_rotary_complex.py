"""Rotary embedding with complex numbers: neighbours are the two parts of one number."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 1, "groups": 5, "units": 27}
# the stream (12), the three heads, in each head its units of v (4); q and k keep their inner order


def turned(x: Tensor) -> Tensor:
    time, size = x.shape[1], x.shape[-1]
    speed = 100.0 ** (-torch.arange(0, size, 2).to(x.dtype) / size)
    angle = torch.outer(torch.arange(time).to(x.dtype), speed)
    circle = torch.polar(torch.ones_like(angle), angle)[:, None, :]
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * circle).flatten(3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.norm = nn.LayerNorm(12)
        self.query = nn.Linear(12, 12, bias=False)
        self.key = nn.Linear(12, 12, bias=False)
        self.value = nn.Linear(12, 12, bias=False)
        self.out = nn.Linear(12, 12, bias=False)
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q = turned(self.query(x).view(batch, time, 3, 4)).transpose(1, 2)
        k = turned(self.key(x).view(batch, time, 3, 4)).transpose(1, 2)
        v = self.value(x).view(batch, time, 3, 4).transpose(1, 2)
        weights = torch.softmax(q @ k.transpose(-2, -1), dim=-1)
        out: Tensor = self.out((weights @ v).transpose(1, 2).flatten(2))
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
