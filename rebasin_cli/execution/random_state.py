"""Random weights on which a wrong claim shows: nothing is symmetric, dead or tiny by accident.

Matrices keep the scale of what passes through them (standard deviation `sqrt(2 / fan-in)`, He et al. 2015, equation
10); vectors that scale, and variances, lie between 0.5 and 1.5; vectors that shift lie near 0. So a LayerScale of 1e-6,
a norm that begins at zero or a gate that is closed have ordinary sizes here, whatever a checkpoint holds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from math import prod, sqrt

import torch
from torch import Tensor, nn

from rebasin_cli.model.state import state_tensors, ties

PERIOD = 262_147
"""Random numbers that are drawn; a longer tensor repeats them. It is prime, so that they lie otherwise in every row."""


class RandomState(Mapping[str, Tensor]):
    """Random tensors for everything trained, by state-dict key; index tables and counters as the module has them.

    Nothing is kept but one table of numbers: a tensor is read out of it, from a place that its key gives, each time it
    is asked for, so that the weights of a network of any size cost no memory and no more time than a copy. They are
    float32, which is half as much to make and to permute; what computes with them widens them. Tied keys give one
    tensor.
    """

    def __init__(self, module: nn.Module, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self._slots = state_tensors(module)
        self._ties = ties(module)
        self._seed, self._dtype = seed, dtype

    def __getitem__(self, key: str) -> Tensor:
        first = self._ties.get(key, key)
        slot = self._slots[first]
        if not (slot.is_floating_point() or slot.is_complex()):
            return slot.detach()
        shape = tuple(slot.shape)
        if slot.is_complex():
            parts = [random_tensor(first, shape, self._seed, self._dtype, part) for part in ("real", "imaginary")]
            return torch.complex(*parts)
        return random_tensor(first, shape, self._seed, self._dtype)

    def __contains__(self, key: object) -> bool:
        return key in self._slots

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)


def random_tensor(
    key: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float64, part: str = ""
) -> Tensor:
    """Numbers for one tensor of the state, of the scale that its name and its shape ask for.

    Args:
        part: names one of several that a key needs (the halves of complex numbers).
    """
    name = key.rpartition(".")[2]
    place = _number(seed, f"{key}/{part}" if part else key)
    if len(shape) > 1:
        return _read_from(_table(seed, dtype, normal=True), place, shape, sqrt(2.0 / max(prod(shape[1:]), 1)))
    if "var" in name or ("bias" not in name and "mean" not in name):
        return _read_from(_table(seed, dtype, normal=False), place, shape, 1.0)
    return _read_from(_table(seed, dtype, normal=True), place, shape, 0.1)


def _number(seed: int, key: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}:{key}".encode()).digest()[:7], "big")


@lru_cache(maxsize=4)
def _table(seed: int, dtype: torch.dtype, *, normal: bool) -> Tensor:
    """`PERIOD` numbers: standard normal ones, or from 0.5 to 1.5."""
    generator = torch.Generator().manual_seed(_number(seed, "normal" if normal else "uniform"))
    if normal:
        return torch.randn(PERIOD, generator=generator, dtype=dtype)
    return torch.rand(PERIOD, generator=generator, dtype=dtype) + 0.5


def _read_from(table: Tensor, place: int, shape: tuple[int, ...], scale: float) -> Tensor:
    """Numbers of the table from a place on, around its end as often as the shape asks for, times `scale`."""
    count, start = prod(shape), place % PERIOD
    made = table.new_empty(count)
    head = min(count, PERIOD - start)
    torch.mul(table[start : start + head], scale, out=made[:head])
    rounds = (count - head) // PERIOD
    if rounds:
        torch.mul(table.expand(rounds, -1), scale, out=made[head : head + rounds * PERIOD].view(rounds, PERIOD))
    tail = made[head + rounds * PERIOD :]
    torch.mul(table[: len(tail)], scale, out=tail)
    return made.view(shape)


def varied(seed: int, key: str, tensor: Tensor) -> Tensor:
    """A checkpoint's tensor, varied: for models that give no numbers on random weights.

    Every number is multiplied by one drawn from [0.5, 1.5], so that signs, zeros of masks and rough sizes stay.
    """
    if not tensor.is_floating_point():
        return tensor
    factors = _read_from(_table(seed, torch.float64, normal=False), _number(seed, key), tuple(tensor.shape), 1.0)
    return tensor.double() * factors
