"""Activation matching: permuted networks are recovered from what they compute, alone and together with the weights."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from rebasin_cli.execution.activations import likenesses
from rebasin_cli.matching.activation_matching import activation_matching, match_activations
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import apply
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
