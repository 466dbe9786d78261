"""Slices, chunks, flips, selection by a constant index, embedding tables."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rebasin_cli.spec import Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds, parameter, reason

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def net_with(run: object, width: int = 4, hidden: int = 4, **more: nn.Module | nn.Parameter) -> Net:
    return Net(run, one=nn.Linear(3, width), two=nn.Linear(hidden, 2), **more)  # type: ignore[arg-type]


def test_flipped_units_move_the_other_way_round() -> None:
    net = net_with(lambda m, x: m.two(m.one(x).flip(1)))
    derivation = found(net, X)
    assert axes(derivation) == [(4, ["one.bias/0", "one.weight/0", "two.weight/1@3,2,1,0"])]


def test_a_unit_added_to_its_mirror_image_is_pinned_and_not_wrong() -> None:
    net = net_with(lambda m, x: m.two(torch.relu((h := m.one(x)) + h.flip(1))))
    derivation = found(net, X)
    assert axes(derivation) == []
    assert "another order" in reason(derivation, "one.weight", 0)
    assert not holds(net, claim(4, Site("one.weight", 0), Site("one.bias", 0), Site("two.weight", 1)), X)


def test_units_rolled_onto_their_neighbours_are_pinned() -> None:
    assert axes(found(net_with(lambda m, x: m.two((h := m.one(x)) * h.roll(1, 1))), X)) == []


def test_halves_of_a_gate_move_alike() -> None:
    net = net_with(lambda m, x: m.two((parts := m.one(x).chunk(2, 1))[0] * torch.sigmoid(parts[1])), width=8)
    derivation = found(net, X)
    assert axes(derivation) == [(4, ["one.bias/0+0(2,1)", "one.weight/0+0(2,1)", "two.weight/1"])]
    assert not holds(net, claim(8, Site("one.weight", 0), Site("one.bias", 0)), X)
    assert every_site_is_needed(net, derivation, X)


def test_glu_is_a_gate() -> None:
    derivation = found(net_with(lambda m, x: m.two(F.glu(m.one(x))), width=8), X)
    assert axes(derivation) == [(4, ["one.bias/0+0(2,1)", "one.weight/0+0(2,1)", "two.weight/1"])]


def test_interleaved_gates_lie_two_apart() -> None:
    derivation = found(net_with(lambda m, x: m.two((h := m.one(x))[:, ::2] * h[:, 1::2].tanh()), width=8), X)
    assert axes(derivation) == [(4, ["one.bias/0+0(1,2)", "one.weight/0+0(1,2)", "two.weight/1"])]


def test_pieces_of_unequal_length_are_told_apart() -> None:
    derivation = found(net_with(lambda m, x: m.two((h := m.one(x).split([1, 3], 1))[1]) + h[0], hidden=3), X)
    assert axes(derivation) == [(3, ["one.bias/0+1(1,1)", "one.weight/0+1(1,1)", "two.weight/1"])]


@pytest.mark.parametrize("how", ["index", "index_select"])
def test_a_constant_index_is_a_pick(how: str) -> None:
    order = torch.tensor([3, 1, 0, 2])

    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        return m.two(hidden[:, order] if how == "index" else hidden.index_select(1, order))

    derivation = found(net_with(run), X)
    assert axes(derivation) == [(4, ["one.bias/0", "one.weight/0", "two.weight/1@2,1,3,0"])]


def test_a_constant_index_may_pick_twice_or_leave_out() -> None:
    order = torch.tensor([0, 1, 1, 0])
    derivation = found(net_with(lambda m, x: m.two(m.one(x)[:, order])), X)
    unread = ["one.bias/0+2(1,1)", "one.weight/0+2(1,1)"]
    assert axes(derivation) == [(2, ["one.bias/0", "one.weight/0", "two.weight/1@0 3,1 2"]), (2, unread)]


def test_an_index_that_ranks_follows_what_it_ranks() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        return m.two(hidden.gather(1, hidden.argsort(1)))

    assert axes(found(net_with(run), X)) == [(4, ["one.bias/0", "one.weight/0"])]


def test_an_index_that_is_compared_pins_what_it_ranks() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        return m.two(hidden * (hidden.argsort(1) > 1))

    assert axes(found(net_with(run), X)) == []


def test_rows_of_an_embedding_keep_their_order_and_features_move() -> None:
    ids = torch.tensor([[1, 0, 2]])
    net = Net(lambda m, i: m.two(torch.relu(m.table(i))), table=nn.Embedding(5, 4), two=nn.Linear(4, 2))
    derivation = found(net, ids)
    assert axes(derivation) == [(4, ["table.weight/1", "two.weight/1"])]
    assert reason(derivation, "table.weight", 0) == "embedding rows (token ids)"
    assert not holds(net, claim(5, Site("table.weight", 0)), ids)


def test_a_tied_table_serves_both_ends() -> None:
    ids = torch.tensor([[1, 0, 2]])
    net = Net(
        lambda m, i: m.head(m.mid(m.table(i))), table=nn.Embedding(5, 4), mid=nn.Linear(4, 4), head=nn.Linear(4, 5)
    )
    net.get_submodule("head").weight = net.get_submodule("table").weight
    derivation = found(net, ids)
    # The table's features are both what `mid` reads and what it gives: one group, under both names of the table.
    assert axes(derivation) == [(4, ["head.weight/1", "mid.bias/0", "mid.weight/0", "mid.weight/1", "table.weight/1"])]


def test_a_lookup_by_constant_index_keeps_the_other_axis() -> None:
    place = torch.arange(3)
    index = (place[:, None] - place[None, :] + 2).flatten()
    net = Net(
        lambda m, x: (m.one(x)[:, None, None, :] + m.table[index].view(3, 3, 4)).relu().sum((1, 2)) @ m.two,
        one=nn.Linear(3, 4),
        table=parameter(5, 4),
        two=parameter(4, 2),
    )
    # Summed over all pairs, distances that occur equally often may even trade rows: 0 with 4, 1 with 3.
    features = (4, ["one.bias/0", "one.weight/0", "table/1", "two/0"])
    assert axes(found(net, X)) == [(2, ["table/0@0,4"]), (2, ["table/0@1,3"]), features]
    assert not holds(net, claim(2, Site("table", 0, positions=((0,), (2,)))), X)
