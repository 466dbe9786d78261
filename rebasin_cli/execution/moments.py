"""Mean and variance of every unit, averaged over batches: what recalibration and REPAIR measure.

For unit u and batches b of size w_b: the vector holds `sum w_b`, `sum w_b mean_b(u)`, `sum w_b var_b(u)`. For batches
of one size, dividing gives the cumulative average that BatchNorm keeps with `momentum=None`; a short last batch
counts less.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and (biased) variance of the units of one module; `count` is the number of elements per unit.

    `instances`: they are averages over so many instances of moments within one instance, of `count` elements each.
    """

    mean: Tensor
    variance: Tensor
    count: int
    instances: int = 0

    @property
    def unbiased(self) -> Tensor:
        return self.variance * (self.count / max(1, self.count - 1))


def moments(values: Tensor, axis: int) -> Moments:
    """The moments of each unit along `axis`, over all other axes, in float32 or better.

    Two passes, the mean and then the squared deviations: as exact as `torch.var_mean`, whose running update takes 5 to
    15 times as long over a strided axis on the CPU.
    """
    wide = values if values.dtype == torch.float64 else values.float()
    others = [dim for dim in range(wide.dim()) if dim != axis % wide.dim()]
    if not others:
        return Moments(wide, torch.zeros_like(wide), 1)
    mean = wide.mean(others, keepdim=True)
    variance = (wide - mean).square_().mean(others)
    return Moments(mean.flatten(), variance, wide.numel() // max(1, wide.shape[axis]))


def instance_moments(values: Tensor) -> Moments:
    """What InstanceNorm tracks of an input (n, units, …): the moments within each instance, averaged over instances."""
    wide = values if values.dtype == torch.float64 else values.float()
    flat = wide.flatten(2) if wide.dim() > 2 else wide.unsqueeze(2)
    mean = flat.mean(2, keepdim=True)
    variance = (flat - mean).square_().mean(2)
    return Moments(mean.mean((0, 2)), variance.mean(0), flat.shape[2], len(flat))


def merged(parts: Sequence[Moments]) -> Moments:
    """The moments of a batch from those of its pieces, about their common mean."""
    if len(parts) == 1:
        return parts[0]
    if parts[0].instances:
        instances = sum(part.instances for part in parts)
        means, variances = (
            torch.stack([part.instances / instances * getattr(part, name) for part in parts]).sum(0)
            for name in ("mean", "variance")
        )
        return Moments(means, variances, parts[0].count, instances)
    count = sum(part.count for part in parts)
    shares = [part.count / count for part in parts]
    mean = torch.stack([share * part.mean for share, part in zip(shares, parts, strict=True)]).sum(0)
    spread = [part.variance + (part.mean - mean).square() for part in parts]
    variance = torch.stack([share * one for share, one in zip(shares, spread, strict=True)]).sum(0)
    return Moments(mean, variance, count)


class Averages:
    """Named averages as one float64 vector: for each name a weight, then rows with one number per unit.

    Args:
        layout: for each name, how many rows of how many units.
    """

    def __init__(self, layout: Mapping[str, tuple[int, int]]) -> None:
        self.layout = dict(layout)
        self.length = sum(1 + rows * units for rows, units in self.layout.values())

    def vector(self, batches: Sequence[tuple[float, Mapping[str, Sequence[Tensor]]]]) -> Tensor:
        """The sums of these batches, each (weight, rows by name); a name that a batch lacks adds nothing."""
        total = torch.zeros(self.length, dtype=torch.float64)
        for weight, rows in batches:
            start = 0
            for name, (count, units) in self.layout.items():
                if name in rows:
                    total[start] += weight
                    stacked = torch.stack([row.double().cpu() for row in rows[name]]).reshape(-1)
                    total[start + 1 : start + 1 + count * units] += weight * stacked
                start += 1 + count * units
        return total

    def means(self, vector: Tensor) -> dict[str, Tensor]:
        """The averages, (rows, units) by name; names without any weight are absent."""
        found: dict[str, Tensor] = {}
        start = 0
        for name, (count, units) in self.layout.items():
            weight = float(vector[start])
            if weight > 0:
                found[name] = vector[start + 1 : start + 1 + count * units].view(count, units) / weight
            start += 1 + count * units
        return found
