"""Activations: any batching gives the same covariance, and permuted networks are recovered from what they compute."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rebasin_cli.errors import DataError, ModelError, NumericalError
from rebasin_cli.matching import activation_statistics
from rebasin_cli.matching.activation_matching import activation_matching, match_activations
from rebasin_cli.matching.activation_statistics import correlations
from rebasin_cli.matching.covariance import CrossCovariance
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import load_state
from rebasin_cli.permutation import Permutations, apply, random
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.tracing.capture import called_operations
from rebasin_cli.tracing.tracer import trace_model


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


WIDTHS = (6, 20, 20, 3)


class Net(nn.Module):
    """A perceptron; a branching one does more for large inputs, or where many come at once."""

    def __init__(self, *, branching: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(n, m) for n, m in pairwise(WIDTHS))
        self.branching = branching

    def forward(self, x: Tensor) -> Tensor:
        large = self.branching and (len(x) > 4 or float(x.abs().max()) > 100)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
            if large:
                x = x.square()
        return self.layers[-1](x)


class Heads(nn.Module):
    """Attention whose heads, and the units inside them, may all be reordered."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.out = nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


def batches(shape: tuple[int, ...], sizes: Sequence[int]) -> list[ExampleInput]:
    whole = torch.randn(sum(sizes), *shape, generator=torch.Generator().manual_seed(5))
    return [ExampleInput((part,)) for part in whole.split(list(sizes))]


def planted(net: nn.Module, example: ExampleInput) -> tuple[Derivation, list[str], nn.Module, Permutations]:
    """The network's groups, its operations, a copy with every group permuted at random, and how."""
    trace = trace_model(net, example)
    found = derive(trace)
    moved = random(found.spec, 3)
    other = deepcopy(net)
    load_state(other, apply(found.spec, moved, net.state_dict()))
    return found, called_operations(trace), other, moved


@pytest.mark.parametrize(("build", "shape"), [(Net, (6,)), (Heads, (7, 24))])
def test_a_permuted_network_is_recovered_from_what_it_computes(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = build().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, *shape),)))
    seen = correlations((net, other), batches(shape, [64, 32]), found.taps, expected)
    back = apply(found.spec, match_activations(found.spec, found.taps, seen), other.state_dict())
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())


def test_any_batch_size_gives_the_same_correlations() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    one, many = (
        correlations((net, other), batches((6,), sizes), found.taps, expected) for sizes in ([60], [7, 1, 22, 30])
    )
    assert one
    for left, right in zip(one, many, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_attention_is_followed_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a batch its input is not contiguous, and linear layers are two operations instead of one."""
    torch.manual_seed(0)
    net = Heads().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 7, 24),)))
    single = correlations((net, other), batches((7, 24), [1] * 12), found.taps, expected)
    monkeypatch.setattr(activation_statistics, "_rows", lambda batch: pytest.fail("taken one by one"))
    together = correlations((net, other), batches((7, 24), [12]), found.taps, expected)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(single, together, strict=True))


def test_weights_have_a_say_in_a_mixture_and_the_result_is_theirs() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    seen = correlations((net, other), batches((6,), [40]), found.taps, expected)
    a, b = net.state_dict(), other.state_dict()
    for share in (1.0, 0.3):
        result = activation_matching(
            found.spec, a, b, parameters=list(a), taps=found.taps, correlations=seen, share=share
        )
        assert result.method == "activation"
        assert result.converged
        assert result.cosine_after == pytest.approx(1.0, abs=1e-6)
        assert result.cosine_before < 0.9


def test_a_path_that_was_not_traced_is_refused() -> None:
    torch.manual_seed(0)
    net = Net(branching=True).eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    one_by_one = correlations((net, other), batches((6,), [8]), found.taps, expected)
    in_pairs = correlations((net, other), batches((6,), [2, 2, 2, 2]), found.taps, expected)
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(one_by_one, in_pairs, strict=True))
    with pytest.raises(ModelError, match="another path"):
        correlations((net, other), [ExampleInput((torch.full((1, 6), 1000.0),))], found.taps, expected)


def test_no_input_is_a_fault_of_the_data() -> None:
    net = Net().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    with pytest.raises(DataError, match="no input"):
        correlations((net, other), [], found.taps, expected)


def test_activations_that_are_not_finite_are_named() -> None:
    covariance = CrossCovariance("layer0", 2)
    with pytest.raises(NumericalError, match="non-finite activations in layer0"):
        covariance.add(torch.full((2, 2), float("nan")), torch.ones(2, 2))
