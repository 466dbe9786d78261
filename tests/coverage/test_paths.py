"""What a pass does not show: experts that no token reached, rules that do not cover a use, decisions by numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.symmetry.registry import RULES
from rebasin_cli.tracing.tracer import trace_model
from tests.coverage.modules import MODULES


def found(module: nn.Module, *inputs: Tensor) -> Derivation:
    return derive(trace_model(module, ExampleInput(inputs)))


def test_experts_that_were_not_reached_move_like_those_that_were() -> None:
    build, example = MODULES["experts in a loop, some never hit"]
    torch.manual_seed(0)
    module = build()
    trace = trace_model(module, example)
    derivation = derive(trace)
    assert {call.place.rpartition("/")[2].partition(":")[0] for call in trace.weight_decisions} == {"modules.py"}
    assert sorted(group.size for group in derivation.spec.groups) == [6, 9]
    other = ExampleInput((torch.randn(200, 5, generator=torch.Generator().manual_seed(1)),))
    for seed in range(3):
        assert verify_by_execution(lambda: module, other, derivation.spec, seed).ok


class Router(nn.Module):
    """Experts that are modules: one that is not reached is not read at all."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.first, self.router, self.last = nn.Linear(5, 9), nn.Linear(9, count), nn.Linear(9, 4)
        self.experts = nn.ModuleList(nn.Linear(9, 9) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        chosen = self.router(x).argmax(1)
        mixed = x.clone()
        for number, expert in enumerate(self.experts):
            token = torch.where(chosen == number)[0]
            if token.numel():
                mixed = mixed.index_add(0, token, expert(x[token]))
        out: Tensor = self.last(mixed)
        return out


def test_what_modules_that_were_not_reached_would_read_keeps_its_order() -> None:
    torch.manual_seed(0)
    module = Router(30)
    derivation = found(module, torch.randn(3, 5))
    assert derivation.unread
    other = ExampleInput((torch.randn(300, 5, generator=torch.Generator().manual_seed(1)),))
    for seed in range(3):
        assert verify_by_execution(lambda: module, other, derivation.spec, seed).ok


def test_experts_that_were_all_reached_keep_their_order_and_move_their_units() -> None:
    build, example = MODULES["experts in a loop, all hit"]
    torch.manual_seed(0)
    module = build()
    derivation = derive(trace_model(module, example))
    sizes = sorted(group.size for group in derivation.spec.groups)
    assert sizes == [6, 6, 6, 9]
    assert derivation.unread == ()


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.randn(8, 6))
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x) + self.places[: x.shape[1]]))
        return out


def test_rows_beyond_the_example_are_pinned_and_move_with_their_features() -> None:
    derivation = found(Table(), torch.randn(2, 5, 3))
    assert [group.size for group in derivation.spec.groups] == [6]
    assert derivation.unread == ()
    module = Table()
    assert verify_by_execution(lambda: module, ExampleInput((torch.randn(2, 8, 3),)), derivation.spec, 0).ok


class Decides(nn.Module):
    """Goes by one hidden unit."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        if float(hidden[0, 0]) > 0:
            hidden = -hidden
        out: Tensor = self.last(hidden)
        return out


def test_a_unit_by_which_the_code_decides_keeps_its_place() -> None:
    derivation = found(Decides(), torch.randn(4, 3))
    assert [group.size for group in derivation.spec.groups] == [5]


def test_a_rule_that_fails_pins_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(op: object) -> object:
        raise IndexError("an odd use")

    monkeypatch.setitem(RULES, "aten.relu", broken)
    net = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2))
    derivation = found(net, torch.randn(4, 3))
    assert derivation.spec.groups == ()
    assert "does not cover this use" in derivation.unknown_ops[0].reason
    with pytest.raises(ModelError, match="an odd use"):
        derive(trace_model(net, ExampleInput((torch.randn(4, 3),))), strict=True)


class Gram(nn.Module):
    """One tensor meets itself along two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mixed, self.last = nn.Linear(3, 6), nn.Parameter(torch.randn(6, 6)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        gram = hidden.transpose(1, 2) @ hidden * self.mixed
        out: Tensor = self.last(gram.sum(1))
        return out


def test_rows_and_columns_of_a_gram_matrix_are_two_dimensions() -> None:
    module = Gram()
    derivation = found(module, torch.randn(2, 4, 3))
    assert [group.size for group in derivation.spec.groups] == [6]
    assert {(site.key, site.axis) for site in derivation.spec.groups[0].sites} >= {("mixed", 0), ("mixed", 1)}
    assert verify_by_execution(lambda: module, ExampleInput((torch.randn(2, 4, 3),)), derivation.spec, 0).ok


def test_hidden_states_beside_logits_pin_nothing() -> None:
    class Output(dict[str, Tensor]):
        pass

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Output:
            hidden = self.first(x)
            return Output(logits=self.last(hidden), encoder_last_hidden_state=hidden)

    assert [group.size for group in found(Model(), torch.randn(4, 3)).spec.groups] == [6]
