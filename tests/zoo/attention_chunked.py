"""Attention with q, k and v packed and cut by `chunk` before the heads are seen, the mask added by hand."""

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
        self.qkv = nn.Linear(12, 36, bias=False)
        self.out = nn.Linear(12, 12)
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = (part.view(batch, time, 3, 4).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        scores = q @ k.transpose(-2, -1)
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).contiguous().view(batch, time, 12)
        out: Tensor = self.out(mixed)
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
