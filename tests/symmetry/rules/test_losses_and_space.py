"""Losses inside a model, unpooling, and cross products: indexed classes and coordinates are pinned."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebasin_cli.spec import Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds, reason

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(4, 3, generator=GENERATOR)
PICTURE = torch.randn(2, 3, 4, 4, generator=GENERATOR)
UNITS = ["one.bias/0", "one.weight/0"]

_POOLS: dict[int, tuple[Callable[..., Any], Callable[..., Tensor], type[nn.Module]]] = {
    1: (F.max_pool1d, F.max_unpool1d, nn.Conv1d),
    2: (F.max_pool2d, F.max_unpool2d, nn.Conv2d),
    3: (F.max_pool3d, F.max_unpool3d, nn.Conv3d),
}


@pytest.mark.parametrize("rank", _POOLS)
def test_channels_pass_through_unpooling(rank: int) -> None:
    pool, unpool, convolution = _POOLS[rank]

    def run(m: Net, x: Tensor) -> Tensor:
        largest, places = pool(m.one(x), 2, return_indices=True)
        return m.two(unpool(torch.tanh(largest), places, 2))

    net = Net(run, one=convolution(3, 6, 1), two=convolution(6, 2, 3))
    x = torch.randn(2, 3, *[4] * rank, generator=GENERATOR)
    derivation = found(net, x)
    assert axes(derivation) == [(6, [*UNITS, "two.weight/1"])]
    assert every_site_is_needed(net, derivation, x)
    assert not derivation.unknown_ops


def test_what_is_unpooled_by_the_places_of_others_moves_with_them() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        places = F.max_pool2d(m.one(x), 2, return_indices=True)[1]
        return m.two(F.max_unpool2d(m.beside(x), places, 2))

    net = Net(run, one=nn.Conv2d(3, 6, 1), beside=nn.Conv2d(3, 6, 1, 2), two=nn.Conv2d(6, 2, 1))
    derivation = found(net, PICTURE)
    assert axes(derivation) == [(6, ["beside.bias/0", "beside.weight/0", *UNITS, "two.weight/1"])]
    assert not holds(net, claim(6, *(Site(key, 0) for key in ("one.weight", "one.bias"))), PICTURE)


def test_units_beside_the_coordinates_of_a_cross_product_move() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.two(torch.linalg.cross(m.one(x), m.other(x), dim=1).flatten(2))

    net = Net(run, one=nn.Linear(5, 6), other=nn.Linear(5, 6), two=nn.Linear(6, 2))
    x = torch.randn(4, 3, 5, generator=GENERATOR)
    derivation = found(net, x)
    assert axes(derivation) == [(6, ["one.bias/0", "one.weight/0", "other.bias/0", "other.weight/0", "two.weight/1"])]
    assert every_site_is_needed(net, derivation, x)


def test_the_coordinates_of_a_cross_product_keep_their_order() -> None:
    net = Net(lambda m, x: m.two(torch.cross(h := m.one(x), h.exp(), dim=-1)), one=nn.Linear(3, 3), two=nn.Linear(3, 2))
    derivation = found(net, X)
    assert axes(derivation) == []
    assert "cross product" in reason(derivation, "one.weight", 0)
    assert not derivation.unknown_ops
    assert not holds(net, claim(3, Site("one.weight", 0), Site("one.bias", 0), Site("two.weight", 1)), X)


def test_vectors_that_are_multiplied_in_space_move_as_wholes() -> None:
    """Units (vector, coordinate): a vector's coordinates come along, none trades places on its own."""

    def run(m: Net, x: Tensor) -> Tensor:
        return m.two(torch.linalg.cross(m.one(x).unflatten(1, (2, 3)), torch.ones(1, 1, 3), dim=2).flatten(1))

    net = Net(run, one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    derivation = found(net, X)
    assert [(group.size, {site.inner for site in group.sites}) for group in derivation.spec.groups] == [(2, {3})]
    assert not holds(net, claim(2, *(Site(key, 0, positions=((0,), (3,))) for key in ("one.weight", "one.bias"))), X)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_loss_holds_its_classes_and_nothing_else(dense: bool, reduction: str, weighted: bool) -> None:
    layer: Any = (lambda a, b: nn.Conv2d(a, b, 1)) if dense else nn.Linear
    x = PICTURE if dense else X
    target = torch.randint(0, 5, (2, 4, 4) if dense else (4,), generator=GENERATOR)

    def run(m: Net, x: Tensor, target: Tensor) -> Tensor:
        weight = m.weight if weighted else None
        return F.cross_entropy(m.two(torch.tanh(m.one(x))), target, weight, reduction=reduction)

    net = Net(run, one=layer(3, 6), two=layer(6, 5), weight=nn.Parameter(torch.rand(5) + 0.5))
    derivation = found(net, x, target)
    assert axes(derivation) == [(6, [*UNITS, "two.weight/1"])]
    assert every_site_is_needed(net, derivation, x, target)
    assert "class index" in reason(derivation, "two.bias", 0)
    assert not derivation.unknown_ops
    classes = [Site("two.weight", 0), Site("two.bias", 0), *([Site("weight", 0)] if weighted else [])]
    assert not holds(net, claim(5, *classes), x, target)


def test_a_loss_of_targets_that_are_part_of_the_model_holds_its_classes() -> None:
    """Rows whose targets lie in a buffer: they do not move, and neither do the classes."""

    def run(m: Net, x: Tensor) -> Tensor:
        return F.nll_loss(m.rows @ F.log_softmax(m.one(x), 1), m.targets)

    net = Net(run, one=nn.Linear(3, 5), rows=nn.Parameter(torch.randn(4, 4)))
    net.register_buffer("targets", torch.tensor([0, 3, 1, 4]))
    derivation = found(net, X)
    assert not derivation.unknown_ops
    assert not any(site.key == "one.weight" for group in derivation.spec.groups for site in group.sites)
    assert not holds(net, claim(4, Site("rows", 0)), X)
