"""The true objective: `sum over parameters <A, B permuted>`, in float64, read piece by piece."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.slabs import PIECE, gathered


@dataclass(frozen=True, slots=True)
class Norms:
    """Squared norms of both sides over the parameters that count, and over each of them."""

    a: Mapping[str, float]
    b: Mapping[str, float]

    @property
    def scale(self) -> float:
        """`|A| |B|`: the objective in these units is the cosine."""
        return sqrt(sum(self.a.values()) * sum(self.b.values()))

    @property
    def bound(self) -> float:
        """The objective of a perfect match: `|A - B|` is 0 there and nowhere above."""
        return (sum(self.a.values()) + sum(self.b.values())) / 2

    def part(self, keys: Iterable[str]) -> float:
        """`|A| |B|` over some of the tensors."""
        chosen = set(keys)
        return sqrt(sum(self.a[k] for k in chosen) * sum(self.b[k] for k in chosen))

    def distance(self, objective: float) -> float:
        """`|A - B|` where `<A, B>` is the objective."""
        return sqrt(max(0.0, sum(self.a.values()) + sum(self.b.values()) - 2 * objective))


def norms_and_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor], keys: Iterable[str]) -> tuple[Norms, float]:
    """Squared norms of the named tensors, and `<A, B>` over them; each file is read once."""
    squares_a: dict[str, float] = {}
    squares_b: dict[str, float] = {}
    product = 0.0
    for key in keys:
        squares_a[key], squares_b[key], both = _moments(a[key], b[key])
        product += both
    return Norms(squares_a, squares_b), product


def inner_product(a: Mapping[str, Tensor], b: Mapping[str, Tensor], key: str, arrangement: Arrangement) -> float:
    """`<A, B permuted>` of one tensor, float64."""
    if key not in arrangement.families.shapes:
        return _dot(a[key], b[key])
    shape = arrangement.families.shapes[key]
    one, other = a[key].detach().reshape(shape.sizes), b[key].detach().reshape(shape.sizes)
    gathers = [arrangement.gather((key, fold)) for fold in range(len(shape.sizes))]
    if all(gather is None for gather in gathers):
        return _dot(one, other)
    step = max(1, PIECE * shape.sizes[0] // max(1, one.numel()))
    total = 0.0
    for start in range(0, shape.sizes[0], step):
        stop = min(start + step, shape.sizes[0])
        first = gathers[0]
        piece = other[start:stop] if first is None else gathered(other, 0, first[start:stop])
        for fold, gather in enumerate(gathers[1:], start=1):
            if gather is not None:
                piece = gathered(piece, fold, gather)
        total += _dot(one[start:stop], piece)
    return total


def objective(a: Mapping[str, Tensor], b: Mapping[str, Tensor], keys: Iterable[str], arrangement: Arrangement) -> float:
    """The objective over the named tensors."""
    return sum(inner_product(a, b, key, arrangement) for key in keys)


def _moments(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    """`<x, x>`, `<y, y>` and `<x, y>`, in the pieces of `_dot`, so that the last is what it gives."""
    flat, against = one.detach().reshape(-1), other.detach().reshape(-1)
    xx = yy = xy = 0.0
    for start in range(0, flat.numel(), PIECE // 4):
        x, y = (side[start : start + PIECE // 4].double() for side in (flat, against))
        xx, yy, xy = xx + float(torch.dot(x, x)), yy + float(torch.dot(y, y)), xy + float(torch.dot(x, y))
    return xx, yy, xy


def _dot(one: Tensor, other: Tensor) -> float:
    flat, against = one.detach().reshape(-1), other.detach().reshape(-1)
    total = 0.0
    for start in range(0, flat.numel(), PIECE // 4):
        piece = slice(start, start + PIECE // 4)
        total += float(torch.dot(flat[piece].double(), against[piece].double()))
    return total
