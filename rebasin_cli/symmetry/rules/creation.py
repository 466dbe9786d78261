"""New tensors: uniform ones, ordered ones, and constants of the model."""

from __future__ import annotations

from math import isqrt

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.symmetry.positions import AxisLayout, Entry, Factor, IdBlock, Ids, dimension, uniform_layout
from rebasin_cli.symmetry.registry import Op, fixed_results, hold_all, rule
from rebasin_cli.symmetry.relations import Relations

DIFFERS = "a constant varies along this axis"
ORDERED = "values generated in order (a range, random numbers)"
DRAWN = "random numbers are drawn in order along this axis"
DRAWN_FROM = {
    f"aten.{name}"
    for name in ("bernoulli.default", "normal.Tensor_float", "normal.float_Tensor", "normal.Tensor_Tensor")
}
"""Overloads whose arguments are parameters of the distribution, not memory to be filled."""
MOST_ALIKE = 4096
"""Longest axis of a constant that is searched for positions with equal values."""

SMALLEST = {1: 3, 2: 2}
"""Smallest identity matrix, flattened and not."""
MOST_NUMBERS = 1 << 20
"""Largest constant that is searched."""


@rule(
    *(f"aten.{name}{ending}" for name in ("empty", "full", "ones", "zeros") for ending in ("", "_like")),
    *(f"aten.new_{name}" for name in ("empty", "full", "ones", "zeros", "empty_strided")),
    "aten.empty_strided",
    "aten.fill",
    "aten.scalar_tensor",
    "aten.zero",
)
def uniform(op: Op) -> list[AxisLayout]:
    return [uniform_layout(shape) for shape in op.result_shapes]


@rule(
    *(f"aten.{name}{ending}" for name in ("rand", "randn", "randint") for ending in ("", "_like")),
    *(f"aten.{name}" for name in ("bernoulli", "exponential", "normal", "normal_functional", "randperm", "uniform")),
    *(f"aten.{name}" for name in ("cauchy", "geometric", "log_normal", "random")),
    *(f"aten.{name}_window" for name in ("bartlett", "blackman", "hamming", "hann", "kaiser")),
    "aten.arange",
    "aten.linspace",
    "aten.logspace",
    "aten.eye",
)
def ordered(op: Op) -> list[AxisLayout]:
    """What a random number is drawn from, if that is a tensor, keeps its order as well."""
    if op.call.overload in DRAWN_FROM:
        for layout in op.tensors:
            hold_all(op.relations, layout, DRAWN)
    return fixed_results(op, ORDERED)


@rule("aten.binomial", "aten.poisson", "aten.multinomial", "aten._standard_gamma", "aten._sample_dirichlet")
def drawn(op: Op) -> list[AxisLayout]:
    """Random numbers whose distribution the arguments give: the next pass draws others, in the order of positions."""
    for layout in op.tensors:
        hold_all(op.relations, layout, DRAWN)
    return fixed_results(op, DRAWN)


def constant_layout(relations: Relations, numbers: Tensor) -> AxisLayout:
    """Layout of a constant tensor.

    Axes along which its values do not change are uniform. Along the others, positions with equal values (a mask's equal
    rows) may be exchanged; an axis without such positions is fixed.
    """
    layout = uniform_layout(tuple(numbers.shape))
    if not numbers.numel():
        return layout
    identity = _identity(numbers)
    if identity is not None:
        return identity
    fixed, entries = {}, []
    for place, dim in enumerate(layout.dims):
        for factor in dim:
            if bool(torch.all(numbers == numbers.narrow(place, 0, 1))):
                continue
            alike = _alike(numbers, place)
            if alike is None:
                fixed[factor] = DIFFERS
            else:
                entries.append(Entry((factor,), IdBlock(factor.size)))
                relations.colour(relations.ids(entries[-1]), alike)
    return AxisLayout(layout.dims, tuple(entries), fixed)


def _identity(numbers: Tensor) -> AxisLayout | None:
    """The layout of `a I + b`, alike along all other dimensions; None for any other constant.

    It does not change where rows and columns are permuted alike, so both have the same ids. The matrix may be flattened
    (one dimension of length k^2, as in a network that adds it to the output of a linear layer), but not of 2 by 2,
    which any mask of four could be.
    """
    if numbers.numel() > MOST_NUMBERS:
        return None
    varying = [d for d in range(numbers.dim()) if not bool(torch.all(numbers == numbers.narrow(d, 0, 1)))]
    rows = numbers[tuple(slice(None) if d in varying else 0 for d in range(numbers.dim()))]
    size = isqrt(rows.numel())
    if len(varying) not in (1, 2) or size < SMALLEST[len(varying)] or rows.numel() != size * size:
        return None
    if len(varying) == 2 and rows.shape[0] != size:
        return None
    matrix = rows.reshape(size, size)
    beside = matrix[~torch.eye(size, dtype=torch.bool)]
    if bool(torch.any(matrix.diagonal() != matrix[0, 0])) or bool(torch.any(beside != beside[0])):
        return None
    first, second, block = Factor(size), Factor(size), IdBlock(size)
    own = iter([(first, second)] if len(varying) == 1 else [(first,), (second,)])
    dims = tuple(next(own) if d in varying else dimension(length) for d, length in enumerate(numbers.shape))
    return AxisLayout(dims, (Entry((first,), block), Entry((second,), block)))


def _alike(numbers: Tensor, place: int) -> Ids | None:
    """Equal labels for positions along a dimension with equal values; None if all differ, or there are too many."""
    if numbers.shape[place] > MOST_ALIKE or numbers.numel() > MOST_NUMBERS or numbers.is_complex():
        return None
    rows = np.ascontiguousarray(numbers.movedim(place, 0).reshape(numbers.shape[place], -1).double().numpy())
    labels: Ids = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
    return None if len(np.unique(labels)) == len(labels) else labels
