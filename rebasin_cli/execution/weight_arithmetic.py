"""How tensors of checkpoints are combined: in float32 or better, along a line or an arc, and rounded once."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.errors import NumericalError

NEARLY_PARALLEL = 1e-4


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which values of this dtype are combined: float32 or better; integers and booleans stay."""
    if dtype.is_complex or not dtype.is_floating_point:
        return dtype
    return dtype if dtype.itemsize >= 4 else torch.float32


def angle_between(a: Tensor, b: Tensor) -> float:
    """Angle between two tensors as vectors, in [0, pi]; 0 where one is zero."""
    x, y = a.double().flatten(), b.double().flatten()
    norms = float(x.norm() * y.norm())
    cosine = float(x @ y) / norms if norms > 0 and math.isfinite(norms) else 1.0
    return math.acos(max(-1.0, min(1.0, cosine)))


def slerp(a: Tensor, b: Tensor, lam: float, angle: float) -> Tensor:
    """Spherical interpolation (Shoemake 1985) of two tensors as vectors at this angle; near 0 and pi it is linear."""
    if not NEARLY_PARALLEL < angle < math.pi - NEARLY_PARALLEL:
        return torch.lerp(a, b, lam)
    sine = math.sin(angle)
    return a * (math.sin((1 - lam) * angle) / sine) + b * (math.sin(lam * angle) / sine)


def rounded(value: Tensor, dtype: torch.dtype, what: str) -> Tensor:
    """The value in a file's dtype.

    Raises:
        NumericalError: naming `what`, where a value overflows.
    """
    cast = value.to(dtype)
    if dtype.is_floating_point and dtype.itemsize < value.dtype.itemsize and not bool(cast.isfinite().all()):
        raise NumericalError(f"{what}: a computed value does not fit {dtype}")
    return cast


def narrow_dtypes(checkpoints: Iterable[Checkpoint]) -> tuple[str, ...]:
    """Names of the dtypes narrower than float32 that these files have."""
    infos = (info for checkpoint in checkpoints for info in checkpoint.infos.values())
    return tuple(
        dict.fromkeys(info.dtype_name for info in infos if info.dtype.is_floating_point and info.dtype.itemsize < 4)
    )
