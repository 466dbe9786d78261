"""Streamed cross-covariance of the units' activations of two networks on the same inputs, in one pass, in float64.

Batches are merged about their means (Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing
sample variances", 1979), so the result hangs on the samples and not on how they were batched.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rebasin_cli.errors import DataError, NumericalError


class CrossCovariance:
    """Covariances between the units of A and those of B over all samples (and positions) seen so far."""

    def __init__(self, name: str, units: int) -> None:
        self.name, self.units, self.count = name, units, 0
        self._mean = torch.zeros(2, units, dtype=torch.float64)
        self._square = torch.zeros(2, units, dtype=torch.float64)
        self._cross = torch.zeros(units, units, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Take in one batch: activations (samples, units) of both networks for the same samples.

        Raises:
            DataError: the two batches are not of one shape, or not of this many units.
            NumericalError: an activation is not finite.
        """
        if a.shape != b.shape or a.dim() != 2 or a.shape[1] != self.units:
            raise DataError(
                f"activations of {self.name}: A has shape {tuple(a.shape)}, B has {tuple(b.shape)}, "
                f"expected (samples, {self.units}) of both"
            )
        if not len(a):
            return
        both = torch.stack([a, b]).detach().to(device="cpu", dtype=torch.float64)
        if not bool(torch.isfinite(both.sum())):
            raise NumericalError(f"non-finite activations in {self.name}", slug="non_finite_activations")
        mean = both.mean(dim=1)
        centred = both - mean[:, None]
        total = self.count + len(a)
        apart = mean - self._mean
        weight = self.count * len(a) / total
        self._cross += centred[0].T @ centred[1] + weight * torch.outer(apart[0], apart[1])
        self._square += centred.square().sum(dim=1) + weight * apart.square()
        self._mean += apart * (len(a) / total)
        self.count = total

    def share(self, total: Callable[[Tensor], Tensor]) -> None:
        """Take in what other processes have seen, as if it were further batches.

        Args:
            total: the sum over all processes of a float64 tensor; called equally often in each.
        """
        own = torch.tensor([float(self.count)], dtype=torch.float64)
        sums = total(torch.cat([own, self.count * self._mean.flatten()]))
        count = int(sums[0])
        mean = sums[1:].view(2, self.units) / max(1, count)
        apart = self._mean - mean
        self._cross = total(self._cross + self.count * torch.outer(apart[0], apart[1]))
        self._square = total(self._square + self.count * apart.square())
        self._mean, self.count = mean, count

    def covariance(self) -> Tensor:
        """`mean of (a - mean a)(b - mean b)`: float64 (units of A, units of B)."""
        return self._cross / max(1, self.count)

    def correlation(self) -> Tensor:
        """The covariance in units of the standard deviations; 0 for a unit that never varies."""
        spread = self._square.sqrt()
        scale = torch.outer(spread[0], spread[1])
        return torch.where(scale > 0, self._cross / scale.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
