"""Objectives: the plain inner product, or one in which tensors or rows have other weights.

Every weighing multiplies the tensors of both sides by factors that depend on norms alone. The permutations of the spec
do not change these norms, so the result is the same matching problem with other numbers. Factors are applied when a
tensor is read; one tensor of a side is in memory at a time, and no model is copied.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.errors import UsageError
from rebasin_cli.spec import PermutationSpec

OBJECTIVES = ("plain", "matrices", "tensors", "rows")
"""`plain`: `sum over parameters <A, B permuted>`. `matrices`: the same without vectors, the scales and shifts of norms
and all biases. `tensors`: the sum of the matrices' cosines. `rows`: the sum of the cosines of their rows, which for
linear and convolutional layers are what one unit reads."""

PLAIN = "plain"


@dataclass(frozen=True, slots=True)
class Weighing:
    """Both sides as an objective weighs them, and the parameters that it counts."""

    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    keys: tuple[str, ...]


def check_objective(name: str) -> None:
    """Raise UsageError for an objective that does not exist."""
    if name not in OBJECTIVES:
        raise UsageError(f"unknown objective {name!r}", hint=f"objectives are: {', '.join(OBJECTIVES)}")


def weigh(
    name: str, spec: PermutationSpec, a: Mapping[str, Tensor], b: Mapping[str, Tensor], parameters: Collection[str]
) -> Weighing:
    """The pair as the objective of this name weighs it; for `plain` the pair itself.

    Args:
        a, b: tensors by key, read when they are needed.
        parameters: the keys that could count.

    Raises:
        UsageError: there is no such objective.
    """
    check_objective(name)
    keys = tuple(parameters)
    if name == PLAIN:
        return Weighing(a, b, keys)
    matrices = tuple(key for key in keys if key in a and a[key].dim() > 1)
    if name == "matrices" or not matrices:
        return Weighing(a, b, matrices or keys)
    by_rows = _row_by_row(spec, matrices) if name == "rows" else frozenset()
    return Weighing(_Scaled(a, matrices, by_rows), _Scaled(b, matrices, by_rows), matrices)


def _row_by_row(spec: PermutationSpec, keys: Collection[str]) -> frozenset[str]:
    """The tensors whose rows have norms that no permutation changes: rows move as a whole, or within themselves."""
    spanned = {site.key for group in spec.groups for site in group.sites if site.axis == 0 and site.span > 1}
    return frozenset(key for key in keys if key not in spanned)


class _Scaled(Mapping[str, Tensor]):
    """Tensors of norm one, or with rows of norm one; tensors that do not count are unchanged."""

    def __init__(self, tensors: Mapping[str, Tensor], keys: Collection[str], by_rows: Collection[str]) -> None:
        self._tensors, self._keys, self._by_rows = tensors, frozenset(keys), by_rows
        self._factors: dict[str, Tensor] = {}
        self._last: tuple[str, Tensor] | None = None

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._keys:
            return self._tensors[key]
        if self._last is None or self._last[0] != key:
            self._last = None  # before the next one is made
            tensor = self._tensors[key].detach()
            self._last = key, tensor.float() * self._factor(key, tensor)
        return self._last[1]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _factor(self, key: str, tensor: Tensor) -> Tensor:
        if key not in self._factors:
            flat = tensor.reshape(len(tensor), -1) if key in self._by_rows else tensor.reshape(1, -1)
            norm = torch.linalg.vector_norm(flat, dim=1, dtype=torch.float32)
            inverse = torch.where(norm > 0, 1 / norm, 0.0)
            self._factors[key] = inverse.view(-1, *[1] * (tensor.dim() - 1))
        return self._factors[key]
