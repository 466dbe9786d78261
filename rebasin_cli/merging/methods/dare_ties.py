"""DARE with the signs of TIES (Yu et al. 2024; as `dare_ties` of mergekit).

Of each task vector `W_i - base` every number is dropped with probability `1 - density`, and the others are divided by
`density`. A sign is elected as in TIES; the weighted task vectors that have it are summed, not averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.merging.method import MergeMethod, Need, OneTensor, Weighting
from rebasin_cli.merging.methods.task_vectors import DensityOptions, dropped, elected_sum

if TYPE_CHECKING:
    from torch import Tensor

DENSITY = 0.5


def _combine(one: OneTensor) -> Tensor:
    options = one.own(DensityOptions)
    density = DENSITY if options.density is None else options.density
    total, _ = elected_sum(one, lambda delta, number: dropped(delta, density, one.seed, one.key, number))
    return one.origin + options.scale * total


METHOD = MergeMethod(
    name="dare-ties",
    help="Task vectors with numbers dropped at random, then the signs of TIES (Yu et al. 2024).",
    combine=_combine,
    needs=frozenset({Need.BASE}),
    weighting=Weighting.FACTORS,
    options=DensityOptions,
)
