"""Small networks trained on scikit-learn's digits: what the laws of interpolation are held on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn


def plain_net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def norm_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(192, 10),
    )


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """All 1,797 images, float32 (n, 1, 8, 8) in [0, 1], and their labels, in a seeded order."""
    from sklearn.datasets import load_digits

    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.target))
    return (found.images[order, None] / 16).astype(np.float32), found.target[order].astype(np.int64)


def batches(start: int, stop: int, size: int) -> list[tuple[Tensor, Tensor]]:
    x, y = digits()
    ends = range(start, stop, size)
    return [(torch.from_numpy(x[i : min(i + size, stop)]), torch.from_numpy(y[i : min(i + size, stop)])) for i in ends]


@cache
def trained(kind: str, seed: int, epochs: int = 4) -> nn.Module:
    """A network of this kind after a short training; the same one for the same arguments. Do not change it."""
    torch.manual_seed(seed)
    module = plain_net() if kind == "plain" else norm_net()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(epochs):
        for x, y in batches(0, 1200, 60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(x), y).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return module.eval()
