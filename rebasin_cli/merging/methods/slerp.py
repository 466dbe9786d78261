"""Slerp: spherical interpolation of two networks (Shoemake 1985), tensor by tensor."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.merging.method import MergeMethod, Need, OneTensor

if TYPE_CHECKING:
    from torch import Tensor


def _combine(one: OneTensor) -> Tensor:
    from rebasin_cli.execution.weight_arithmetic import angle_between, slerp
    from rebasin_cli.merging.methods.linear import weighted_sum

    a, b = one.tensors
    if a.is_complex():
        return weighted_sum(one)
    return slerp(a, b, one.weights[1], angle_between(a, b))


METHOD = MergeMethod(
    name="slerp",
    help="Spherical interpolation of two networks (Shoemake 1985).",
    combine=_combine,
    needs=frozenset({Need.PAIR}),
)
