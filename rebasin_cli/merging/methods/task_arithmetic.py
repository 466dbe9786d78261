"""Task arithmetic: `base + scale * sum_i w_i (W_i - base)` (Ilharco et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.merging.method import MergeMethod, Need, OneTensor, Weighting
from rebasin_cli.merging.methods.task_vectors import ScaleOptions

if TYPE_CHECKING:
    from torch import Tensor


def _combine(one: OneTensor) -> Tensor:
    total = one.origin
    for weight, delta in zip(one.weights, one.deltas, strict=True):
        total = total + one.own(ScaleOptions).scale * weight * delta
    return total


METHOD = MergeMethod(
    name="task-arithmetic",
    help="Base plus the weighted sum of the task vectors (Ilharco et al. 2023).",
    combine=_combine,
    needs=frozenset({Need.BASE}),
    weighting=Weighting.FACTORS,
    options=ScaleOptions,
)
