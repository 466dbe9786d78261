"""A speed-run convolutional network in functions: whitening, then three groups of two convolutions each."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EXPECTED = {"roots": 7, "families": 0, "groups": 7, "units": 66}
# the whitened channels (6) and the output of each of the six convolutions (8, 8, 10, 10, 12, 12)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whiten = nn.Parameter(torch.randn(6, 3, 2, 2), requires_grad=False)
        widths = [6, 8, 10, 12]
        self.kernels = nn.ParameterDict()
        self.norms = nn.ModuleDict()
        for group, (before, after) in enumerate(pairwise(widths)):
            self.kernels[f"{group}a"] = nn.Parameter(torch.randn(after, before, 3, 3))
            self.kernels[f"{group}b"] = nn.Parameter(torch.randn(after, after, 3, 3))
            self.norms[f"{group}a"] = nn.BatchNorm2d(after)
            self.norms[f"{group}b"] = nn.BatchNorm2d(after)
        self.head = nn.Parameter(torch.randn(4, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(F.conv2d(x, self.whiten))
        for group in range(3):
            x = F.conv2d(x, self.kernels[f"{group}a"], padding="same")
            x = F.gelu(self.norms[f"{group}a"](F.max_pool2d(x, 2)))
            x = F.conv2d(x, self.kernels[f"{group}b"], padding="same")
            x = F.gelu(self.norms[f"{group}b"](x))
        return F.linear(torch.amax(x, dim=(2, 3)), self.head) / 9


def build() -> nn.Module:
    return Net()


def example_input() -> Tensor:
    return torch.randn(2, 3, 17, 17)
