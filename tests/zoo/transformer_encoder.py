"""`nn.TransformerEncoder`, two layers, with a causal mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 5, "families": 4, "groups": 17, "units": 98}
# the stream (12); in each layer three heads and the feed-forward units (16); in each head q with k (4) and v (4):
# 12 + 2 * (3 + 16 + 3 * 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.last = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out: Tensor = self.last(self.body(self.first(x), mask=mask))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 4, 5)
