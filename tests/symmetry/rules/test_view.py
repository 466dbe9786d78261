"""Views: flattening, shuffling, transposing, repeating, expanding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebasin_cli.spec import Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds, parameter

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_a_flattened_channel_is_a_run_of_columns() -> None:
    net = Net(lambda m, x: m.two(m.one(x).flatten(1)), one=nn.Conv2d(3, 5, 3), two=nn.Linear(20, 2))
    derivation = found(net, IMAGE)
    assert axes(derivation) == [(5, ["one.bias/0", "one.weight/0", "two.weight/1+0(1,4)"])]
    assert every_site_is_needed(net, derivation, IMAGE)
    assert not holds(net, claim(4, Site("two.weight", 1, outer=5)), IMAGE)


def test_channels_last_flattens_the_other_way_round() -> None:
    net = Net(lambda m, x: m.two(m.one(x).permute(0, 2, 3, 1).flatten(1)), one=nn.Conv2d(3, 5, 3), two=nn.Linear(20, 2))
    assert axes(found(net, IMAGE)) == [(5, ["one.bias/0", "one.weight/0", "two.weight/1+0(4,1)"])]


def test_a_view_that_is_undone_costs_no_freedom() -> None:
    net = Net(
        lambda m, x: m.two(m.one(x).view(-1, 3, 4).relu().view(-1, 12)), one=nn.Linear(3, 12), two=nn.Linear(12, 2)
    )
    assert axes(found(net, X)) == [(12, ["one.bias/0", "one.weight/0", "two.weight/1"])]


def test_a_view_across_factors() -> None:
    """12 seen as (3, 4), then as (2, 6): nothing distinguishes any unit."""
    net = Net(
        lambda m, x: m.two(m.one(x).view(-1, 3, 4).relu().view(-1, 2, 6).tanh().flatten(1)),
        one=nn.Linear(3, 12),
        two=nn.Linear(12, 2),
    )
    assert axes(found(net, X)) == [(12, ["one.bias/0", "one.weight/0", "two.weight/1"])]


def test_a_shuffle_interleaves() -> None:
    net = Net(
        lambda m, x: m.two(m.one(x).view(-1, 2, 3).transpose(1, 2).reshape(-1, 6)),
        one=nn.Linear(3, 6),
        two=nn.Linear(6, 2),
    )
    derivation = found(net, X)
    assert axes(derivation) == [(6, ["one.bias/0", "one.weight/0", "two.weight/1@0,2,4,1,3,5"])]


def test_pixel_shuffle_and_back() -> None:
    net = Net(lambda m, x: m.two(F.pixel_shuffle(m.one(x), 2)), one=nn.Conv2d(3, 12, 1), two=nn.Conv2d(3, 2, 3))
    assert axes(found(net, IMAGE)) == [(3, ["one.bias/0+0(1,4)", "one.weight/0+0(1,4)", "two.weight/1"])]
    back = Net(lambda m, x: m.two(F.pixel_unshuffle(m.one(x), 2)), one=nn.Conv2d(3, 5, 1), two=nn.Conv2d(20, 2, 1))
    assert axes(found(back, IMAGE)) == [(5, ["one.bias/0", "one.weight/0", "two.weight/1+0(1,4)"])]
    assert not holds(net, claim(12, Site("one.weight", 0), Site("one.bias", 0)), IMAGE)


def test_repeats_are_blocks_outside_or_inside() -> None:
    whole = Net(lambda m, x: m.two(m.one(x).repeat(1, 2)), one=nn.Linear(3, 4), two=nn.Linear(8, 2))
    copies = (2, ["two.weight/1+0(1,4)"])  # the two copies may trade places, too: the reader adds them up
    assert axes(found(whole, X)) == [copies, (4, ["one.bias/0", "one.weight/0", "two.weight/1+0(2,1)"])]
    each = Net(lambda m, x: m.two(m.one(x).repeat_interleave(2, 1)), one=nn.Linear(3, 4), two=nn.Linear(8, 2))
    copies = (2, ["two.weight/1+0(4,1)"])
    assert axes(found(each, X)) == [copies, (4, ["one.bias/0", "one.weight/0", "two.weight/1+0(1,2)"])]
    assert not holds(whole, claim(4, Site("one.weight", 0), Site("one.bias", 0), Site("two.weight", 1)), X)


def test_expanding_makes_positions_that_are_all_alike() -> None:
    net = Net(
        lambda m, x: (m.one(x)[:, None, :].expand(-1, 3, -1) * m.scale).sum(1) @ m.two,
        one=nn.Linear(3, 4),
        scale=parameter(3, 4),
        two=parameter(4, 2),
    )
    derivation = found(net, X)
    assert axes(derivation) == [(3, ["scale/0"]), (4, ["one.bias/0", "one.weight/0", "scale/1", "two/0"])]


def test_windows_keep_the_order_of_what_they_slide_over() -> None:
    net = Net(lambda m, x: m.one(x).unfold(1, 2, 1).sum(2) @ m.two, one=nn.Linear(3, 5), two=parameter(4, 2))
    assert axes(found(net, X)) == []


def test_a_matrix_times_its_own_transpose() -> None:
    """A Gram matrix: the same units along both axes, summed over places."""

    def run(m: Net, x: Tensor) -> Tensor:
        maps = m.one(x).flatten(2)
        return m.two((maps @ maps.transpose(1, 2)).flatten(1))

    net = Net(run, one=nn.Conv2d(3, 4, 1), two=nn.Linear(16, 2))
    derivation = found(net, IMAGE)
    assert [group.size for group in derivation.spec.groups] == [4]
    assert {(site.key, site.outer, site.inner) for site in derivation.spec.groups[0].sites} == {
        ("one.weight", 1, 1), ("one.bias", 1, 1), ("two.weight", 1, 4), ("two.weight", 4, 1),
    }  # fmt: skip
