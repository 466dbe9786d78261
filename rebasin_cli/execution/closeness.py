"""How near two sets of tensors lie: cosine and L2 distance over the parameters, streamed, in float64.

The distance is summed from differences, not from norms and products, so that it is exactly 0 where the tensors agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from rebasin_cli.errors import NumericalError

CHUNK = 1 << 18
"""Elements converted to float64 at a time (2 MiB each): the working set, whatever the tensor's size, and in cache."""


@dataclass(slots=True)
class Closeness:
    """Running sums over pairs of tensors: <A, B>, <A, A>, <B, B> and |A - B|^2."""

    dot: float = 0.0
    square_a: float = 0.0
    square_b: float = 0.0
    square_difference: float = 0.0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count one pair of tensors of equal shape; integer and boolean tensors are not parameters and are skipped.

        A complex number counts as its two parts.
        """
        if a.is_complex() and b.is_complex():
            a, b = torch.view_as_real(a), torch.view_as_real(b)
        if not a.is_floating_point() or not b.is_floating_point():
            return
        flat_a, flat_b = a.reshape(-1), b.reshape(-1)
        for start in range(0, flat_a.numel(), CHUNK):
            x = flat_a[start : start + CHUNK].double()
            y = flat_b[start : start + CHUNK].double()
            self.dot += torch.dot(x, y).item()
            self.square_a += torch.dot(x, x).item()
            self.square_b += torch.dot(y, y).item()
            difference = x - y  # not in place: float64 tensors are the caller's own, or mapped
            self.square_difference += torch.dot(difference, difference).item()

    @property
    def cosine(self) -> float:
        """<A, B> / (|A| |B|); 0 where one of them vanishes. Exactly 1 where A equals B."""
        if self.square_difference == 0.0 and self.square_a > 0.0:
            return 1.0
        scale = sqrt(self.square_a) * sqrt(self.square_b)
        return max(-1.0, min(1.0, self.dot / scale)) if scale > 0.0 else 0.0

    @property
    def distance(self) -> float:
        """|A - B|, L2 over all elements counted."""
        return sqrt(self.square_difference)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in dtype, shape and every bit (so that NaN equals itself and -0 differs from 0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.numel() == 0:
        return True
    if a.dtype.is_complex or a.is_floating_point():
        width = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}.get(a.element_size())
        if width is None:  # complex128 has no integer of its width
            return torch.equal(torch.view_as_real(a), torch.view_as_real(b))
        a, b = a.contiguous().view(width), b.contiguous().view(width)
    return torch.equal(a, b)


def check_finite(tensor: Tensor, key: str, path: Path, *, infinite: bool = False) -> None:
    """Raise NumericalError, with the count, where a floating tensor holds NaN or an infinity.

    Args:
        infinite: infinities are meant, as in masks and bounds.

    `aminmax` decides in one fast pass; only a tensor that has failed is counted.
    """
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return
    probe = tensor.float() if tensor.element_size() == 1 else tensor
    low, high = torch.aminmax(probe)
    if bool(torch.isfinite(low)) and bool(torch.isfinite(high)):
        return
    nans = int(probe.isnan().sum())
    if infinite and not nans:
        return
    infinities = int(probe.isinf().sum())
    seen = [f"{count} {name}" for count, name in ((nans, "NaN"), (infinities, "infinite")) if count]
    raise NumericalError(
        f"{path}: tensor {key!r} holds {' and '.join(seen)} of {tensor.numel()} values",
        path=path,
        hint="the training that wrote it has diverged, or the file is damaged; nothing was written",
        slug="non-finite",
    )
