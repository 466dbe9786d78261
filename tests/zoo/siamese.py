"""One network on two inputs, compared by a product over its features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 2, "families": 0, "groups": 2, "units": 14}
# the hidden units (8) and the features (6): the product sums over them


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.features = nn.Linear(8, 6)

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize(self.features(torch.relu(self.first(x))), dim=-1)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return (self.embed(left) * self.embed(right)).sum(-1)


def build() -> nn.Module:
    return Net()


def example_input() -> tuple[Tensor, Tensor]:
    return torch.randn(4, 5), torch.randn(4, 5)
