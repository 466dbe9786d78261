"""Tensors seen with every permuted stretch of axes folded into one, so that a site is a table of indices on one fold.

Two sites that overlap on axes (a span beside a single axis of it, say) share the fold that covers both. A tensor
thereby has one fold for every independent place where units lie.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from rebasin_cli.spec import Site

Index = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FoldedShape:
    """The axes of one tensor after folding: `starts[f] … starts[f + 1]` are the original axes of fold f."""

    original: tuple[int, ...]
    starts: tuple[int, ...]
    sizes: tuple[int, ...]

    def fold_of(self, axis: int) -> int:
        """The fold that holds an original axis."""
        return max(fold for fold, start in enumerate(self.starts) if start <= axis)

    def end(self, fold: int) -> int:
        return self.starts[fold + 1] if fold + 1 < len(self.starts) else len(self.original)


def folded_shape(shape: Sequence[int], sites: Iterable[Site]) -> FoldedShape:
    """Fold a tensor's axes so that every site's axes lie in one fold; untouched neighbours are folded together too."""
    shape = tuple(shape)
    glued = [False] * max(len(shape) + 1, 1)
    touched = [False] * len(shape)
    for site in sites:
        for axis in range(site.axis, site.axis + site.span):
            touched[axis] = True
            if axis > site.axis:
                glued[axis] = True
    for axis in range(1, len(shape)):
        if not touched[axis] and not touched[axis - 1]:
            glued[axis] = True
    starts = tuple(axis for axis in range(len(shape)) if not glued[axis]) or (0,)
    ends = (*starts[1:], len(shape))
    return FoldedShape(shape, starts, tuple(prod(shape[s:e]) for s, e in zip(starts, ends, strict=True)))


def site_rows(site: Site, size: int) -> Index:
    """The indices on the site's own axes that each unit owns: (size, m)."""
    if site.positions is not None:
        return np.asarray(site.positions, dtype=np.int64)
    block = np.arange(site.outer * size * site.inner, dtype=np.int64).reshape(site.outer, size, site.inner)
    return site.offset + np.ascontiguousarray(block.transpose(1, 0, 2)).reshape(size, -1)


def rows_on_fold(site: Site, size: int, shape: FoldedShape) -> tuple[int, Index]:
    """The fold a site lies on, and the indices on that fold that each unit owns: (size, m)."""
    fold = shape.fold_of(site.axis)
    rows = site_rows(site, size)
    before = prod(shape.original[shape.starts[fold] : site.axis])
    own = prod(shape.original[site.axis : site.axis + site.span])
    after = prod(shape.original[site.axis + site.span : shape.end(fold)])
    if before == after == 1:
        return fold, rows
    lead = np.arange(before, dtype=np.int64)[:, None, None, None] * own * after
    inside = rows[None, :, :, None] * after + np.arange(after, dtype=np.int64)
    return fold, np.ascontiguousarray((lead + inside).transpose(1, 0, 2, 3)).reshape(size, -1)
