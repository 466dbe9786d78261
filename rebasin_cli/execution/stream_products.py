"""Products of both networks' activations along the groups that mix units: where a search of rotations begins.

Wherever activations are added along the axis of a group, every place is one vector h of the group's units. Each is
divided by its length, because norms read only its direction (and freed of its mean, where norms take it away), and
the products `h_A h_Bᵀ` are summed over places, sums and inputs. The orthogonal Q with the largest `<products, Q>`
brings B's vectors closest to A's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from rebasin_cli.errors import DataError, NumericalError
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.execution.weights import Weights
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state
from rebasin_cli.spec import AxisGroup, Site, Tap
from rebasin_cli.tracing.capture import called_operations, capture


def stream_products(
    pair: Pair, understood: Understanding, groups: Mapping[str, AxisGroup], inputs: Iterable[ExampleInput]
) -> dict[str, Tensor]:
    """The sum of products by group, float64 (size, size); groups that lie along no sum are left out.

    Raises:
        DataError: there was no input.
        ModelError: on these inputs the model runs other operations than when it was traced.
        NumericalError: an activation is not finite.
    """
    assert understood.trace is not None
    assert understood.derivation is not None
    taps = [tap for tap in understood.derivation.sums if any(name in groups for name, _ in tap.sites)]
    if not taps:
        return {}
    networks = _network(pair, pair.a), _network(pair, pair.b)
    expected = called_operations(understood.trace)
    totals: dict[str, Tensor] = {}
    seen = 0
    with understood.passes.joined(networks[0]), understood.passes.joined(networks[1]):
        for batch in inputs:
            seen += 1
            ours, theirs = (_observed(network, batch, taps, expected) for network in networks)
            for tap in taps:
                for name, site in tap.sites:
                    if name in groups:
                        found = _product(ours[tap], theirs[tap], site, groups[name])
                        totals[name] = totals[name] + found if name in totals else found
    if not seen:
        raise DataError("there is no input to record activations on")
    for name, total in totals.items():
        if not bool(torch.isfinite(total).all()):
            raise NumericalError(f"non-finite activations in {name}", slug="non_finite_activations")
    return totals


def _network(pair: Pair, weights: Weights) -> nn.Module:
    """The model with these weights, in float32; no parameter requires a gradient, as in the trace."""
    network = load_state(pair.subject.factory.build_weightless(), weights, dtype=torch.float32).eval()
    return network.requires_grad_(False)


def _observed(
    network: nn.Module, batch: ExampleInput, taps: Sequence[Tap], expected: Sequence[str]
) -> dict[Tap, Tensor]:
    """The activations at the taps, (vectors, units of the axis) each."""
    seen: dict[Tap, Tensor] = {}

    def keep(tap: Tap, tensor: Tensor, _: Tensor | None) -> None:
        seen[tap] = tensor.movedim(tap.axis, -1).reshape(-1, tap.length).float().clone()

    capture(network, batch, expected, taps, keep)
    return seen


def _product(ours: Tensor, theirs: Tensor, site: Site, group: AxisGroup) -> Tensor:
    a, b = (_directions(side, site, group) for side in (ours, theirs))
    return a.T @ b


def _directions(seen: Tensor, site: Site, group: AxisGroup) -> Tensor:
    """The vectors of a group's units, each of length 1: float64 (vectors, size)."""
    rows = torch.tensor(site.rows(group.size))
    vectors = seen[:, rows].transpose(1, 2).reshape(-1, group.size).to(torch.float64)
    if group.centred:
        vectors = vectors - vectors.mean(dim=1, keepdim=True)
    directions: Tensor = vectors / torch.linalg.vector_norm(vectors, dim=1, keepdim=True).clamp(min=1e-30)
    return directions
