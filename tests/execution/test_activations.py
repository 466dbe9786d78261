"""Activations: any batching gives the same covariance and the same correlations, and other paths are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rebasin_cli.errors import DataError, ModelError, NumericalError
from rebasin_cli.execution import activations
from rebasin_cli.execution.activations import CrossCovariance, likenesses
from rebasin_cli.model.example_input import ExampleInput
from tests.execution.planted_networks import Heads, Net, batches, planted


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 17), min_size=1, max_size=6), st.floats(-50, 50))
def test_the_covariance_does_not_hang_on_the_batches(sizes: list[int], offset: float) -> None:
    generator = torch.Generator().manual_seed(sum(sizes))
    a, b = (torch.randn(sum(sizes) + 2, 3, 4, generator=generator, dtype=torch.float64) + offset for _ in range(2))
    streamed, whole = CrossCovariance("g", 4, 3), CrossCovariance("g", 4, 3)
    whole.add(a, b)
    at = 0
    for size in [*sizes, 2]:
        streamed.add(a[at : at + size], b[at : at + size])
        at += size
    direct = torch.einsum("spi,spj->ij", a - a.mean(0), b - b.mean(0)) / len(a)
    assert torch.allclose(streamed.covariance(), direct, atol=1e-9)
    assert torch.allclose(streamed.correlation(), whole.correlation(), atol=1e-9)
    assert streamed.correlation().abs().max() <= 1 + 1e-9


def test_a_unit_that_never_varies_correlates_with_nothing() -> None:
    covariance = CrossCovariance("g", 2)
    samples = torch.randn(50, 1, 2)
    samples[..., 1] = 3.0
    covariance.add(samples, samples)
    assert covariance.correlation()[1].abs().max() == 0
    assert covariance.correlation()[0, 0] == pytest.approx(1.0)


def test_any_batch_size_gives_the_same_likenesses() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    one, many = (
        likenesses((net, other), batches((6,), sizes), found.taps, expected, "covariance")
        for sizes in ([60], [7, 1, 22, 30])
    )
    assert one
    for left, right in zip(one, many, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def test_attention_is_followed_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a batch its input is not contiguous, and linear layers are two operations instead of one."""
    torch.manual_seed(0)
    net = Heads().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 7, 24),)))
    single = likenesses((net, other), batches((7, 24), [1] * 12), found.taps, expected, "covariance")
    monkeypatch.setattr(activations, "_rows", lambda batch: pytest.fail("taken one by one"))
    together = likenesses((net, other), batches((7, 24), [12]), found.taps, expected, "covariance")
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(single, together, strict=True))


def test_a_path_that_was_not_traced_is_refused() -> None:
    torch.manual_seed(0)
    net = Net(branching=True).eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    one_by_one = likenesses((net, other), batches((6,), [8]), found.taps, expected, "covariance")
    in_pairs = likenesses((net, other), batches((6,), [2, 2, 2, 2]), found.taps, expected, "covariance")
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(one_by_one, in_pairs, strict=True))
    with pytest.raises(ModelError, match="another path"):
        likenesses((net, other), [ExampleInput((torch.full((1, 6), 1000.0),))], found.taps, expected, "covariance")


def test_no_input_is_a_fault_of_the_data() -> None:
    net = Net().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    with pytest.raises(DataError, match="no input"):
        likenesses((net, other), [], found.taps, expected, "covariance")


def test_activations_that_are_not_finite_are_named() -> None:
    covariance = CrossCovariance("layer0", 2)
    with pytest.raises(NumericalError, match="non-finite activations in layer0"):
        covariance.add(torch.full((2, 1, 2), float("nan")), torch.ones(2, 1, 2))


class Image(nn.Module):
    """Channels that are read by a convolution in groups of one, by another one, and flattened by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.each = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, groups=6)
        self.mixed, self.out = nn.Conv2d(6, 5, 1), nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.mixed(self.each(self.first(x).relu()).relu()).relu().flatten(1))


def test_the_scale_of_a_unit_does_not_count_but_what_is_read_of_it() -> None:
    """Twice the activation and half the weights that read it is the same network."""
    torch.manual_seed(0)
    net = Image().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 1, 8, 8),)))
    inputs = batches((1, 8, 8), [50])
    before = likenesses((net, other), inputs, found.taps, expected, "covariance")
    assert {(tap.length, tap.outer, tap.inner) for tap in found.taps} == {(6, 1, 1), (5, 1, 16)}
    few, many = torch.rand(6) + 0.5, torch.rand(5) + 0.5
    with torch.no_grad():
        other.first.weight *= few[:, None, None, None]
        other.first.bias *= few
        other.each.weight /= few[:, None, None, None]
        other.mixed.weight *= many[:, None, None, None]
        other.mixed.bias *= many
        other.out.weight /= many.repeat_interleave(16)
    after = likenesses((net, other), inputs, found.taps, expected, "covariance")
    by_each, by_mixed, by_out = (torch.allclose(one, two, atol=1e-5) for one, two in zip(before, after, strict=True))
    assert (by_each, by_mixed, by_out) == (True, False, True)
