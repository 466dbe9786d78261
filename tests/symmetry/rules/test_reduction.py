"""Reductions: extremes, sums and rankings; returned indices pin an axis only if they are read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.spec import Site
from tests.symmetry.rules.bench import Net, axes, claim, every_site_is_needed, found, holds

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
UNITS = ["one.bias/0", "one.weight/0"]


def gated(run: object) -> Net:
    """`run` makes of the hidden units one number for every sample, which scales them."""
    return Net(
        lambda m, x: m.two(torch.tanh(h := m.one(x)) * run(h)),  # type: ignore[operator]
        one=nn.Linear(3, 6),
        two=nn.Linear(6, 2),
    )


@pytest.mark.parametrize(
    "run",
    [
        lambda h: h.sum(1, keepdim=True),
        lambda h: h.std(1, keepdim=True),
        lambda h: h.amax(1, keepdim=True),
        lambda h: h.max(1, keepdim=True).values,
        lambda h: h.median(1, keepdim=True).values,
        lambda h: h.topk(2, 1).values.diff(),
        lambda h: h.sort(1).values[:, :1],
        lambda h: h.norm(dim=1, keepdim=True),
        lambda h: h.logsumexp(1, keepdim=True),
        lambda h: torch.complex(h, h).abs().prod(1, keepdim=True),
    ],
)
def test_one_number_for_all_units_lets_them_move(run: object) -> None:
    net = gated(run)
    derivation = found(net, X)
    assert axes(derivation) == [(6, [*UNITS, "two.weight/1"])]
    assert every_site_is_needed(net, derivation, X)


@pytest.mark.parametrize(
    "run",
    [
        lambda h: h.argmax(1, keepdim=True),
        lambda h: h.max(1, keepdim=True).indices,
        lambda h: h.topk(2, 1).indices[:, :1] + h.topk(2, 1).values[:, :1],
        lambda h: h.argsort(1)[:, :1],
    ],
)
def test_positions_that_are_read_pin(run: object) -> None:
    net = gated(run)
    assert axes(found(net, X)) == []
    assert not holds(net, claim(6, Site("one.weight", 0), Site("one.bias", 0), Site("two.weight", 1)), X)


def test_channels_pooled_into_a_map_still_move() -> None:
    """Attention over places: the largest and the mean over channels make a map that scales them."""

    def run(m: Net, x: Tensor) -> Tensor:
        maps = m.one(x)
        seen = torch.cat([maps.mean(1, keepdim=True), torch.max(maps, dim=1, keepdim=True)[0]], dim=1)
        return m.two(maps * torch.sigmoid(m.look(seen)))

    net = Net(run, one=nn.Conv2d(3, 6, 1), look=nn.Conv2d(2, 1, 3, padding=1), two=nn.Conv2d(6, 2, 1))
    assert axes(found(net, torch.randn(1, 3, 5, 5))) == [(6, [*UNITS, "two.weight/1"])]
