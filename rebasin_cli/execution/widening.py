"""How a module's code computes in a wider precision than it asks for.

Every request for a narrower floating type is rewritten, and every narrower tensor that comes in is widened. A large
weight is not widened as a whole: products take it in pieces, look-ups take the rows that they need.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map, tree_map_only

from rebasin_cli.tracing.dispatch import OperationMode

LARGE = 1 << 19
"""Numbers above which a weight is widened in pieces of about this size (4 MB of float64)."""

COMPLEX = {torch.float64: torch.complex128, torch.float32: torch.complex64}

SUMS = frozenset(
    (
        "aten.mm",
        "aten.addmm",
        "aten.bmm",
        "aten.baddbmm",
        "aten.addmv",
        "aten.mv",
        "aten.dot",
        "aten.convolution",
        "aten._scaled_dot_product_attention_math",
        "aten._scaled_dot_product_flash_attention_for_cpu",
        "aten.sum",
        "aten.mean",
        "aten.var",
        "aten.native_layer_norm",
        "aten.native_batch_norm",
        "aten.native_group_norm",
        "aten._native_batch_norm_legit_no_training",
        "aten._fused_rms_norm",
        "aten._softmax",
        "aten._log_softmax",
        "aten.logsumexp",
        "aten._cdist_forward",
        "aten.linalg_vector_norm",
        "aten.avg_pool2d",
        "aten._adaptive_avg_pool2d",
        "aten._trilinear",
        "aten.lstm",
        "aten.gru",
    )
)
"""Operations that sum over positions: a permutation of what they sum changes their last bits."""


_ATEN = torch.ops.aten
VIEWS = frozenset(
    (_ATEN.t.default, _ATEN.transpose.int, _ATEN.permute.default, _ATEN.detach.default, _ATEN.alias.default)
)
"""Operations after which a large weight is one still."""


def is_large(tensor: Tensor, dtype: torch.dtype) -> bool:
    """Whether a tensor is left narrow until an operation uses it."""
    narrow = tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize
    return narrow and tensor.numel() > LARGE and tensor.layout is torch.strided


class Rounding:
    """One rounding more: numbers are multiplied by 1 + eps or 1 - eps, at random but from a seed.

    `eps` is that of the precision in which the module computes, so that what moves is what a different order of
    summation may move.
    """

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64) -> None:
        generator = torch.Generator().manual_seed(seed)
        eps = torch.finfo(dtype).eps
        self._signs = 1 + eps * (torch.randint(0, 2, (1 << 16,), generator=generator).to(dtype) * 2 - 1)
        self._dtype = dtype

    def __call__(self, tensor: Tensor, *, own: bool = False) -> Tensor:
        """The tensor with every number moved by one rounding; integers and tensors of other precisions as they are.

        Args:
            own: nobody else holds the tensor's memory, so that it may be written to.
        """
        if tensor.dtype is not self._dtype or tensor.numel() == 0:
            return tensor
        if own and tensor.dim() == 2 and not tensor.is_contiguous() and tensor.t().is_contiguous():
            return self(tensor.t(), own=True).t()
        flat, period = tensor.reshape(-1), self._signs.numel()
        whole = flat.numel() // period * period
        moved = flat if own else torch.empty_like(flat)
        torch.mul(flat[:whole].view(-1, period), self._signs, out=moved[:whole].view(-1, period))
        torch.mul(flat[whole:], self._signs[: flat.numel() - whole], out=moved[whole:])
        return moved.view(tensor.shape)


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in this precision; whole numbers as they are."""
    if tensor.is_complex():
        return tensor.to(COMPLEX.get(dtype, tensor.dtype))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class Wide(OperationMode):  # type: ignore[no-untyped-call]
    """Rewrites every request for a narrower floating type, and widens every narrower tensor that comes in."""

    decomposes = False  # a convolution wants arguments of one type before it shows what it is made of

    def __init__(self, dtype: torch.dtype, rounding: Rounding | None = None) -> None:
        super().__init__()
        self.dtype, self.rounding = dtype, rounding

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        if any(isinstance(arg, Tensor) and is_large(arg, self.dtype) for arg in args):
            if func in VIEWS:
                return func(*args, **kwargs)
            piecewise = _PIECEWISE.get(func)
            if piecewise is not None and not kwargs:
                result = piecewise(self, *args)
                return result if self.rounding is None else self.rounding(result, own=True)
        args, kwargs = tree_map(self._wide, (args, kwargs))
        result = self._computed(func, args, kwargs)
        if self.rounding is not None and func._schema.name.replace("::", ".") in SUMS:
            return tree_map_only(Tensor, self.rounding, result)
        return result

    def _computed(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        if func is torch.ops.aten._grouped_mm.default and args[0].dim() == 2 and args[1].dim() == 3:
            return _grouped_product(args[0], args[1], args[2] if len(args) > 2 else kwargs["offs"])
        return func(*args, **kwargs)

    def weight(self, piece: Tensor) -> Tensor:
        """A piece of a weight, widened and rounded."""
        made = cast(piece, self.dtype)
        return made if self.rounding is None else self.rounding(made, own=made is not piece)

    def widened(self, tensor: Tensor) -> Tensor:
        if self._is_narrow(tensor.dtype):
            return tensor.to(self.dtype)
        return tensor.to(COMPLEX[self.dtype]) if self._is_narrow_complex(tensor.dtype) else tensor

    def _wide(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self.weight(value) if is_large(value, self.dtype) else self.widened(value)
        if not isinstance(value, torch.dtype):
            return value
        if self._is_narrow_complex(value):
            return COMPLEX[self.dtype]
        return self.dtype if self._is_narrow(value) else value

    def _is_narrow(self, dtype: torch.dtype) -> bool:
        return dtype.is_floating_point and dtype.itemsize < self.dtype.itemsize

    def _is_narrow_complex(self, dtype: torch.dtype) -> bool:
        return dtype.is_complex and dtype.itemsize < COMPLEX[self.dtype].itemsize


def _grouped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    """Each matrix times its run of rows, which ends where `ends` says; PyTorch's own has no float64."""
    product = rows.new_zeros(rows.shape[0], matrices.shape[2])
    start = 0
    for matrix, end in zip(matrices, ends.tolist(), strict=True):
        product[start:end] = rows[start:end] @ matrix
        start = end
    return product


def _product(wide: Wide, left: Tensor, right: Tensor) -> Tensor:
    """`left (m, k) @ right (k, n)`, one of them large: its rows or columns are widened a piece at a time."""
    rows, inner, columns = left.shape[0], left.shape[1], right.shape[1]
    result = torch.empty(rows, columns, dtype=wide.dtype, device=left.device)
    step = max(1, LARGE // max(inner, 1))
    if is_large(right, wide.dtype):
        left = wide.widened(left)
        for start in range(0, columns, step):
            result[:, start : start + step] = left @ wide.weight(right[:, start : start + step])
    else:
        right = wide.widened(right)
        for start in range(0, rows, step):
            result[start : start + step] = wide.weight(left[start : start + step]) @ right
    return result


def _product_with_bias(wide: Wide, bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return _product(wide, left, right).add_(wide.widened(bias))


def _rows(wide: Wide, table: Tensor, index: Tensor, *rest: Any) -> Tensor:
    return cast(_ATEN.embedding.default(table, index, *rest), wide.dtype)


_PIECEWISE: dict[OpOverload, Callable[..., Tensor]] = {
    _ATEN.mm.default: _product,
    _ATEN.addmm.default: _product_with_bias,
    _ATEN.embedding.default: _rows,
}
