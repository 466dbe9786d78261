"""Gated units three ways: `F.glu`, one projection in two chunks, and two projections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 4, "families": 0, "groups": 4, "units": 26}
# the stream (8); the units of each gate (6 each): both halves of a packed projection move alike


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.packed = nn.Linear(8, 12)
        self.unpacked = nn.Linear(6, 8)
        self.chunked = nn.Linear(8, 12)
        self.unchunked = nn.Linear(6, 8)
        self.gate = nn.Linear(8, 6, bias=False)
        self.up = nn.Linear(8, 6, bias=False)
        self.down = nn.Linear(6, 8, bias=False)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.unpacked(F.glu(self.packed(x), -1))
        value, gate = self.chunked(x).chunk(2, -1)
        x = x + self.unchunked(value * F.gelu(gate))
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        out: Tensor = self.last(x)
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(4, 5)
