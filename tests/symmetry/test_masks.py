"""Masks of booleans and integers move with the units that they mask; indices and tables keep their order."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.symmetry.derive import Derivation
from tests.symmetry.rules.bench import found


class Pruned(nn.Module):
    """A sparse layer as it is written by hand."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.first.weight * self.mask
        return self.last(nn.functional.linear(x, weight, self.first.bias).tanh())


def mask_of(dtype: torch.dtype) -> Tensor:
    return (torch.rand(8, 5, generator=torch.Generator().manual_seed(0)) > 0.4).to(dtype)


def keys(derivation: Derivation) -> set[str]:
    return {site.key for group in derivation.spec.groups for site in group.sites}


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_a_mask_moves_whatever_its_dtype(dtype: torch.dtype) -> None:
    derivation = found(Pruned(mask_of(dtype)).double(), torch.randn(2, 5).double())
    assert keys(derivation) == {"first.weight", "first.bias", "mask", "last.weight"}
    assert [group.size for group in derivation.spec.groups] == [8]


class Dropped(nn.Module):
    """Units that are switched off, by a mask that decides between two values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
        self.register_buffer("off", torch.tensor([True, False] * 4))
        self.register_buffer("kept", torch.tensor([0, 1] * 4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).tanh().masked_fill(self.off, 0.5)
        return self.last(hidden) / self.kept.sum()


def test_a_mask_that_is_also_counted_moves() -> None:
    assert "off" in keys(found(Dropped().double(), torch.randn(2, 5).double()))


class Routed(nn.Module):
    """Integers that pick units, and a causal mask over positions of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(4, 3)
        self.register_buffer("order", torch.tensor([6, 1, 3, 0]))
        self.register_buffer("causal", torch.ones(3, 3, dtype=torch.bool).tril())

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ x.mT).masked_fill(~self.causal, -1e9).softmax(2)
        return self.last(self.first(scores @ x).tanh()[..., self.order])


def test_indices_and_causal_masks_keep_their_order() -> None:
    moved = keys(found(Routed().double(), torch.randn(2, 3, 5).double()))
    assert {"first.weight", "last.weight"} <= moved
    assert not moved & {"order", "causal"}
