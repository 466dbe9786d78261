"""Convolutions: dense, grouped, depthwise, transposed, pointwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds, parameter, reason

X = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def chain(*layers: nn.Module) -> Net:
    def run(m: Net, x: Tensor) -> Tensor:
        for place in range(len(layers)):
            x = getattr(m, f"l{place}")(x)
        return x

    return Net(run, **{f"l{place}": layer for place, layer in enumerate(layers)})


def test_dense() -> None:
    net = chain(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3, bias=False))
    derivation = found(net, X)
    assert axes(derivation) == [(5, ["l0.bias/0", "l0.weight/0", "l2.weight/1"])]
    assert every_site_is_needed(net, derivation, X)
    assert reason(derivation, "l0.weight", 2) == "convolution kernel positions"
    assert not holds(net, claim(3, Site("l0.weight", 3)), X)


def test_depthwise_channels_move_with_what_makes_them() -> None:
    net = chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 2, 1))
    derivation = found(net, X)
    assert axes(derivation) == [(4, ["l0.bias/0", "l0.weight/0", "l1.bias/0", "l1.weight/0", "l2.weight/1"])]
    assert every_site_is_needed(net, derivation, X)


def test_depthwise_with_a_multiplier_keeps_each_channels_outputs_in_a_block() -> None:
    net = chain(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 1))
    derivation = found(net, X)
    assert (derivation.roots, derivation.families, len(derivation.spec.groups)) == (1, 1, 5)
    channels = next(group for group in derivation.spec.groups if group.parent is None)
    assert {(site.key, site.axis, site.inner) for site in channels.sites} == {
        ("l0.weight", 0, 1), ("l0.bias", 0, 1), ("l1.weight", 0, 2), ("l1.bias", 0, 2), ("l2.weight", 1, 2),
    }  # fmt: skip
    assert not holds(net, claim(8, Site("l1.weight", 0), Site("l1.bias", 0), Site("l2.weight", 1)), X)


def test_groups_are_blocks_with_inputs_and_outputs_of_their_own() -> None:
    net = chain(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 8, 3, groups=2), nn.Conv2d(8, 2, 1))
    derivation = found(net, X)
    assert sorted(group.size for group in derivation.spec.groups) == [2, 3, 3, 4, 4]
    units = [Site("l0.weight", 0), Site("l0.bias", 0)]
    assert not holds(net, claim(6, *units), X)
    wrong = AxisGroup("blocks", 2, (*(Site(site.key, 0, inner=3) for site in units), Site("l1.weight", 0, inner=4)))
    assert not holds(net, PermutationSpec((wrong,)), X)  # without the bias of l1 and without what reads it
    inner = AxisGroup("in[0]", 3, tuple(units), ParentBlock("blocks", 0))
    assert not holds(net, PermutationSpec((inner, AxisGroup("blocks", 2, ()))), X)


@pytest.mark.parametrize("groups", [1, 2])
def test_transposed(groups: int) -> None:
    net = chain(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2, stride=2, groups=groups), nn.Conv2d(6, 2, 1))
    derivation = found(net, X)
    if groups == 1:
        assert axes(derivation) == [
            (4, ["l0.bias/0", "l0.weight/0", "l1.weight/0"]),
            (6, ["l1.bias/0", "l1.weight/1", "l2.weight/1"]),
        ]
        assert every_site_is_needed(net, derivation, X)
    else:
        assert sorted(group.size for group in derivation.spec.groups) == [2, 2, 2, 3, 3]


def test_one_dimension_and_three() -> None:
    flat = chain(nn.Conv1d(3, 5, 3), nn.Conv1d(5, 2, 1))
    assert axes(found(flat, torch.randn(1, 3, 8))) == [(5, ["l0.bias/0", "l0.weight/0", "l1.weight/1"])]
    deep = chain(nn.Conv3d(3, 5, 3), nn.Conv3d(5, 2, 1))
    assert axes(found(deep, torch.randn(1, 3, 4, 4, 4))) == [(5, ["l0.bias/0", "l0.weight/0", "l1.weight/1"])]


def test_a_pointwise_kernel_leaves_space_free() -> None:
    """Tokens that a learned query makes lie in "space", and nothing but a kernel of one position reads them."""

    def net(kernel: int) -> Net:
        return Net(
            lambda m, x: m.two(torch.relu(m.one(x @ m.make))).sum(2),
            make=parameter(8, 4),
            one=nn.Conv1d(3, 5, kernel),
            two=nn.Conv1d(5, 2, 1),
        )

    assert (4, ["make/1"]) in axes(found(net(1), torch.randn(1, 3, 8)))
    assert all("make/1" not in sites for _, sites in axes(found(net(3), torch.randn(1, 3, 8))))


def test_a_kernel_that_is_standardised_first() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        weight = m.weight
        flat = weight.view(5, -1)
        weight = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, keepdim=True)).view_as(weight)
        return m.two(torch.relu(torch.conv2d(x, weight)))

    derivation = found(Net(run, weight=parameter(5, 3, 3, 3), two=nn.Conv2d(5, 2, 1)), X)
    assert axes(derivation) == [(5, ["two.weight/1", "weight/0"])]
