"""A diffusion transformer: its norms are scaled and shifted by the time, and its residuals gated."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, 2)
        y = self.norm1(x) * (1 + scale1) + shift1
        x = x + gate1 * self.attention(y, y, y, need_weights=False)[0]
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)


class DiffusionTransformer(nn.Module):
    """From a noisy image and its time to the noise."""

    def __init__(self, layers: int, width: int, heads: int, patch: int, side: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, (side // patch) ** 2, width) * 0.02)
        self.time = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 3 * patch * patch)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        condition = self.time(time)
        h = self.patch(x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            h = block(h, condition)
        return self.head(self.norm(h))


def build(layers: int = 4, width: int = 64, heads: int = 4, patch: int = 4, side: int = 16) -> nn.Module:
    """`layers` blocks of `width` units; the time comes as 16 numbers."""
    return DiffusionTransformer(layers, width, heads, patch, side)
