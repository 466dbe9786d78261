"""Concatenation, stacking, padding, and views that are changed in place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebasin_cli.spec import Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def pair(run: object, width: int = 4, hidden: int = 8, **more: nn.Module) -> Net:
    """One layer of `width` units, then what `run` makes of it, then a layer that reads `hidden`."""
    return Net(run, one=nn.Linear(3, width), two=nn.Linear(hidden, 2), **more)  # type: ignore[arg-type]


def test_concatenation_puts_units_at_offsets() -> None:
    net = pair(lambda m, x: m.two(torch.cat([m.one(x), m.other(x)], 1)), hidden=9, other=nn.Linear(3, 5))
    derivation = found(net, X)
    assert axes(derivation) == [
        (4, ["one.bias/0", "one.weight/0", "two.weight/1"]),
        (5, ["other.bias/0", "other.weight/0", "two.weight/1+4(1,1)"]),
    ]
    assert every_site_is_needed(net, derivation, X)


def test_the_same_twice_moves_at_both_places() -> None:
    net = pair(lambda m, x: m.two(torch.cat([h := m.one(x), h], 1)))
    assert axes(found(net, X)) == [(4, ["one.bias/0", "one.weight/0", "two.weight/1+0(2,1)"])]


def test_a_function_of_itself_moves_along() -> None:
    net = pair(lambda m, x: m.two(torch.cat([h := m.one(x), torch.relu(-h)], 1)))
    derivation = found(net, X)
    assert axes(derivation) == [(4, ["one.bias/0", "one.weight/0", "two.weight/1+0(2,1)"])]
    wrong = claim(8, Site("two.weight", 1))
    assert not holds(net, wrong, X)


def test_stacking_makes_a_new_axis_that_keeps_its_order() -> None:
    net = pair(lambda m, x: m.two(torch.stack([m.one(x), m.other(x)], 2).flatten(1)), other=nn.Linear(3, 4))
    sites = ["one.bias/0", "one.weight/0", "other.bias/0", "other.weight/0"]
    # In the reader the two layers lie interleaved, and move apart from each other.
    assert axes(found(net, X)) == [
        (4, [*sites[:2], "two.weight/1@0,2,4,6"]),
        (4, [*sites[2:], "two.weight/1@1,3,5,7"]),
    ]


def heads_beside_scalars(m: Net, x: Tensor) -> Tensor:
    heads, scalars = m.one(x).relu().view(-1, 3, 4), m.other(x).tanh().view(-1, 3, 1)
    return torch.cat([heads, scalars], 2)


def test_what_is_laid_beside_heads_moves_with_them() -> None:
    net = pair(lambda m, x: m.two(heads_beside_scalars(m, x)).relu().sum(1), 12, 5, other=nn.Linear(3, 3))
    derivation = found(net, X)
    blocks = ["one.bias/0+0(1,4)", "one.weight/0+0(1,4)", "other.bias/0", "other.weight/0"]
    units = ["one.bias/0+0(3,1)", "one.weight/0+0(3,1)", "two.weight/1"]
    assert axes(derivation) == [(3, blocks), (4, units)]


def test_what_is_laid_beside_heads_is_free_where_nothing_ties_it() -> None:
    net = pair(lambda m, x: m.two(heads_beside_scalars(m, x).flatten(1)), 12, 15, other=nn.Linear(3, 3))
    assert [size for size, _ in axes(found(net, X))] == [3, 12]


def test_stacked_and_taken_apart_again_is_free() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        first, second = torch.stack([m.one(x), m.other(x)]).tanh().unbind()
        return m.two(torch.cat([first, second], 1))

    derivation = found(pair(run, hidden=8, other=nn.Linear(3, 4)), X)
    assert axes(derivation) == [
        (4, ["one.bias/0", "one.weight/0", "two.weight/1"]),
        (4, ["other.bias/0", "other.weight/0", "two.weight/1+4(1,1)"]),
    ]


def test_padding_is_a_set_of_positions_that_may_trade_places() -> None:
    net = pair(lambda m, x: m.two(F.pad(m.one(x), (1, 3))))
    derivation = found(net, X)
    assert axes(derivation) == [
        (4, ["one.bias/0", "one.weight/0", "two.weight/1+1(1,1)"]),
        (4, ["two.weight/1@0,5,6,7"]),
    ]
    assert not holds(net, claim(8, Site("two.weight", 1)), X)


def test_a_negative_pad_cuts() -> None:
    net = pair(lambda m, x: m.two(F.pad(m.one(x), (-1, 0))), width=5, hidden=4)
    assert axes(found(net, X)) == [(4, ["one.bias/0+1(1,1)", "one.weight/0+1(1,1)", "two.weight/1"])]


def test_a_slice_that_is_changed_in_place_is_told_apart() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        hidden[:, :3].mul_(2.0)
        return m.two(hidden)

    net = pair(run, width=8)
    derivation = found(net, X)
    assert axes(derivation) == [
        (3, ["one.bias/0", "one.weight/0", "two.weight/1"]),
        (5, ["one.bias/0+3(1,1)", "one.weight/0+3(1,1)", "two.weight/1+3(1,1)"]),
    ]
    wrong = claim(8, Site("one.weight", 0), Site("one.bias", 0), Site("two.weight", 1))
    assert not holds(net, wrong, X)


def test_a_slice_that_is_written_from_elsewhere_takes_its_units() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = torch.zeros(x.shape[0], 8)
        hidden[:, 1:5] = m.one(x)
        return m.two(hidden)

    derivation = found(pair(run), X)
    assert (4, ["one.bias/0", "one.weight/0", "two.weight/1+1(1,1)"]) in axes(derivation)


def test_a_buffer_that_was_filled_and_is_viewed_takes_its_units() -> None:
    """The view of a constant into which something was written is no constant."""

    def run(m: Net, x: Tensor) -> Tensor:
        cache = torch.zeros(2, 5, 4)
        cache[:, :2] = m.one(x).view(2, 2, 4)
        return m.two(cache.view(10, 4))

    derivation = found(pair(run, hidden=4), X)
    assert axes(derivation) == [(4, ["one.bias/0", "one.weight/0", "two.weight/1"])]


def test_a_write_through_a_chain_of_views() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        hidden.view(-1, 2, 4).transpose(1, 2).select(2, 1).add_(m.other(x))
        return m.two(hidden)

    net = pair(run, width=8, other=nn.Linear(3, 4))
    derivation = found(net, X)
    assert axes(derivation) == [
        (4, ["one.bias/0", "one.weight/0", "two.weight/1"]),
        (4, ["one.bias/0+4(1,1)", "one.weight/0+4(1,1)", "other.bias/0", "other.weight/0", "two.weight/1+4(1,1)"]),
    ]
    assert every_site_is_needed(net, derivation, X)


def test_a_view_taken_before_the_change_sees_it() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        early = hidden[:, 4:]
        hidden.add_(m.other(x))
        return m.two(early)

    net = pair(run, width=8, hidden=4, other=nn.Linear(3, 8))
    sites = [f"{name}/0+4(1,1)" for name in ("one.bias", "one.weight", "other.bias", "other.weight")]
    assert (4, [*sites, "two.weight/1"]) in axes(found(net, X))
