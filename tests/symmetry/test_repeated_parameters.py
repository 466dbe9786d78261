"""One parameter twice in one operation: execution confirms what is derived, and no symmetry is lost."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.algebra import combine, elementwise, settle_claims, settle_views
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.symmetry.positions import AxisLayout, Leaf, free_layout, permute_dims
from rebasin_cli.symmetry.registry import RULES, Op, hold, rule, temporary_rules
from rebasin_cli.symmetry.relations import Relations
from rebasin_cli.symmetry.solver import solve
from rebasin_cli.tracing.tracer import trace_model
from tests.benchmarks.repeated_parameters import FREE, PINNED, Pattern, named_patterns, outcome, random_patterns

ALL_ALIKE = "6: stem.weight/0 W/0 W/1 head.weight/1"
FOUND = {
    "mm(W, W)": ALL_ALIKE,
    "mm(W.T, W)": "6: stem.weight/0 W/1 head.weight/1 | 6: W/0",
    "W + W.T": ALL_ALIKE,
    "addmm(W, W, W)": ALL_ALIKE,
    "cat(W, W)": "6: stem.weight/0 W/0 | 6: W/1 head.weight/1",
    "stack(W, W.T)": "",
    "v * W * v": "6: stem.weight/0 v/0 W/0 W/1 head.weight/1",
    "softmax(W @ W)": ALL_ALIKE,
    "bmm(W, W)": ALL_ALIKE,
    "W.flip(0) @ W": ALL_ALIKE,
    "W in a view and summed": "6: stem.weight/0 W/0",
    "cdist(W, W)": "6: stem.weight/0 W/0 head.weight/1 | 6: W/1",
    "softmax of a Gram matrix": "6: stem.weight/0 W/0 | 6: W/1 head.weight/1",
    "W.sum(0) + W.sum(1)": ALL_ALIKE,
    "bilinear(W * V)": "6: stem.weight/0 W/0 W/1 V/1 | 6: V/0 head.weight/1",
    "W @ v + v": "6: stem.weight/0 W/0 W/1 v/0 head.weight/1",
    "kron(W, V)": "2: stem.weight/0 W/0 | 3: stem.weight/0 V/0 | 2: W/1 head.weight/1 | 3: V/1 head.weight/1",
}
RANDOM, RANDOM_FREE = 120, 91


@pytest.mark.parametrize("pattern", named_patterns(), ids=lambda pattern: pattern.text)
def test_named_pattern(pattern: Pattern) -> None:
    found = outcome(pattern)
    assert found.kind in (FREE, PINNED), found
    assert found.detail == FOUND[pattern.text]


def test_random_patterns_are_sound_and_most_are_free() -> None:
    found = [outcome(pattern) for pattern in random_patterns(RANDOM)]
    wrong = [one for one in found if one.kind not in (FREE, PINNED)]
    assert not wrong
    assert Counter(one.kind for one in found) == {FREE: RANDOM_FREE, PINNED: RANDOM - RANDOM_FREE}


def test_a_leaf_and_a_layout_cannot_be_changed() -> None:
    leaf = Leaf("W", free_layout((3, 3)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.initial = free_layout((9,))  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        leaf.initial.unresolved = True  # type: ignore[misc]


def test_what_the_first_use_decides_is_what_the_next_one_sees() -> None:
    relations, leaf = Relations(), Leaf("W", free_layout((3, 4)))
    assert relations.layout(leaf).unresolved
    view = relations.view(leaf, (1, 0))
    relations.released(view)
    known = relations.view(leaf, (1, 0))
    assert not known.unresolved
    assert known.shape == (4, 3)
    assert known.entries == view.entries
    assert not relations.claims


def _moving_axes(relations: Relations, leaf: Leaf) -> set[int]:
    """The axes of a leaf along which positions may trade places once everything is closed."""
    settle_views(relations)
    layout = relations.layout(leaf)
    found = [(entry, relations.ids(entry)) for entry in layout.entries]
    closure = solve(relations)
    moving = set()
    for entry, ids in found:
        exchanged: dict[tuple[int, int, int], list[tuple[int, ...]]] = {}
        for place in np.ndindex(ids.shape):
            family = int(closure.family[ids[place]])
            fibre = int(closure.families[family].fibre[closure.unit[ids[place]]])
            if closure.families[family].moves:
                exchanged.setdefault((family, fibre, int(closure.colour[ids[place]])), []).append(place)
        for places in exchanged.values():
            along = [
                factor for factor, at in zip(entry.factors, zip(*places, strict=True), strict=True) if len({*at}) > 1
            ]
            moving |= {axis for axis, dim in enumerate(layout.dims) if {*dim} & {*along}}
    return moving


def test_two_views_taken_before_either_was_used_are_run_together() -> None:
    """The second view knows nothing of the first; what holds one axis of it holds that axis of the parameter."""
    relations, leaf = Relations(), Leaf("W", free_layout((3, 4)))
    early, late = relations.view(leaf, (0, 1)), relations.view(leaf, (0, 1))
    elementwise(relations, [early], (3, 4))
    hold(relations, relations.released(late), [1], "held")
    settle_claims(relations)
    assert _moving_axes(relations, leaf) == {0}


def test_an_axis_held_after_a_view_was_taken_is_held_in_the_view_too() -> None:
    relations, leaf = Relations(), Leaf("W", free_layout((3, 4)))
    view = relations.view(leaf, (0, 1))
    hold(relations, relations.view(leaf, (1, 0)), [1], "held")
    elementwise(relations, [view], (3, 4))
    settle_claims(relations)
    assert _moving_axes(relations, leaf) == {1}


def test_ids_taken_from_a_view_that_never_decided_the_leaf_count() -> None:
    relations, leaf = Relations(), Leaf("W", free_layout((3, 4)))
    view = relations.view(leaf, (0, 1))
    careless = AxisLayout(view.dims, view.entries, view.fixed)
    hold(relations, careless, [0], "held")
    elementwise(relations, [relations.view(leaf, (0, 1))], (3, 4))
    settle_claims(relations)
    assert _moving_axes(relations, leaf) == {1}


@pytest.fixture
def own_rules() -> Iterator[None]:
    with temporary_rules():
        yield


@pytest.mark.usefixtures("own_rules")
@pytest.mark.parametrize("first", [0, 1])
def test_a_rule_that_uses_one_of_two_views_at_a_time_is_sound(first: int) -> None:
    """`W @ W` in two steps, by a rule that reads both arguments before it uses either."""

    @rule("aten.mm")
    def product(op: Op) -> AxisLayout:
        both = op.layout("self"), op.layout("mat2")
        released = [op.relations.released(layout) if place == first else layout for place, layout in enumerate(both)]
        return combine(op.relations, [(released[0], "mk"), (released[1], "kn")], "mn")

    assert RULES["aten.mm"] is product
    for name in ("mm(W, W)", "mm(W.T, W)"):
        found = outcome(next(pattern for pattern in named_patterns() if pattern.text == name))
        assert (found.kind, found.detail) == (FREE, FOUND[name])


def test_rows_and_columns_that_meet_move_alike() -> None:
    relations, leaf = Relations(), Leaf("W", free_layout((5, 5)))
    view = relations.layout(leaf)
    elementwise(relations, [view, permute_dims(view, (1, 0))], (5, 5))
    settle_claims(relations)
    rows, columns = relations.layout(leaf).entries
    closure = solve(relations)
    assert closure.unit[relations.ids(rows)].tolist() == closure.unit[relations.ids(columns)].tolist()
    assert _moving_axes(relations, leaf) == {0, 1}


def test_heads_that_are_multiplied_with_themselves_keep_their_own_units() -> None:
    """Per head, rows and columns of a square matrix move alike; heads trade places."""

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.W = torch.nn.Parameter(torch.randn(3, 4, 4))
            self.into, self.out = (torch.nn.Parameter(torch.randn(3, 5, 4)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            units = torch.bmm(x.expand(3, 2, 5), self.into)
            units = torch.bmm(units, torch.bmm(self.W, self.W))
            return torch.bmm(units, self.out.transpose(1, 2)).sum(0)

    torch.manual_seed(0)
    example = ExampleInput((torch.randn(2, 5),))
    found = derive(trace_model(Heads().eval(), example))
    assert sorted(group.size for group in found.spec.groups) == [3, 4, 4, 4]
