"""Activations: any batching gives the same covariance, and permuted networks are recovered from what they compute."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rebasin_cli.errors import DataError, NumericalError
from rebasin_cli.matching.activation_matching import activation_matching
from rebasin_cli.matching.covariance import CrossCovariance
from rebasin_cli.matching.problem import prepare
from rebasin_cli.permutation import apply, random
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from tests.benchmarks.matching_specs import Tensors, mlp, random_tensors


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 17), min_size=1, max_size=6), st.floats(-50, 50))
def test_the_covariance_does_not_hang_on_the_batches(sizes: list[int], offset: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    a, b = (torch.randn(sum(sizes) + 2, 4, generator=generator, dtype=torch.float64) + offset for _ in range(2))
    streamed, whole = CrossCovariance("g", 4), CrossCovariance("g", 4)
    whole.add(a, b)
    at = 0
    for size in [*sizes, 2]:
        streamed.add(a[at : at + size], b[at : at + size])
        at += size
    direct = (a - a.mean(0)).T @ (b - b.mean(0)) / len(a)
    assert torch.allclose(streamed.covariance(), direct, atol=1e-9)
    assert torch.allclose(streamed.correlation(), whole.correlation(), atol=1e-9)
    assert streamed.correlation().abs().max() <= 1 + 1e-9


def test_a_unit_that_never_varies_correlates_with_nothing() -> None:
    covariance = CrossCovariance("g", 2)
    samples = torch.randn(50, 2)
    samples[:, 1] = 3.0
    covariance.add(samples, samples)
    assert covariance.correlation()[1].abs().max() == 0
    assert covariance.correlation()[0, 0] == pytest.approx(1.0)


def mlp_activations(weights: Tensors, x: Tensor) -> dict[str, Tensor]:
    first = torch.relu(x @ weights["0.weight"].T + weights["0.bias"])
    second = torch.relu(first @ weights["1.weight"].T + weights["1.bias"])
    return {"layer0": first, "layer1": second}


def test_a_permuted_network_is_recovered_from_what_it_computes() -> None:
    spec, shapes = mlp([6, 20, 20, 3])
    a = random_tensors(shapes, 0)
    b = apply(spec, random(spec, 1), a)

    def run() -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        for seed in range(4):
            x = torch.randn(64, 6, generator=torch.Generator().manual_seed(seed))
            yield mlp_activations(a, x), mlp_activations(b, x)

    problem = prepare(spec, a, b, a.keys())
    for measure in ("correlation", "covariance"):
        back = apply(spec, activation_matching(problem, run, measure=measure), b)  # type: ignore[arg-type]
        assert all(torch.equal(back[key], a[key]) for key in a)


def test_blocks_are_matched_through_the_units_inside_them() -> None:
    groups = [AxisGroup("heads", 3, (Site("w", 0, inner=4),))]
    groups += [AxisGroup(f"h{i}", 4, (Site("w", 0, 4 * i),), ParentBlock("heads", i)) for i in range(3)]
    spec = PermutationSpec(tuple(groups))
    a = random_tensors({"w": (12, 9)}, 0)
    b = apply(spec, random(spec, 5), a)
    x = torch.randn(200, 9)

    def seen(weights: Tensors) -> dict[str, Tensor]:
        units = x @ weights["w"].T
        return {f"h{i}": units[:, 4 * i : 4 * i + 4] for i in range(3)}

    found = activation_matching(prepare(spec, a, b, ["w"]), lambda: [(seen(a), seen(b))])
    assert torch.equal(apply(spec, found, b)["w"], a["w"])


def test_faulty_activations_are_named() -> None:
    spec, shapes = mlp([6, 5, 3])
    a = random_tensors(shapes, 0)
    problem = prepare(spec, a, a, a.keys())
    good = {"layer0": torch.ones(2, 5)}
    with pytest.raises(DataError, match="no activations came"):
        activation_matching(problem, lambda: [])
    with pytest.raises(DataError, match="layer0 came from one of the two networks only"):
        activation_matching(problem, lambda: [(good, {})])
    with pytest.raises(DataError, match=r"layer0: A has shape \(2, 5\), B has \(3, 5\)"):
        activation_matching(problem, lambda: [(good, {"layer0": torch.ones(3, 5)})])
    with pytest.raises(NumericalError, match="non-finite activations in layer0"):
        activation_matching(problem, lambda: [(good, {"layer0": torch.full((2, 5), float("nan"))})])
