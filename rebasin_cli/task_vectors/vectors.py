"""Task vectors tensor by tensor, and the sums between all pairs of them from one pass over the files.

A tensor of every network is in use at a time, in float64 chunks, whatever the size of the model: each file is read
once, not once for each pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rebasin_cli.execution.closeness import Closeness

CHUNK = 1 << 16
"""Elements of each vector that are multiplied at a time."""
NEAR = 1e-6
"""|t1 - t2|^2 below this part of |t1|^2 + |t2|^2 is summed from differences; above, it follows from the products."""


@dataclass(frozen=True, slots=True)
class TaskVector:
    """One fine-tuned network and the base that it was fine-tuned from, by key; read when asked for."""

    tuned: Mapping[str, Tensor]
    base: Mapping[str, Tensor]

    def matrix(self, key: str) -> Tensor:
        """The difference of one tensor, float64, in its shape."""
        return _wide(self.tuned[key]) - _wide(self.base[key])


def _wide(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def pairs_of(count: int) -> list[tuple[int, int]]:
    """All pairs (i, j) with i < j < count, in order."""
    return [(i, j) for i in range(count) for j in range(i + 1, count)]


class _Rows:
    """One tensor of every task vector as the rows of a matrix, a chunk of columns at a time, float64."""

    def __init__(self, vectors: Sequence[TaskVector], key: str) -> None:
        self._owners = [id(one.base) for one in vectors]
        self._bases = {owner: _flat(one.base[key]) for owner, one in zip(self._owners, vectors, strict=True)}
        self._tuned = [_flat(one.tuned[key]) for one in vectors]
        self.count, self.length = len(vectors), self._tuned[0].numel()

    def chunks(self, *chosen: int) -> Iterator[Tensor]:
        """The chosen rows, (rows, at most `CHUNK`) at a time."""
        for start in range(0, self.length, CHUNK):
            part = slice(start, start + CHUNK)
            bases = {owner: self._bases[owner][part].double() for owner in {self._owners[i] for i in chosen}}
            yield torch.stack([self._tuned[i][part].double() - bases[self._owners[i]] for i in chosen])


def pair_sums(vectors: Sequence[TaskVector], key: str) -> list[Closeness]:
    """The sums of one tensor for every pair of task vectors, in the order of `pairs_of`."""
    rows = _Rows(vectors, key)
    gram = torch.zeros(rows.count, rows.count, dtype=torch.float64)
    for chunk in rows.chunks(*range(rows.count)):
        gram += chunk @ chunk.T
    found = []
    for i, j in pairs_of(rows.count):
        a, b, dot = float(gram[i, i]), float(gram[j, j]), float(gram[i, j])
        apart = a + b - 2 * dot
        if apart <= NEAR * (a + b):
            apart = sum(float((chunk[0] - chunk[1]).square().sum()) for chunk in rows.chunks(i, j))
        found.append(Closeness(dot, a, b, apart))
    return found


def sums_of_rows(rows: Sequence[Tensor]) -> list[Closeness]:
    """The same for one vector of each network."""
    nothing = {"": torch.zeros(1, dtype=torch.float64).expand(rows[0].numel())}
    return pair_sums([TaskVector({"": row}, nothing) for row in rows], "")


def _flat(tensor: Tensor) -> Tensor:
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)
