"""Packed projection with the heads outermost: (head, q k v, unit), as in GPT-NeoX."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 2, "groups": 8, "units": 39}
# the stream (12), three heads as blocks; in each head its units of q and k (4), and its units of v (4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.norm = nn.LayerNorm(12)
        self.qkv = nn.Linear(12, 36)
        self.out = nn.Linear(12, 12)
        self.last = nn.Linear(12, 3)

    def attend(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        q, k, v = self.qkv(x).view(batch, time, 3, 12).transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, time, 12))
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
