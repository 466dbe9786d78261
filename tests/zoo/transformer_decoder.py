"""`nn.Transformer` with one encoder and one decoder layer: attention across two streams."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 7, "families": 6, "groups": 25, "units": 137}
# two streams (12, 12); encoder: heads (3), feed-forward (16); decoder: heads (3), heads across (3), feed-forward (16);
# in each of the nine heads q with k (4) and v (4): 24 + 19 + 22 + 72


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(7, 12)
        self.target = nn.Embedding(6, 12)
        self.body = nn.Transformer(12, 3, 1, 1, 16, batch_first=True)
        self.last = nn.Linear(12, 6)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        out: Tensor = self.last(self.body(self.source(source), self.target(target)))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> tuple[Tensor, Tensor]:
    return torch.arange(5).view(1, 5), torch.arange(4).view(1, 4)
