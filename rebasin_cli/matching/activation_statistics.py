"""What units say on the same inputs in both networks: streamed cross-correlations, one pass over the data.

For units i of A and j of B seen at one tap over n observations (samples and positions), the correlation is
`(sum x_i y_j / n - mean_i mean_j) / (std_i std_j)`; sums are kept in float64, so that any batch size gives the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.trace.capture import Tap, capture

SILENT = 1e-12
"""A unit whose variance is below this share of the largest one at its tap says nothing."""


@dataclass(slots=True)
class _Sums:
    """Running sums at one tap: counts, first and second moments of both networks, and cross products (A's units, B's)."""

    count: int
    first: list[Tensor]
    second: list[Tensor]
    cross: Tensor

    @staticmethod
    def empty(length: int) -> _Sums:
        def zeros() -> Tensor:
            return torch.zeros(length, dtype=torch.float64)

        return _Sums(0, [zeros(), zeros()], [zeros(), zeros()], torch.zeros(length, length, dtype=torch.float64))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Observations of both networks: (units, observations) each."""
        for side, seen in enumerate((x, y)):
            wide = seen.double()
            self.first[side] += wide.sum(1)
            self.second[side] += wide.square().sum(1)
        self.cross += (x @ y.T).double()
        self.count += x.shape[1]

    def correlation(self) -> Tensor:
        means = [first / self.count for first in self.first]
        spreads = []
        for mean, second in zip(means, self.second, strict=True):
            variance = (second / self.count - mean.square()).clamp_min(0)
            silent = variance <= SILENT * variance.max().clamp_min(torch.finfo(torch.float64).tiny)
            spreads.append(torch.where(silent, torch.inf, variance.sqrt()))
        covariance = self.cross / self.count - means[0][:, None] * means[1][None, :]
        return covariance / spreads[0][:, None] / spreads[1][None, :]


def correlations(
    networks: tuple[nn.Module, nn.Module],
    batches: Iterable[ExampleInput],
    taps: Sequence[Tap],
    expected: list[str],
) -> list[Tensor]:
    """Correlation of A's units with B's at every tap: float64 (length, length) each.

    Args:
        networks: A and B, in eval mode.
        batches: inputs; both networks see the same ones.
        taps: where to look.
        expected: operations in the order of the trace.

    Raises:
        ModelError: the model takes another path on these inputs, or gives other shapes, than when it was traced.
    """
    sums = [_Sums.empty(tap.length) for tap in taps]
    for batch in batches:
        left = _observe(networks[0], batch, taps, expected)
        right = _observe(networks[1], batch, taps, expected)
        for tap_sums, x, y in zip(sums, left, right, strict=True):
            tap_sums.add(x, y)
    if any(tap_sums.count == 0 for tap_sums in sums):
        raise ModelError("there was no input to take activations on")
    return [tap_sums.correlation() for tap_sums in sums]


def _observe(network: nn.Module, batch: ExampleInput, taps: Sequence[Tap], expected: list[str]) -> list[Tensor]:
    """For every tap the units' activations: float32 (units, observations)."""
    seen: dict[int, Tensor] = {}

    def keep(place: int, result: Tensor) -> None:
        for which, tap in enumerate(taps):
            if tap.ordinal == place:
                seen[which] = _as_rows(result, tap)

    capture(network, batch, expected, {tap.ordinal for tap in taps}, keep)
    return [seen[which] for which in range(len(taps))]


def _as_rows(result: Tensor, tap: Tap) -> Tensor:
    """The tap's axis first, all else behind it; an axis that also holds the batch is cut into its repeats."""
    length = result.shape[tap.axis] if tap.axis < result.dim() else 0
    if not length or length % tap.length:
        raise ModelError(f"activations of shape {tuple(result.shape)} where {tap.length} units were expected")
    split = result.unflatten(tap.axis, (length // tap.length, tap.length)).movedim(tap.axis + 1, 0)
    return split.reshape(tap.length, -1).float().clone()
