"""Slabs: the few rows and columns of a tensor that a product needs, as a float32 matrix, gathered in pieces.

Nothing here holds more than a piece of a tensor at a time, whatever the file's dtype; mapped tensors stay mapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.matching.folds import FoldedShape, Index

PIECE = 1 << 20
"""Elements of one piece: 4 MiB of float32."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How a tile looks at its tensor: rows along `fold`, columns along `lead` (None if there is no other fold)."""

    fold: int
    lead: int | None
    rest: tuple[int, ...]

    def extent(self, shape: FoldedShape) -> int:
        return 1 if self.lead is None else shape.sizes[self.lead]


def frame(shape: FoldedShape, fold: int, movable: Sequence[int]) -> Frame:
    """Choose as columns the longest fold that something moves, or the longest of all where nothing else moves."""
    others = [other for other in range(len(shape.sizes)) if other != fold]
    if not others:
        return Frame(fold, None, ())
    lead = max(others, key=lambda other: (other in movable, shape.sizes[other]))
    return Frame(fold, lead, tuple(other for other in others if other != lead))


def column_pieces(shape: FoldedShape, look: Frame, rows: int, columns: Index | None) -> Iterator[slice | Index]:
    """Split columns (all of them, or those listed) so that a slab stays within a piece."""
    per_column = max(1, rows)
    for other in look.rest:
        per_column *= shape.sizes[other]
    step = max(1, PIECE // per_column)
    total = look.extent(shape) if columns is None else len(columns)
    for start in range(0, total, step):
        yield slice(start, min(start + step, total)) if columns is None else columns[start : start + step]


def gathered(view: Tensor, fold: int, index: Index) -> Tensor:
    """`view` with one fold gathered, on whatever device it lies."""
    return view.index_select(fold, torch.from_numpy(np.ascontiguousarray(index)).to(view.device))


def slab(
    tensor: Tensor,
    shape: FoldedShape,
    look: Frame,
    rows: Index,
    columns: slice | Index,
    gathers: Mapping[int, Index | None],
    device: torch.device,
) -> Tensor:
    """The entries at `rows` (cells, width) and these columns, seen through `gathers`: float32 (cells, width * …)."""
    view = tensor.detach().reshape(shape.sizes)
    if look.lead is not None:
        through = gathers.get(look.lead)
        if through is not None:
            view = gathered(view, look.lead, through[columns])
        elif isinstance(columns, slice):
            view = view.narrow(look.lead, columns.start, columns.stop - columns.start)
        else:
            view = gathered(view, look.lead, columns)
    for other in look.rest:
        through = gathers.get(other)
        if through is not None:
            view = gathered(view, other, through)
    flat = rows.reshape(-1)
    if len(flat) != shape.sizes[look.fold] or (flat != np.arange(len(flat))).any():
        view = gathered(view, look.fold, flat)
    matrix = view.to(device=device, dtype=torch.float32).movedim(look.fold, 0)
    return matrix.reshape(rows.shape[0], -1)
