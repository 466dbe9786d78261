"""What units say on the same inputs in both networks: correlations at taps, in one pass over the inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, ModelError, RebasinError
from rebasin_cli.matching.covariance import CrossCovariance
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import Tap
from rebasin_cli.tracing.capture import OtherPath, capture


def correlations(
    networks: tuple[nn.Module, nn.Module],
    batches: Iterable[ExampleInput],
    taps: Sequence[Tap],
    expected: Sequence[str],
    *,
    ranks: Ranks = ALONE,
) -> list[Tensor]:
    """Correlation of A's units with B's at every tap: float64 (length, length) each; any batch size gives the same.

    Args:
        networks: A and B, in eval mode.
        batches: inputs; both networks see the same ones, one batch at a time.
        taps: where to look.
        expected: operations in the order of the trace (`called_operations`).
        ranks: the processes that share the inputs; each has its own batches, and all get the same correlations.

    Raises:
        DataError: there was no input.
        ModelError: the model takes another path on these inputs, or gives other shapes, than when it was traced.
        NumericalError: an activation is not finite.
    """
    sums = {tap: CrossCovariance(f"operation {tap.ordinal}", tap.length) for tap in taps}
    seen = 0
    error: RebasinError | None = None
    try:
        for batch in batches:
            seen += 1
            _take_in(sums, networks, batch, expected)
    except RebasinError as caught:
        error = caught
    ranks.agree(error)
    if ranks.world > 1:
        seen = int(ranks.total(torch.tensor([float(seen)], dtype=torch.float64)))
        for tap in taps:
            sums[tap].share(ranks.total)
    if not seen:
        raise DataError("there was no input to take activations on")
    return [sums[tap].correlation() for tap in taps]


def _take_in(
    sums: Mapping[Tap, CrossCovariance],
    networks: tuple[nn.Module, nn.Module],
    batch: ExampleInput,
    expected: Sequence[str],
) -> None:
    try:
        _add(sums, networks, batch, expected)
    except OtherPath:  # some models are run another way for several inputs at once than for one
        for row in _rows(batch):
            _add(sums, networks, row, expected)


def _add(
    sums: Mapping[Tap, CrossCovariance],
    networks: tuple[nn.Module, nn.Module],
    batch: ExampleInput,
    expected: Sequence[str],
) -> None:
    ours, theirs = (_observe(network, batch, sums, expected) for network in networks)
    for tap, total in sums.items():
        total.add(ours[tap], theirs[tap])


def _rows(batch: ExampleInput) -> list[ExampleInput]:
    """The batch's inputs one by one.

    Raises:
        OtherPath: it holds one already, or its tensors are not batched alike.
    """
    leaves, structure = tree_flatten((batch.args, batch.kwargs))
    sizes = {len(leaf) if leaf.dim() else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or min(sizes) < 2:
        raise OtherPath("the model takes another path on this input than on the one it was traced with")
    count = min(sizes)
    pieces = [[leaf[i : i + 1] if isinstance(leaf, Tensor) else leaf for i in range(count)] for leaf in leaves]
    return [ExampleInput(*tree_unflatten(list(row), structure)) for row in zip(*pieces, strict=True)]


def _observe(
    network: nn.Module, batch: ExampleInput, taps: Collection[Tap], expected: Sequence[str]
) -> dict[Tap, Tensor]:
    """For every tap the units' activations: (observations, units)."""
    seen: dict[Tap, Tensor] = {}

    def keep(tap: Tap, tensor: Tensor) -> None:
        seen[tap] = _observations(tensor, tap)

    capture(network, batch, expected, taps, keep)
    return seen


def _observations(result: Tensor, tap: Tap) -> Tensor:
    """All else as observations, the tap's axis last; where that axis also holds the batch, it is cut into repeats."""
    length = result.shape[tap.axis] if tap.axis < result.dim() else 0
    if not length or length % tap.length:
        raise ModelError(f"activations of shape {tuple(result.shape)} where {tap.length} units were expected")
    shape = (*result.shape[: tap.axis], length // tap.length, tap.length, *result.shape[tap.axis + 1 :])
    return result.reshape(shape).movedim(tap.axis + 1, -1).reshape(-1, tap.length).float().clone()
