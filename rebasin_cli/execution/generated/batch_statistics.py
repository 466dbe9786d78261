"""How far the statistics of a batch are from those that BatchNorm layers have kept of the training data.

The prior of DeepInversion (Yin et al., "Dreaming to distill", 2020, arXiv 1912.08795), here without units: means are
compared in running standard deviations, and variances as logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rebasin_cli.execution.recalibration import batch_norms

LEAST = 1e-3
"""Added to variances, as BatchNorm does: units that never vary must not decide."""


class StatisticsDistance:
    """Collects the distance at every normalising layer of some networks, while they run.

    Attributes:
        layers: how many there are.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        found = [layer for network in networks for layer in batch_norms(network).values()]
        self._layers = [layer for layer in found if not isinstance(layer, nn.modules.instancenorm._InstanceNorm)]
        self.layers = len(self._layers)
        self._seen: list[Tensor] = []

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While active, every pass adds to the distance."""
        handles = [layer.register_forward_pre_hook(self._add) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _add(self, layer: nn.Module, inputs: tuple[object, ...]) -> None:
        values, mean, variance = inputs[0] if inputs else None, layer.running_mean, layer.running_var
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        if not isinstance(values, Tensor) or values.dim() < 2:
            return
        axis = next((axis for axis in (1, -1) if values.shape[axis] == mean.numel()), None)
        if axis is not None and values.numel() > mean.numel():
            self._seen.append(_distance(values.float(), axis, mean, variance))

    def taken(self) -> Tensor | None:
        """The mean distance over the layers that have run since the last call; None where none has."""
        seen, self._seen = self._seen, []
        return torch.stack(seen).mean() if seen else None


def _distance(values: Tensor, axis: int, mean: Tensor, variance: Tensor) -> Tensor:
    """Of the statistics of values, whose units lie along an axis, from these: float32 ()."""
    spread = variance + LEAST
    others = [place for place in range(values.dim()) if place != axis % values.dim()]
    found, centre = torch.var_mean(values, dim=others, correction=0)
    apart = (centre - mean).square() / spread
    ratio = (found / spread).clamp_min(1e-6).log()
    return apart.mean() + ratio.square().mean()
