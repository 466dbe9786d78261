"""Every convolution reads the concatenation of all before it, through a norm of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

EXPECTED = {"roots": 3, "families": 0, "groups": 3, "units": 14}
# the stem's channels (6) and the growth of either layer (4, 4), each at its offset in all later norms and kernels


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(width) for width in (6, 10, 14)])
        self.layers = nn.ModuleList([nn.Conv2d(width, 4, 3, padding=1) for width in (6, 10)])
        self.head = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            seen.append(layer(torch.relu(norm(torch.cat(seen, 1)))))
        joint = torch.relu(self.norms[-1](torch.cat(seen, 1)))
        out: Tensor = self.head(joint.mean((2, 3)))
        return out


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 3, 6, 6)
