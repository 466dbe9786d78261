"""A plain stack of linear layers: one group of units between each two."""

from __future__ import annotations

from torch import nn


def build(width: int = 64, depth: int = 3) -> nn.Module:
    """`depth` groups of `width` units, between 32 inputs and 10 outputs."""
    layers: list[nn.Module] = [nn.Linear(32, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))
