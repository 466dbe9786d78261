"""A super-resolution network of dense residual blocks: every convolution reads all channels that its block has made."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Dense(nn.Module):
    """Five convolutions, each of the stream and of all before it; the last one writes to the stream."""

    def __init__(self, width: int, growth: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width + i * growth, growth, 3, padding=1) for i in range(4))
        self.last = nn.Conv2d(width + 4 * growth, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for conv in self.convs:
            seen.append(nn.functional.leaky_relu(conv(torch.cat(seen, 1)), 0.2))
        return x + 0.2 * self.last(torch.cat(seen, 1))


class DenseResidual(nn.Module):
    def __init__(self, blocks: int, width: int, growth: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Dense(width, growth) for _ in range(blocks)))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        return self.last(self.up(first + self.blocks(first)))


def build(blocks: int = 6, width: int = 16, growth: int = 8) -> nn.Module:
    """`blocks` dense blocks on a stream of `width` channels; images of twice the size."""
    return DenseResidual(blocks, width, growth)
