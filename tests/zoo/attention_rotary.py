"""Rotary embedding with rotate-half: every pair of units of q and k has its own frequency."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 1, "groups": 5, "units": 27}
# the stream (12), the three heads, in each head its units of v (4); q and k keep their inner order


def turned(x: Tensor) -> Tensor:
    time, size = x.shape[-2:]
    speed = 100.0 ** (-torch.arange(0, size, 2).float() / size)
    angle = torch.outer(torch.arange(time).float(), speed)
    angle = torch.cat([angle, angle], dim=-1)
    first, second = x.chunk(2, dim=-1)
    return x * angle.cos() + torch.cat([-second, first], dim=-1) * angle.sin()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36, bias=False)
        self.out = nn.Linear(12, 12, bias=False)
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, 3, 4).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(turned(q) @ turned(k).transpose(-2, -1), dim=-1)
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
