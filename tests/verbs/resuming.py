"""Two small networks, and training that can be interrupted: what a user does who resumes from an aligned file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

NETS = '''
import torch
from torch import nn


class Convolutional(nn.Module):
    """BatchNorm, a flattened feature map, and a layer that is frozen in some tests."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(2, 10, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(10)
        self.conv2 = nn.Conv2d(10, 10, 3, padding=1, stride=2)
        self.norm2 = nn.BatchNorm2d(10)
        self.hidden = nn.Linear(40, 14)
        self.head = nn.Linear(14, 3)

    def forward(self, x):
        x = self.norm1(self.conv1(x)).relu()
        x = self.norm2(self.conv2(x)).relu()
        return self.head(self.hidden(x.flatten(1)).relu())


class Block(nn.Module):
    """Without bias: the gradient of a key's bias is zero up to rounding, and Adafactor scales that rounding up."""

    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, bias=False, batch_first=True)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x):
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.into = nn.Linear(2, 12)
        self.blocks = nn.ModuleList(Block(12, 3) for _ in range(2))
        self.norm = nn.LayerNorm(12)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = self.into(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def convolutional():
    return Convolutional()


def attentive():
    return Attentive()
'''
INPUT = ["--input", "4,2,4,4"]
STEPS = 10


def furnish(place: Path) -> None:
    """`nets.py`, importable while the test runs."""
    (place / "nets.py").write_text(NETS)


def network(place: Path, name: str, *, seed: int, dtype: torch.dtype) -> nn.Module:
    """A network of random weights; those of norms too, so that no unit is like another."""
    sys.modules.pop("nets", None)
    sys.path.insert(0, str(place))
    try:
        import nets  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(place))
    torch.manual_seed(seed)
    module: nn.Module = getattr(nets, name)()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module.to(dtype)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    inputs = torch.randn(16, 2, 4, 4, generator=generator, dtype=torch.float64).to(dtype)
    return inputs, torch.randint(0, 3, (16,), generator=generator)


def train(
    module: nn.Module, optimizer: Any, steps: int = STEPS, after: Callable[[], None] | None = None
) -> list[float]:
    """The losses of some full-batch steps."""
    dtype = next(module.parameters()).dtype
    inputs, labels = batch(dtype)
    losses: list[float] = []
    module.train()
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(inputs), labels)
        loss.backward()
        optimizer.step()
        if after is not None:
            after()
        losses.append(loss.item())
    return losses


def assert_same_losses(found: Iterable[float], wanted: Iterable[float], dtype: torch.dtype) -> None:
    within = 1e-6 if dtype == torch.float32 else 1e-12
    for one, other in zip(found, wanted, strict=True):
        assert abs(one - other) <= within * abs(other), (one, other)


def moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> int:
    """The number of weights that are not as they were."""
    return sum(not torch.equal(before[key], after[key]) for key in before)
