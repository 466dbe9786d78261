"""Groups that break the verification are found and given up; the others stay."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from rebasin_cli import align, trace
from rebasin_cli.errors import NumericalError
from rebasin_cli.execution.narrowing import MOST_CHECKS, TooManyChecks, breaking_groups, without_groups
from rebasin_cli.spec import AxisGroup, ParentBlock, PermutationSpec, Site
from rebasin_cli.symmetry.algebra import elementwise
from rebasin_cli.symmetry.positions import AxisLayout
from rebasin_cli.symmetry.registry import RULES, Op

NET = """
import torch
from torch import nn


@torch.library.custom_op("narrowing::reversed", mutates_args=())
def reversed_(x: torch.Tensor) -> torch.Tensor:
    return x.flip(-1).clone()


@reversed_.register_fake
def _(x):
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self, width=6):
        super().__init__()
        self.a, self.b = nn.Linear(5, width), nn.Linear(width, width)
        self.c, self.d = nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.d(self.c(reversed_(self.b(self.a(x).relu())).relu()).relu())


class AtOneSize(nn.Module):
    # Height and width are exchanged, which leaves the channels alone where both are equal to their number only.
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.b(self.a(x).relu()).relu()
        return self.c(y.flatten(2).transpose(1, 2).reshape(y.shape))
"""


def wrong_rule(op: Op) -> AxisLayout:
    return elementwise(op.relations, [op.layout("x")], op.result_shape)


def groups(count: int) -> PermutationSpec:
    return PermutationSpec(tuple(AxisGroup(f"g{i}", 3, (Site(f"w{i}", 0),)) for i in range(count)))


@pytest.mark.parametrize("wrong", [{"g0"}, {"g6"}, {"g2", "g3"}, {"g0", "g4", "g6"}])
def test_the_groups_that_break_the_check_are_found_and_no_others(wrong: Collection[str]) -> None:
    asked = []

    def holds(part: PermutationSpec) -> bool:
        asked.append(part)
        return not {group.name for group in part.groups} & set(wrong)

    assert set(breaking_groups(groups(7), holds)) == set(wrong)
    assert len(asked) <= 2 * 3 * len(wrong)


def test_two_groups_that_break_the_check_only_together_lose_one() -> None:
    found = breaking_groups(groups(8), lambda part: not {"g1", "g5"} <= {group.name for group in part.groups})
    assert found == ("g5",)


def test_a_spec_without_a_right_group_is_given_up_after_a_bounded_number_of_checks() -> None:
    asked = []

    def holds(part: PermutationSpec) -> bool:
        asked.append(part)
        return False

    with pytest.raises(TooManyChecks):
        breaking_groups(groups(1000), holds)
    assert len(asked) == MOST_CHECKS


def test_what_lay_in_the_blocks_of_a_group_given_up_lies_one_level_up() -> None:
    heads = AxisGroup("heads", 2, (Site("w", 0, inner=3),))
    inside = AxisGroup("inside", 3, (Site("w", 0, offset=3),), ParentBlock("heads", 1))
    found = without_groups(PermutationSpec((heads, inside)), {"heads"}, "why")
    assert [(group.name, group.parent) for group in found.groups] == [("inside", None)]
    assert found.pinned == ()
    both = without_groups(PermutationSpec((heads, inside)), {"heads", "inside"}, "why")
    assert [(pin.key, pin.axis, pin.reason) for pin in both.pinned] == [("w", 0, "why")]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NET)
    monkeypatch.setitem(RULES, "narrowing.reversed", wrong_rule)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def test_a_wrong_rule_costs_its_group_and_not_the_model(place: Path) -> None:
    result = trace("nets.py:Net", inputs=("2,5",))
    assert [group.name for group in result.spec.groups] == ["a", "c"]
    assert {pin.reason for pin in result.spec.pinned if pin.key == "b.bias"} == {"the verification of its group failed"}
    assert any("1 group did not stand the verification" in text and "'b'" in text for text in result.warnings)
    with pytest.raises(NumericalError, match="permuting the groups changes the function"):
        trace("nets.py:Net", inputs=("2,5",), strict=True)


def test_an_alignment_goes_on_without_the_group_of_a_wrong_rule(place: Path) -> None:
    for letter, seed in (("a", 0), ("b", 1)):
        torch.manual_seed(seed)
        weights = {"a": (6, 5), "b": (6, 6), "c": (6, 6), "d": (3, 6)}
        state = {f"{name}.weight": torch.randn(shape) for name, shape in weights.items()}
        torch.save({**state, **{f"{name}.bias": torch.randn(weights[name][0]) for name in weights}}, f"{letter}.pt")
    result = align("a.pt", "b.pt", model="nets.py:Net", inputs=("2,5",), effort="fast")
    assert [group.name for group in result.groups] == ["a", "c"]
    assert result.verified.same is True
    assert any("did not stand the verification" in text for text in result.warnings)


def test_a_group_that_holds_at_the_traced_size_only_is_given_up(place: Path) -> None:
    result = trace("nets.py:AtOneSize", inputs=("1,3,2,2",))
    assert "a" in {group.name for group in result.spec.groups}
    assert result.verified is not None
    assert len(result.verified.sizes) == 2
    larger = trace("nets.py:AtOneSize", inputs=("1,3,4,4",))
    assert {group.name for group in result.spec.groups} == {group.name for group in larger.spec.groups}
