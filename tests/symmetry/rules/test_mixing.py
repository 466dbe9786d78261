"""Operations that mix positions along an axis join the permutations there; those that only move them do not.

Two layers are stacked along a new axis, so their units move apart; then an operation runs along that axis.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.symmetry.rules.bench import Net, found, parameter

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
Along = Callable[[Tensor], Tensor]


def last(run: Along) -> Along:
    """The operation along the last axis instead of the one before."""
    return lambda h: run(h.transpose(1, 2)).transpose(1, 2)


def sizes(run: Callable[[Net, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> list[int]:
    def whole(m: Net, x: Tensor) -> Tensor:
        mixed = run(m, torch.stack([m.one(x), m.other(x)], 1).tanh())
        return torch.einsum("btf,otf->bo", mixed, m.head)

    probe = Net(run, **parts)
    steps = run(probe, torch.rand(3, 2, 4)).shape[1]
    net = Net(whole, one=nn.Linear(5, 4), other=nn.Linear(5, 4), head=parameter(2, steps, 4), **parts)
    return [group.size for group in found(net, X).spec.groups]


def put(h: Tensor) -> Tensor:
    changed = h.clone()
    changed[:, torch.tensor([1])] = h[:, :1]
    return changed


KEEPING: dict[str, Along] = {
    "nothing": lambda h: h,
    "flip": lambda h: h.flip(1),
    "pick": lambda h: h[:, torch.tensor([1, 0])],
    "norm of all": lambda h: F.layer_norm(h, (2, 4)),
}
MIXING: dict[str, Along] = {
    "average pooling": last(lambda h: F.avg_pool1d(h, 2)),
    "cumulative product": lambda h: h.cumprod(1),
    "cumulative sum": lambda h: h.cumsum(1),
    "difference": lambda h: h.diff(dim=1),
    "gather": lambda h: h.gather(1, torch.ones(3, 1, 4, dtype=torch.long)),
    "index_add": lambda h: torch.zeros_like(h).index_add(1, torch.tensor([1, 1]), h),
    "linear interpolation": last(lambda h: F.interpolate(h, scale_factor=2, mode="linear")),
    "logcumsumexp": lambda h: h.logcumsumexp(1),
    "max pooling": last(lambda h: F.max_pool1d(h, 2)),
    "median": lambda h: h - h.median(1, keepdim=True)[0],
    "nearest neighbour": last(lambda h: F.interpolate(h, scale_factor=2)),
    "patches": last(lambda h: F.unfold(h.unsqueeze(-1), (2, 1)).unflatten(1, (4, 2)).sum(2)),
    "reflection": last(lambda h: F.pad(h, (1, 1), mode="reflect")),
    "scatter_add": lambda h: torch.zeros_like(h).scatter_add(1, torch.tensor([[[1] * 4, [0] * 4]] * 3), h),
    "softmax": lambda h: h.softmax(1),
    "sort": lambda h: h.sort(1)[0],
    "sum": lambda h: h + h.sum(1, keepdim=True),
    "topk": lambda h: h.topk(1, 1)[0],
    "transform": lambda h: torch.fft.fft(h, dim=1).real,
    "windows": lambda h: h.unfold(1, 2, 1).sum(-1),
}


@pytest.mark.parametrize("name", KEEPING)
def test_positions_that_stay_apart_keep_their_units_apart(name: str) -> None:
    assert sizes(lambda m, h: KEEPING[name](h)) == [4, 4]


@pytest.mark.parametrize("name", MIXING)
def test_positions_that_are_mixed_tie_their_units(name: str) -> None:
    assert sizes(lambda m, h: MIXING[name](h)) == [4]


def test_a_depthwise_convolution_ties_them() -> None:
    layer = nn.Conv1d(4, 4, 2, groups=4)
    assert sizes(lambda m, h: m.deep(h.transpose(1, 2)).transpose(1, 2), deep=layer) == [4]


def test_what_is_written_somewhere_holds_both() -> None:
    """Rows written by number: nothing is claimed that does not hold; more could be said."""
    assert sizes(lambda m, h: put(h)) == []
