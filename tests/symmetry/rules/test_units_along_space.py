"""Units that lie along a spatial axis: kernels of extent one, or of full extent, treat them as units."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.symmetry.rules.bench import Net, axes, every_site_is_needed, found

X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
UNITS = ["one.bias/0", "one.weight/0"]

UNTOUCHED: dict[str, Callable[[Tensor], Tensor]] = {
    "largest over time": lambda h: F.max_pool2d(h, (2, 1)),
    "largest over time, one at a time": lambda h: F.max_pool2d(h, (2, 1), stride=1),
    "mean over time": lambda h: F.avg_pool2d(h, (2, 1)),
    "mean of what there is": lambda h: F.adaptive_avg_pool2d(h, (2, h.shape[3])),
    "nearest in time": lambda h: F.interpolate(h, size=(8, 6), mode="nearest"),
    "linear in time": lambda h: F.interpolate(h, size=(7, 6), mode="bilinear"),
    "padded in time": lambda h: F.pad(h, (0, 0, 1, 1), mode="replicate"),
    "reflected in time": lambda h: F.pad(h, (0, 0, 1, 1), mode="reflect"),
}
TOUCHED: dict[str, Callable[[Tensor], Tensor]] = {
    "largest of neighbours": lambda h: F.max_pool2d(h, (1, 3), stride=1, padding=(0, 1)),
    "every second": lambda h: F.avg_pool2d(h, (1, 1), stride=(1, 2)).repeat(1, 1, 1, 2),
    "padded": lambda h: F.pad(h, (1, 1, 0, 0), mode="replicate")[..., :6],
    "scaled a little": lambda h: F.interpolate(
        h, scale_factor=(1.0, 1.1), mode="bilinear", recompute_scale_factor=False
    ),
}


def over_time(run: Callable[[Tensor], Tensor]) -> Net:
    return Net(lambda m, x: m.two(run(m.one(x)[:, None])[:, 0]), one=nn.Linear(5, 6), two=nn.Linear(6, 2))


@pytest.mark.parametrize("name", UNTOUCHED)
def test_units_pass_where_windows_and_sizes_change_along_time_only(name: str) -> None:
    net = over_time(UNTOUCHED[name])
    derivation = found(net, X)
    assert axes(derivation) == [(6, [*UNITS, "two.weight/1"])]
    assert every_site_is_needed(net, derivation, X)


@pytest.mark.parametrize("name", TOUCHED)
def test_units_keep_their_order_where_neighbours_are_mixed(name: str) -> None:
    derivation = found(over_time(TOUCHED[name]), X)
    assert not [site for group in derivation.spec.groups for site in group.sites if site.key.startswith("one.")]


def test_indices_of_the_largest_that_are_read_keep_all_in_order() -> None:
    def run(h: Tensor) -> Tensor:
        largest, places = F.max_pool2d(h, (2, 1), return_indices=True)
        return largest + places

    assert axes(found(over_time(run), X)) == []


def test_a_kernel_of_one_unit_mixes_times_and_leaves_units_apart() -> None:
    net = Net(
        lambda m, x: m.two(m.mix(m.one(x)[:, None]).permute(0, 2, 1, 3).flatten(2)),
        one=nn.Linear(5, 6),
        mix=nn.Conv2d(1, 3, (3, 1), padding=(1, 0)),
        two=nn.Linear(18, 2),
    )
    derivation = found(net, X)
    assert [size for size, _ in axes(derivation)] == [3, 6]
    assert every_site_is_needed(net, derivation, X)


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_kernel_that_spans_all_units_is_a_sum_over_them(dilation: int) -> None:
    net = Net(
        lambda m, x: m.two(m.spans(m.one(x)[:, None]).relu().amax(2)[..., 0]),
        one=nn.Linear(5, 6),
        spans=nn.Conv2d(1, 3, (2, 6), dilation=(dilation, 1)),
        two=nn.Linear(3, 2),
    )
    derivation = found(net, X)
    assert axes(derivation) == [
        (3, ["spans.bias/0", "spans.weight/0", "two.weight/1"]),
        (6, [*UNITS, "spans.weight/3"]),
    ]
    assert every_site_is_needed(net, derivation, X)


@pytest.mark.parametrize(
    "spans", [nn.Conv2d(1, 3, (2, 6), padding=(0, 1)), nn.Conv2d(1, 3, (2, 5)), nn.ConvTranspose2d(1, 3, (2, 6))]
)
def test_a_kernel_that_slides_over_units_keeps_them_in_order(spans: nn.Module) -> None:
    net = Net(lambda m, x: m.spans(m.one(x)[:, None]).sum((2, 3)), one=nn.Linear(5, 6), spans=spans)
    assert axes(found(net, X)) == []


def test_a_grouped_kernel_that_spans_a_picture_leaves_space_in_order() -> None:
    net = Net(
        lambda m, x: m.two(m.spans(m.one(x)).flatten(1)),
        one=nn.Conv2d(3, 6, 3, padding=1),
        spans=nn.Conv2d(6, 6, 4, groups=6),
        two=nn.Linear(6, 2),
    )
    x = torch.randn(2, 3, 4, 4)
    places = ["one.bias/0", "one.weight/0", "spans.bias/0", "spans.weight/0", "two.weight/1"]
    assert axes(found(net, x)) == [(6, places)]
