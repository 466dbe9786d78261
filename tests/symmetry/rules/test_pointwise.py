"""Pointwise operations, residuals, broadcasting, in-place changes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebasin_cli.spec import Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds, parameter

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def test_two_layers() -> None:
    net = Net(lambda m, x: m.two(torch.tanh(m.one(x))), one=nn.Linear(3, 5), two=nn.Linear(5, 2))
    derivation = found(net, X)
    assert axes(derivation) == [(5, ["one.bias/0", "one.weight/0", "two.weight/1"])]
    assert every_site_is_needed(net, derivation, X)
    assert derivation.free_fraction == (15 + 5 + 10) / (15 + 5 + 10 + 2)


def test_a_residual_addition_links_what_it_adds() -> None:
    net = Net(
        lambda m, x: m.last((first := m.first(x)) + m.two(torch.relu(m.one(first)))),
        first=nn.Linear(3, 4),
        one=nn.Linear(4, 5),
        two=nn.Linear(5, 4),
        last=nn.Linear(4, 2),
    )
    derivation = found(net, X)
    stream = ["first.bias/0", "first.weight/0", "last.weight/1", "one.weight/1", "two.bias/0", "two.weight/0"]
    assert axes(derivation) == [(4, stream), (5, ["one.bias/0", "one.weight/0", "two.weight/1"])]
    assert every_site_is_needed(net, derivation, X)


def test_broadcasting_runs_together_from_the_right() -> None:
    net = Net(
        lambda m, x: m.two(m.one(x) * m.scale + m.shift[:, None].T),
        one=nn.Linear(3, 5),
        scale=parameter(1, 5),
        shift=parameter(5),
        two=nn.Linear(5, 2),
    )
    sites = ["one.bias/0", "one.weight/0", "scale/1", "shift/0", "two.weight/1"]
    assert axes(found(net, X)) == [(5, sites)]


def test_an_outer_product_keeps_its_two_axes_apart() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        left, right = m.left(x), m.right(x)
        return ((left[:, :, None] * right[:, None, :]).relu() * m.weight).sum((1, 2))

    net = Net(run, left=nn.Linear(3, 4), right=nn.Linear(3, 4), weight=parameter(4, 4))
    derivation = found(net, X)
    assert axes(derivation) == [
        (4, ["left.bias/0", "left.weight/0", "weight/0"]),
        (4, ["right.bias/0", "right.weight/0", "weight/1"]),
    ]
    wrong = claim(4, *(Site(f"{side}.{part}", 0) for side in ("left", "right") for part in ("weight", "bias")))
    assert not holds(net, wrong, X)


def test_in_place_operations_change_what_is_read_later() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        hidden.add_(m.other(x))
        F.relu_(hidden)
        return m.two(hidden)

    net = Net(run, one=nn.Linear(3, 5), other=nn.Linear(3, 5), two=nn.Linear(5, 2))
    sites = ["one.bias/0", "one.weight/0", "other.bias/0", "other.weight/0", "two.weight/1"]
    derivation = found(net, X)
    assert axes(derivation) == [(5, sites)]
    assert every_site_is_needed(net, derivation, X)


def test_a_mask_made_by_comparison_runs_along() -> None:
    net = Net(
        lambda m, x: m.two(torch.where(m.gate(x) > 0, m.one(x), m.low)),
        one=nn.Linear(3, 5),
        gate=nn.Linear(3, 5),
        low=parameter(5),
        two=nn.Linear(5, 2),
    )
    sites = ["gate.bias/0", "gate.weight/0", "low/0", "one.bias/0", "one.weight/0", "two.weight/1"]
    assert axes(found(net, X)) == [(5, sites)]


def test_prelu_has_a_slope_for_each_channel_or_one_for_all() -> None:
    image = torch.randn(1, 3, 4, 4)
    own = Net(lambda m, x: m.two(m.act(m.one(x))), one=nn.Conv2d(3, 5, 1), act=nn.PReLU(5), two=nn.Conv2d(5, 2, 1))
    assert axes(found(own, image)) == [(5, ["act.weight/0", "one.bias/0", "one.weight/0", "two.weight/1"])]
    shared = Net(lambda m, x: m.two(m.act(m.one(x))), one=nn.Conv2d(3, 5, 1), act=nn.PReLU(), two=nn.Conv2d(5, 2, 1))
    assert axes(found(shared, image)) == [(5, ["one.bias/0", "one.weight/0", "two.weight/1"])]
