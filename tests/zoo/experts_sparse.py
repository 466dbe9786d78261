"""A mixture that sends every token to the best two of four experts: data-dependent control flow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 5, "families": 0, "groups": 5, "units": 33}
# the stream (9), the hidden units (6) of each of the four experts; these are modules and are not permuted


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 9)
        self.router = nn.Linear(9, 4, bias=False)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 9)) for _ in range(4)])
        self.last = nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        share, chosen = self.router(x).softmax(-1).topk(2, dim=-1)
        mixed = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            token, slot = torch.where(chosen == number)
            if token.numel():
                mixed.index_add_(0, token, expert(x[token]) * share[token, slot, None])
        out: Tensor = self.last(x + mixed)
        return out


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net()


def example_input() -> Tensor:
    return torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
