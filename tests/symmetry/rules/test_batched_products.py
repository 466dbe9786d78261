"""Batched products whose batch axis is an axis of the input: each of its positions has weights of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.symmetry.rules.bench import Net, axes, found, parameter

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
Run = Callable[[Net, Tensor], Tensor]


def per_feature(net: Net, x: Tensor) -> Tensor:
    return torch.bmm(x.t().unsqueeze(-1), net.into)


REDUCED: dict[str, Run] = {
    "summed over features": lambda net, x: torch.bmm(per_feature(net, x).relu(), net.out).sum(0),
    "summed over features and samples": lambda net, x: torch.bmm(per_feature(net, x).relu(), net.out).sum((0, 1)),
    "added": lambda net, x: torch.baddbmm(net.bias, per_feature(net, x).relu(), net.out).mean(0),
    "accumulated": lambda net, x: torch.addbmm(torch.zeros(4, 1), per_feature(net, x).relu(), net.out),
    "by einsum": lambda net, x: torch.einsum("fbh,fho->bo", torch.einsum("bf,fih->fbh", x, net.into).relu(), net.out),
}


@pytest.mark.parametrize("name", REDUCED)
def test_units_of_each_feature_move_on_their_own_and_features_keep_their_order(name: str) -> None:
    net = Net(REDUCED[name], into=parameter(3, 1, 5), out=parameter(3, 5, 1), bias=parameter(3, 1, 1))
    groups = axes(found(net, X))
    assert [size for size, _ in groups] == [5, 5, 5]
    assert all({place.split("/")[0] for place in places} == {"into", "out"} for _, places in groups)


@pytest.mark.parametrize("run", [lambda n, x: torch.bmm(x, n.w).sum((0, 1)), lambda n, x: torch.matmul(x, n.w).sum(0)])
def test_a_weight_that_is_summed_over_its_features_stays_in_place(run: Run) -> None:
    net = Net(run, w=parameter(3, 2, 6))
    assert axes(found(net, torch.randn(3, 4, 2))) == []


def test_units_that_all_features_share_move_together() -> None:
    net = Net(lambda n, x: torch.bmm(x, n.w).sum(0).relu() @ n.out, w=parameter(3, 2, 6), out=parameter(6, 2))
    assert axes(found(net, torch.randn(3, 4, 2))) == [(6, ["out/0", "w/2"])]
