"""Activation matching: permuted networks are recovered from what they compute, alone and together with the weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.execution.activations import likenesses
from rebasin_cli.matching.activation_matching import activation_matching, match_activations
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import apply
from rebasin_cli.spec import Tap
from tests.execution.planted_networks import Heads, Net, batches, planted


@pytest.mark.parametrize(("build", "shape"), [(Net, (6,)), (Heads, (7, 24))])
def test_a_permuted_network_is_recovered_from_what_it_computes(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    net = build().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, *shape),)))
    seen = likenesses((net, other), batches(shape, [64, 32]), found.taps, expected, "covariance")
    back = apply(found.spec, match_activations(found.spec, found.taps, seen), other.state_dict())
    assert all(torch.equal(back[key], value) for key, value in net.state_dict().items())


def test_weights_have_a_say_in_a_mixture_and_the_result_is_theirs() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    seen = likenesses((net, other), batches((6,), [40]), found.taps, expected, "covariance")
    a, b = net.state_dict(), other.state_dict()
    for share in (1.0, 0.3):
        result = activation_matching(
            found.spec, a, b, parameters=list(a), taps=found.taps, likenesses=seen, share=share
        )
        assert result.converged
        assert result.cosine_after == pytest.approx(1.0, abs=1e-6)
        assert result.cosine_before < 0.9


class Scaled(nn.Module):
    """A LayerNorm behind a factor that is the same for all units, and other for every input."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.norm, self.out = nn.Linear(6, 16), nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.into(x) * (4 * x[:, :1]).exp()))


def test_the_scale_before_a_layer_norm_does_not_mislead() -> None:
    """B is A permuted with noise: what the norm reads tells the units apart less well than what it returns."""
    torch.manual_seed(0)
    net = Scaled().eval()
    found, expected, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    with torch.no_grad():
        other.into.weight += 0.3 * other.into.weight.std() * torch.randn(other.into.weight.shape)
    (tap,) = found.taps
    norm = next(number for number, name in enumerate(expected) if "layer_norm" in name)
    before = replace(tap, ordinal=norm, operand="input", reader=None)
    inputs = batches((6,), [400])

    def wrong(where: Tap) -> int:
        seen = likenesses((net, other), inputs, [where], expected, "covariance")
        matched = match_activations(found.spec, [where], seen)
        back = apply(found.spec, matched, {"into.bias": other.into.bias})["into.bias"]
        return int((back != net.into.bias).sum())

    assert wrong(tap) == 0 < wrong(before)
