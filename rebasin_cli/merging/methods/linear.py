"""Linear: the weighted mean `sum_i w_i W_i` with weights that sum to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.merging.method import MergeMethod, OneTensor

if TYPE_CHECKING:
    from torch import Tensor


def weighted_sum(one: OneTensor) -> Tensor:
    """`sum_i w_i W_i`, summed in float64, so that equal tensors give themselves; in the dtype of the first."""
    import torch

    total: Tensor | None = None
    dtype = torch.float32
    for weight, tensor in zip(one.weights, one.tensors, strict=True):
        if total is None:
            dtype = tensor.dtype
            total = torch.zeros_like(tensor, dtype=torch.complex128 if dtype.is_complex else torch.float64)
        total.add_(tensor, alpha=weight)
        dtype = torch.promote_types(dtype, tensor.dtype)
    assert total is not None
    return total.to(dtype)


METHOD = MergeMethod(name="linear", help="Weighted mean (Wortsman et al. 2022, model soups).", combine=weighted_sum)
