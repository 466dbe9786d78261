"""The test of a common base: it keeps its level on strangers, also aligned ones, and finds what was changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebasin_cli.matching.common_base import HalfOf, units_in_order, units_matched
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import Permuted, random
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

SPEC = PermutationSpec(
    (
        AxisGroup("first", 24, (Site("0.weight", 0), Site("1.weight", 1))),
        AxisGroup("second", 24, (Site("1.weight", 0), Site("2.weight", 1))),
        AxisGroup("third", 24, (Site("2.weight", 0), Site("3.weight", 1))),
    )
)
SHAPES = {"0.weight": (24, 9), "1.weight": (24, 24), "2.weight": (24, 24), "3.weight": (4, 24)}
KEYS = tuple(SHAPES)


def network(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def changed(tensors: dict[str, Tensor], seed: int, by: float) -> dict[str, Tensor]:
    other = network(seed)
    return {key: tensor + by * other[key] for key, tensor in tensors.items()}


def permuted(tensors: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    return dict(Permuted(tensors, SPEC, random(SPEC, seed)))


def test_half_of_the_entries_are_held_out_and_the_rest_is_kept() -> None:
    a = network(0)
    half = HalfOf(a, KEYS, 3)
    out = half.held_out("1.weight", (24, 24))
    assert 0.4 < out.float().mean() < 0.6
    assert torch.equal(half["1.weight"][~out], a["1.weight"][~out])
    assert not half["1.weight"][out].any()
    assert torch.equal(HalfOf(a, (), 3)["1.weight"], a["1.weight"])


def test_a_kernel_of_a_convolution_is_held_out_as_a_whole() -> None:
    out = HalfOf({}, (), 0).held_out("conv.weight", (8, 6, 3, 3)).flatten(2).float().mean(2)
    assert set(out.unique().tolist()) == {0.0, 1.0}


def test_changed_weights_are_found_in_order_and_permuted() -> None:
    a = network(0)
    b = changed(a, 1, 0.3)  # a correlation of 1 / sqrt(1 + 0.09) = 0.958
    found = units_in_order(SPEC, a, b, parameters=KEYS)
    assert found is not None
    assert found.interior
    assert found.units == 48
    assert found.correlation == pytest.approx(0.958, abs=0.02)
    assert found.p_value < 1e-6
    hidden = permuted(b, 7)
    in_order = units_in_order(SPEC, a, hidden, parameters=KEYS)
    assert in_order is not None
    assert abs(in_order.correlation) < 0.1
    assert in_order.p_value > 0.99
    matched = units_matched(SPEC, a, hidden, parameters=KEYS)
    assert matched is not None
    assert matched.held_out
    assert matched.correlation == pytest.approx(0.93, abs=0.03)
    assert matched.p_value < 5e-4


def test_an_alignment_of_strangers_does_not_make_a_common_base() -> None:
    """The alignment itself correlates the units; a new search and the half that it does not see tell them apart."""
    a, b = network(0), network(1)
    aligned = dict(Permuted(b, SPEC, search(SPEC, a, b, parameters=KEYS).permutations))
    in_order = units_in_order(SPEC, a, aligned, parameters=KEYS)
    matched = units_matched(SPEC, a, aligned, parameters=KEYS)
    assert in_order is not None
    assert matched is not None
    assert in_order.p_order < 1e-3 < 0.99 < in_order.p_value
    assert in_order.correlation > 0.2
    assert abs(matched.correlation) < 0.1
    assert matched.p_value > 0.99
    assert matched.p_below < 1e-6


def test_the_p_value_of_the_order_keeps_its_level_on_strangers() -> None:
    found = [units_in_order(SPEC, network(2 * n), network(2 * n + 1), parameters=KEYS, seed=n) for n in range(60)]
    values = torch.tensor([one.p_order for one in found if one is not None])
    assert len(values) == 60
    assert (values <= 0.05).float().mean() <= 0.15  # 0.05 expected; 10 of 60 or more have a probability of 0.1 %
    assert 0.3 < values.mean() < 0.7


def test_the_p_value_at_the_limit_keeps_its_level() -> None:
    """Units that correlate by exactly the limit are the strongest strangers that there may be."""
    values = []
    for n in range(60):
        a = network(2 * n)
        b = changed(a, 2 * n + 1, 0.75)  # a correlation of 1 / sqrt(1 + 0.5625) = 0.8
        found = units_in_order(SPEC, a, b, parameters=KEYS, seed=n)
        assert found is not None
        values.append(found.p_value)
    assert sum(value <= 0.05 for value in values) <= 9
    assert 0.3 < sum(values) / 60 < 0.7


def test_networks_without_weights_between_hidden_layers_are_held_to_a_higher_limit() -> None:
    spec = PermutationSpec((AxisGroup("hidden", 24, (Site("0.weight", 0), Site("3.weight", 1))),))
    a = network(0)
    found = units_in_order(spec, a, changed(a, 1, 0.2), parameters=KEYS)
    assert found is not None
    assert not found.interior
    assert found.limit == 0.9
    assert found.p_value < 0.01


def test_groups_of_few_units_are_not_tested() -> None:
    spec = PermutationSpec((AxisGroup("few", 3, (Site("w", 0),)),))
    a = {"w": torch.randn(3, 50)}
    assert units_in_order(spec, a, a, parameters=("w",)) is None
