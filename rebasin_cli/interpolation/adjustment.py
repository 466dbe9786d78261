"""What is changed on an interpolant after blending: statistics replaced, units rescaled and shifted.

It acts on tensors by key, so the network that is evaluated and the file that is written hold the same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class UnitAffine:
    """`new = scale * old + shift`, unit by unit along `axis`; no `shift` means 0. float64 vectors of length units."""

    axis: int
    scale: Tensor
    shift: Tensor | None = None

    def apply(self, tensor: Tensor) -> Tensor:
        shape = [1] * tensor.dim()
        shape[self.axis] = -1
        wide = tensor.double() * self.scale.to(tensor.device).view(shape)
        if self.shift is not None:
            wide = wide + self.shift.to(tensor.device).view(shape)
        return wide.to(tensor.dtype if tensor.dtype.itemsize >= 4 else torch.float32)


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Tensors that are replaced, and unit-wise affine maps, by key."""

    replaced: Mapping[str, Tensor] = field(default_factory=dict)
    affine: Mapping[str, UnitAffine] = field(default_factory=dict)

    def apply(self, key: str, tensor: Tensor) -> Tensor:
        """The adjusted tensor; the very same where nothing is changed."""
        if key in self.replaced:
            return self.replaced[key].to(tensor.device, tensor.dtype if tensor.is_floating_point() else None)
        return self.affine[key].apply(tensor) if key in self.affine else tensor


NOTHING = Adjustment()
