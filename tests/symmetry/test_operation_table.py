"""All users of the table of operation properties agree with it; one row introduces a view."""

from __future__ import annotations

import torch
from torch import nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry import rules as _rules  # noqa: F401  (registers them)
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.symmetry.positions import IdBlock, IndexMeaning
from rebasin_cli.symmetry.registry import RULES
from rebasin_cli.symmetry.rules.index_meaning import meaning_after
from rebasin_cli.tracing import operations as table
from rebasin_cli.tracing.capture import called_operations
from rebasin_cli.tracing.graph import SCATTER
from rebasin_cli.tracing.operations import TABLE, has, named
from rebasin_cli.tracing.tracer import trace_model


def test_every_row_has_a_rule() -> None:
    without = {name for name in TABLE if name not in RULES and not has(name, table.DECIDES | table.DECOMPOSED)}
    pointwise = {
        name
        for name in without
        for packet in [getattr(torch.ops.aten, name.removeprefix("aten."))]
        if any(table.is_pointwise(f"{name}.{variant}") for variant in packet.overloads())
    }
    assert without == pointwise


def test_rules_of_one_kind_are_one_rule() -> None:
    for kind, expected in (
        (named(table.RESHAPE), "viewed"),
        (named(table.TRANSPOSE), "transposed"),
        (named(table.EXPAND), "expanded"),
        (named(table.SEGMENT), "segmented"),
        (named(table.VIEW | table.SAME), "same"),
    ):
        assert {RULES[name].__name__ for name in kind} == {expected}
    assert SCATTER in RULES


def test_index_meanings_survive_what_moves_no_number() -> None:
    meaning = IndexMeaning("index", IdBlock(3), object())
    for name in TABLE:
        kept = meaning_after(name, meaning)
        assert (kept is meaning) == has(name, table.WHOLE), name
        assert (kept is not None) == has(name, table.WHOLE | table.SEGMENT), name


class Viewing(nn.Module):
    """Uses a view-like operation between two layers, out of place and in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        torch.ops.aten._reshape_alias(x, [2, 12, 1], [12, 1, 1]).mul_(2.0)
        out: torch.Tensor = self.last(x)
        return out


def test_one_row_is_all_that_a_view_needs(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    example = ExampleInput((torch.randn(2, 5),))
    trace = trace_model(Viewing().eval(), example)
    assert [group.size for group in derive(trace).spec.groups] == [12]
    assert "aten._reshape_alias.default" not in called_operations(trace)
    name = "aten._reshape_alias"
    monkeypatch.delitem(TABLE, name)
    monkeypatch.delitem(RULES, name)  # registered from the row
    trace = trace_model(Viewing().eval(), example)
    assert derive(trace).spec.groups == ()
    assert "aten._reshape_alias.default" in called_operations(trace)
