"""Norms: batch, layer, group, instance, root mean square, and softmax-like row operations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.spec import Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds

X = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def with_norm(norm: nn.Module, width: int = 6) -> Net:
    return Net(
        lambda m, x: m.two(torch.relu(m.norm(m.one(x)))),
        one=nn.Conv2d(3, width, 1, bias=False),
        norm=norm,
        two=nn.Conv2d(width, 2, 1),
    )


def test_batch_norm_carries_its_statistics_along() -> None:
    net = with_norm(nn.BatchNorm2d(6))
    derivation = found(net, X)
    statistics = [f"norm.{name}/0" for name in ("bias", "running_mean", "running_var", "weight")]
    assert axes(derivation) == [(6, [*statistics, "one.weight/0", "two.weight/1"])]
    assert every_site_is_needed(net, derivation, X)


def test_batch_norm_without_statistics_of_its_own() -> None:
    derivation = found(with_norm(nn.BatchNorm2d(6, track_running_stats=False)), X)
    assert axes(derivation) == [(6, ["norm.bias/0", "norm.weight/0", "one.weight/0", "two.weight/1"])]


def test_instance_norm() -> None:
    derivation = found(with_norm(nn.InstanceNorm2d(6, affine=True)), X)
    assert axes(derivation) == [(6, ["norm.bias/0", "norm.weight/0", "one.weight/0", "two.weight/1"])]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(groups: int) -> None:
    net = with_norm(nn.GroupNorm(groups, 6))
    derivation = found(net, X)
    if groups in (1, 6):
        assert axes(derivation) == [(6, ["norm.bias/0", "norm.weight/0", "one.weight/0", "two.weight/1"])]
    else:
        assert sorted(group.size for group in derivation.spec.groups) == [2, 3, 3]
        free = claim(6, *(Site(key, 0) for key in ("one.weight", "norm.weight", "norm.bias")), Site("two.weight", 1))
        assert not holds(net, free, X)


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.RMSNorm(6)], ids=["layer", "rms"])
def test_norms_over_features(norm: nn.Module) -> None:
    x = torch.randn(4, 3)
    net = Net(lambda m, x: m.two(m.norm(m.one(x))), one=nn.Linear(3, 6), norm=norm, two=nn.Linear(6, 2))
    derivation = found(net, x)
    [(size, sites)] = axes(derivation)
    assert size == 6
    assert {"one.weight/0", "norm.weight/0", "two.weight/1"} <= set(sites)
    assert every_site_is_needed(net, derivation, x)


def test_layer_norm_over_several_axes_keeps_only_space() -> None:
    net = Net(
        lambda m, x: m.two(m.norm(m.one(x))),
        one=nn.Conv2d(3, 6, 3, padding=1),
        norm=nn.LayerNorm([6, 5, 5]),
        two=nn.Conv2d(6, 2, 3),
    )
    assert axes(found(net, X)) == [(6, ["norm.bias/0", "norm.weight/0", "one.bias/0", "one.weight/0", "two.weight/1"])]


def test_softmax_over_units_lets_them_move() -> None:
    x = torch.randn(4, 3)
    net = Net(lambda m, x: m.two(m.one(x).softmax(-1)), one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    derivation = found(net, x)
    assert axes(derivation) == [(6, ["one.bias/0", "one.weight/0", "two.weight/1"])]
    assert every_site_is_needed(net, derivation, x)


def test_a_running_sum_keeps_its_order() -> None:
    x = torch.randn(4, 3)
    net = Net(lambda m, x: m.two(m.one(x).cumsum(-1)), one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    assert axes(found(net, x)) == []
    assert not holds(net, claim(6, Site("one.weight", 0), Site("one.bias", 0), Site("two.weight", 1)), x)


def test_softmax_within_blocks_keeps_the_blocks() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.two(m.one(x).view(-1, 2, 3).softmax(-1).flatten(1))

    x = torch.randn(4, 3)
    derivation = found(Net(run, one=nn.Linear(3, 6), two=nn.Linear(6, 2)), x)
    assert sorted(group.size for group in derivation.spec.groups) == [2, 3, 3]
