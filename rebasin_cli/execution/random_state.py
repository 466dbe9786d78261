"""Random weights on which a wrong claim shows: nothing is symmetric, dead or tiny by accident.

Matrices keep the scale of what passes through them (standard deviation `sqrt(2 / fan-in)`, He et al. 2015, equation
10); vectors that scale, and variances, lie between 0.5 and 1.5; vectors that shift lie near 0. So a LayerScale of 1e-6,
a norm that begins at zero or a gate that is closed have ordinary sizes here, whatever a checkpoint holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from math import prod, sqrt

import torch
from torch import Tensor, nn

from rebasin_cli.model.state import state_tensors, ties

KEPT = 100_000_000
"""Numbers up to which random weights are kept (400 MB); above it they are drawn again each time they are read."""


class RandomState(Mapping[str, Tensor]):
    """Random tensors for everything trained, by state-dict key; index tables and counters as the module has them.

    They are drawn in float32, which is half as much to draw, to keep and to permute; what computes with them widens
    them.
    Every tensor is drawn from the seed and its own key, so that it can be drawn again at any time. Tied keys give one
    tensor.
    """

    def __init__(self, module: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self._slots = state_tensors(module)
        self._ties = ties(module)
        self._seed, self._dtype = seed, dtype
        self._kept: dict[str, Tensor] | None = {} if self.numbers <= KEPT else None

    @property
    def numbers(self) -> int:
        return sum(slot.numel() for key, slot in self._slots.items() if key not in self._ties)

    def __getitem__(self, key: str) -> Tensor:
        first = self._ties.get(key, key)
        slot = self._slots[first]
        if not (slot.is_floating_point() or slot.is_complex()):
            return slot.detach()
        if self._kept is None:
            return self._drawn(first, slot)
        if first not in self._kept:
            self._kept[first] = self._drawn(first, slot)
        return self._kept[first]

    def _drawn(self, key: str, slot: Tensor) -> Tensor:
        generator = key_generator(self._seed, key)
        if slot.is_complex():
            parts = [random_tensor(key, tuple(slot.shape), generator, self._dtype) for _ in range(2)]
            return torch.complex(*parts)
        return random_tensor(key, tuple(slot.shape), generator, self._dtype)

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


def key_generator(seed: int, key: str) -> torch.Generator:
    """A generator that depends on a seed and a name alone."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def random_tensor(
    key: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Numbers for one tensor of the state, of the scale that its name and its shape ask for."""
    name = key.rpartition(".")[2]
    if len(shape) > 1:
        fan_in = prod(shape[1:])
        return torch.randn(shape, generator=generator, dtype=dtype) * sqrt(2.0 / max(fan_in, 1))
    if "var" in name or ("bias" not in name and "mean" not in name):
        return torch.rand(shape, generator=generator, dtype=dtype) + 0.5
    return torch.randn(shape, generator=generator, dtype=dtype) * 0.1


def varied(seed: int, key: str, tensor: Tensor) -> Tensor:
    """A checkpoint's tensor, varied: for models that give no numbers on random weights.

    Every number is multiplied by one drawn from [0.5, 1.5], so that signs, zeros of masks and rough sizes stay.
    """
    if not tensor.is_floating_point():
        return tensor
    return tensor.double() * (torch.rand(tensor.shape, generator=key_generator(seed, key), dtype=torch.float64) + 0.5)
