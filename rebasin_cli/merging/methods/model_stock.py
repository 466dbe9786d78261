"""Model stock (Jang et al. 2024): between the base and the mean, by the angle of the task vectors, tensor by tensor.

With N networks and cos the mean cosine between the task vectors of two of them,

    t = N cos / (1 + (N - 1) cos),    result = t * mean + (1 - t) * base.

The paper has one angle for all pairs; like mergekit, the mean over the pairs is taken. It follows from one sum: for the
task vectors u_i scaled to length 1, `|sum_i u_i|^2 = N + N (N - 1) cos`. The geometry of the paper has an acute angle;
where the mean cosine is negative, t is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.merging.method import MergeMethod, Need, OneTensor, Weighting

if TYPE_CHECKING:
    from torch import Tensor


def _combine(one: OneTensor) -> Tensor:
    import torch

    count, base = len(one.weights), one.origin
    units, mean = torch.zeros_like(base), torch.zeros_like(base)
    nonzero = 0
    for delta in one.deltas:
        length = float(delta.norm())
        mean += delta / count
        if length > 0:
            units += delta / length
            nonzero += 1
    if nonzero < 2:  # no angle
        return base + mean
    cosine = (float(units.square().sum()) - nonzero) / (nonzero * (nonzero - 1))
    ratio = 0.0 if cosine <= 0 else count * cosine / (1 + (count - 1) * cosine)
    return base + ratio * mean


METHOD = MergeMethod(
    name="model-stock",
    help="Between base and mean, by the angle between the task vectors (Jang et al. 2024).",
    combine=_combine,
    needs=frozenset({Need.BASE}),
    weighting=Weighting.NONE,
)
