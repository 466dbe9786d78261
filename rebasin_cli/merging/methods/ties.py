"""TIES-Merging (Yadav et al. 2023): trim, elect a sign, and take the mean of what agrees with it.

1. Of each task vector `W_i - base`, the share `density` of largest magnitude is kept, tensor by tensor.
2. The elected sign of an element is that of the sum of the weighted task vectors.
3. The result is the weighted mean over those task vectors that have this sign there, times `scale`, plus the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.merging.method import MergeMethod, Need, OneTensor, Weighting
from rebasin_cli.merging.methods.task_vectors import DensityOptions, elected_sum, trimmed

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 0.2
"""The share in the paper."""


def _combine(one: OneTensor) -> Tensor:
    import torch

    options = one.own(DensityOptions)
    density = DENSITY if options.density is None else options.density
    total, weights = elected_sum(one, lambda delta, _: trimmed(delta, density))
    mean = total / torch.where(weights == 0, torch.ones_like(weights), weights)
    return one.origin + options.scale * mean


METHOD = MergeMethod(
    name="ties",
    help="Task vectors trimmed, a sign elected, and the mean of those that agree (Yadav et al. 2023).",
    combine=_combine,
    needs=frozenset({Need.BASE}),
    weighting=Weighting.FACTORS,
    options=DensityOptions,
)
