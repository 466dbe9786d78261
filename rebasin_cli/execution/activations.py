"""Activations of both networks on the same inputs, recorded as covariances between their units in one pass.

Cross-covariances are accumulated in float64. Batches are merged about their means (Chan, Golub and LeVeque, "Updating
formulae and a pairwise algorithm for computing sample variances", 1979), so the result depends on the samples and not
on how they were batched.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_flatten, tree_unflatten

from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, ModelError, NumericalError, RebasinError, one_line
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.execution.weights import Weights
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.foreign_code import own_line
from rebasin_cli.model.state import load_state
from rebasin_cli.spec import Tap
from rebasin_cli.tracing.capture import OtherPath, called_operations, capture

LARGEST = 1 << 30
"""Largest number of parameters of a model that is run for a search start: above it the run costs more than it gains."""
LARGEST_TAPS = 1 << 28
"""Largest number of pairs of units, at all taps together, for a search start: 2 GiB."""

Likeness = Literal["covariance", "correlation", "directions"]
LIKENESSES: tuple[Likeness, ...] = get_args(Likeness)
"""Ways to compare units, the default first; see `likenesses`."""


def can_record(pair: Pair, understood: Understanding, largest: int = LARGEST) -> bool:
    """Whether activations can be recorded for little: the model was traced, and has at most `largest` parameters."""
    if understood.trace is None or understood.derivation is None:
        return False
    if sum(tensor.numel() for tensor in pair.subject.module.parameters()) > largest:
        return False
    return sum(tap.length**2 for tap in understood.derivation.taps) <= LARGEST_TAPS


def pair_likenesses(
    pair: Pair,
    understood: Understanding,
    inputs: Iterable[ExampleInput],
    kind: Likeness,
    *,
    ranks: Ranks = ALONE,
    deadline: float | None = None,
) -> list[Tensor]:
    """How alike A's units are to B's at every tap of a traced model; each process passes its own inputs.

    Raises:
        DataError, ModelError, NumericalError: as for `likenesses`.
    """
    assert understood.trace is not None
    assert understood.derivation is not None
    networks = (_network(pair, pair.a), _network(pair, pair.b))
    expected = called_operations(understood.trace)
    a, b = networks
    with understood.passes.joined(a), understood.passes.joined(b):
        return likenesses(networks, inputs, understood.derivation.taps, expected, kind, ranks=ranks, deadline=deadline)


def _network(pair: Pair, weights: Weights) -> nn.Module:
    """The model with these weights, in float32 where the file is narrower.

    As in the trace, no parameter requires a gradient: `matmul` chooses its operations by that.
    """
    network = load_state(pair.subject.factory.build_weightless(), weights, dtype=torch.float32).eval()
    return network.requires_grad_(False)


def likenesses(
    networks: tuple[nn.Module, nn.Module],
    batches: Iterable[ExampleInput],
    taps: Sequence[Tap],
    expected: Sequence[str],
    kind: Likeness,
    *,
    ranks: Ranks = ALONE,
    deadline: float | None = None,
) -> list[Tensor]:
    """How alike A's units are to B's at every tap: float64 (length, length) each; any batch size gives the same.

    Args:
        networks: A and B, in eval mode.
        batches: inputs; both networks get the same ones, one batch at a time.
        taps: where activations are recorded.
        expected: operations in the order of the trace (`called_operations`).
        kind: `covariance`, at each tap in units of the geometric mean of the networks' mean variances there;
            `correlation`; or `directions`, the covariance of observations that are scaled to unit length.
        ranks: the processes that share the inputs; each has its own batches, and all return the same numbers.
        deadline: of `time.monotonic`; after it no batch is begun but the first.

    Raises:
        DataError: there was no input.
        ModelError: on these inputs the model fails, runs other operations, or gives other shapes, than when it was
            traced.
        NumericalError: an activation is not finite.
    """
    sums = {tap: CrossCovariance(f"operation {tap.ordinal}", tap.length, tap.outer * tap.inner) for tap in taps}
    seen = 0
    error: RebasinError | None = None
    try:
        for batch in batches:
            seen += 1
            _accumulate(sums, networks, batch, expected, unit_length=kind == "directions")
            if deadline is not None and time.monotonic() >= deadline:
                break
    except RebasinError as caught:
        error = caught
    ranks.agree(error)
    if ranks.world > 1:
        seen = int(ranks.total(torch.tensor([float(seen)], dtype=torch.float64)))
        for tap in taps:
            sums[tap].share(ranks.total)
    if not seen:
        raise DataError("there is no input to record activations on")
    return [sums[tap].likeness(kind) for tap in taps]


def _accumulate(
    sums: Mapping[Tap, CrossCovariance],
    networks: tuple[nn.Module, nn.Module],
    batch: ExampleInput,
    expected: Sequence[str],
    *,
    unit_length: bool,
) -> None:
    try:
        _add(sums, networks, batch, expected, unit_length=unit_length)
    except (OtherPath, _Failed) as error:  # some models do otherwise on a batch, or fail, but not on a single input
        for row in _rows(batch, error):
            _add(sums, networks, row, expected, unit_length=unit_length)


def _add(
    sums: Mapping[Tap, CrossCovariance],
    networks: tuple[nn.Module, nn.Module],
    batch: ExampleInput,
    expected: Sequence[str],
    *,
    unit_length: bool,
) -> None:
    ours, theirs = (_observe(network, batch, sums, expected) for network in networks)
    for tap, total in sums.items():
        a, b = (F.normalize(seen[tap], dim=2) if unit_length else seen[tap] for seen in (ours, theirs))
        total.add(a, b)


class _Failed(ModelError):
    """The model's own code fails on an input."""


def _rows(batch: ExampleInput, error: ModelError) -> list[ExampleInput]:
    """The batch's inputs one by one.

    Raises:
        ModelError: the given one; the batch holds a single input already, or its tensors have different batch sizes.
    """
    leaves, structure = tree_flatten((batch.args, batch.kwargs))
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or min(sizes) < 2:
        raise error
    count = min(sizes)
    pieces = [[leaf[i : i + 1] if isinstance(leaf, Tensor) else leaf for i in range(count)] for leaf in leaves]
    return [ExampleInput(*tree_unflatten(list(row), structure)) for row in zip(*pieces, strict=True)]


def _observe(
    network: nn.Module, batch: ExampleInput, taps: Collection[Tap], expected: Sequence[str]
) -> dict[Tap, Tensor]:
    """For every tap the units' activations: (observations, positions, units)."""
    seen: dict[Tap, Tensor] = {}

    def keep(tap: Tap, tensor: Tensor, weights: Tensor | None) -> None:
        seen[tap] = _observations(tensor, tap, weights)

    try:
        capture(network, batch, expected, taps, keep)
    except RebasinError:
        raise
    except Exception as error:  # the model is the user's code
        raise _Failed(f"the model fails where activations are recorded: {one_line(error)}{own_line(error)}") from error
    return seen


def _observations(result: Tensor, tap: Tap, weights: Tensor | None) -> Tensor:
    """The tensor as (observations, positions, units), each number times the norm of the weights that read it.

    So it does not matter how a unit's scale is shared between what it gives and what reads it.
    """
    length = result.shape[tap.axis] if tap.axis < result.dim() else 0
    own = tap.outer * tap.length * tap.inner
    if not length or length % own:
        raise ModelError(f"activations of shape {tuple(result.shape)} where {tap.length} units were expected")
    parts = (length // own, tap.outer, tap.length, tap.inner)
    split = result.reshape(*result.shape[: tap.axis], *parts, *result.shape[tap.axis + 1 :])
    values = split.movedim((tap.axis + 1, tap.axis + 3, tap.axis + 2), (-3, -2, -1)).float()
    if tap.reader is not None and weights is not None:
        norms = weights.movedim(tap.reader[1], 0).flatten(1).float().norm(dim=1).reshape(parts[1:])
        values = values * norms.movedim(1, 2)
    return values.reshape(-1, tap.outer * tap.inner, tap.length).clone()


class CrossCovariance:
    """Covariances between the units of A and those of B over all samples added so far, summed over positions.

    With n samples of mean m so far and k new ones of mean m', the cross sums about the mean become
    `C + C' + n k / (n + k) (m'_a - m_a)(m'_b - m_b)^T`, which is exact and does not cancel. Every position has means of
    its own, because the weights that read several have a bias for all of them.
    """

    def __init__(self, name: str, units: int, positions: int = 1) -> None:
        self.name, self.units, self.positions, self.count = name, units, positions, 0
        self._mean = torch.zeros(2, positions, units, dtype=torch.float64)
        self._square = torch.zeros(2, units, dtype=torch.float64)
        self._cross = torch.zeros(units, units, dtype=torch.float64)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add one batch: activations (samples, positions, units) of both networks for the same samples.

        Raises:
            DataError: the two batches are not of one shape, or not of these units and positions.
            NumericalError: an activation is not finite.
        """
        if a.shape != b.shape or a.shape[1:] != (self.positions, self.units):
            raise DataError(
                f"activations of {self.name}: A has shape {tuple(a.shape)}, B has {tuple(b.shape)}, "
                f"expected (samples, {self.positions}, {self.units}) of both"
            )
        if not len(a):
            return
        both = torch.stack([a, b]).detach().to(device="cpu", dtype=torch.float64)
        if not bool(torch.isfinite(both.sum())):
            raise NumericalError(f"non-finite activations in {self.name}", slug="non_finite_activations")
        mean = both.mean(dim=1)
        centred = (both - mean[:, None]).flatten(1, 2)
        total = self.count + len(a)
        apart = mean - self._mean
        weight = self.count * len(a) / total
        self._cross += centred[0].T @ centred[1] + weight * (apart[0].T @ apart[1])
        self._square += centred.square().sum(dim=1) + weight * apart.square().sum(dim=1)
        self._mean += apart * (len(a) / total)
        self.count = total

    def share(self, total: Callable[[Tensor], Tensor]) -> None:
        """Add what other processes have recorded, as if it were further batches.

        Args:
            total: the sum over all processes of a float64 tensor; called equally often in each.
        """
        own = torch.tensor([float(self.count)], dtype=torch.float64)
        sums = total(torch.cat([own, self.count * self._mean.flatten()]))
        count = int(sums[0])
        mean = sums[1:].view_as(self._mean) / max(1, count)
        apart = self._mean - mean
        self._cross = total(self._cross + self.count * (apart[0].T @ apart[1]))
        self._square = total(self._square + self.count * apart.square().sum(dim=1))
        self._mean, self.count = mean, count

    def covariance(self) -> Tensor:
        """`mean of (a - mean a)(b - mean b)`, summed over positions: float64 (units of A, units of B)."""
        return self._cross / max(1, self.count)

    def correlation(self) -> Tensor:
        """The covariance in units of the standard deviations; 0 for a unit that never varies."""
        spread = self._square.sqrt()
        scale = torch.outer(spread[0], spread[1])
        return torch.where(scale > 0, self._cross / scale.clamp(min=torch.finfo(torch.float64).tiny), 0.0)

    def likeness(self, kind: Likeness) -> Tensor:
        """The correlation, or the covariance in units of the networks' mean variances, so that taps can be added."""
        if kind == "correlation":
            return self.correlation()
        scale = float(self._square.mean(1).prod().sqrt())
        return self._cross / scale if scale > 0 else torch.zeros_like(self._cross)
