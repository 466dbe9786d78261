"""What must not be claimed: unknown operations, dead code, outputs, constants, tokens that no expert saw."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.symmetry.rules.bench import Net, axes, found, parameter, reason

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def layers(run: object, width: int = 6) -> Net:
    return Net(run, one=nn.Linear(3, width), mid=nn.Linear(width, width), two=nn.Linear(width, 2))  # type: ignore[arg-type]


def uncovered(h: Tensor) -> Tensor:
    """An operation that no rule covers."""
    return torch.segment_reduce(h, "sum", lengths=torch.ones(len(h), dtype=torch.int64), axis=0)


def test_an_operation_without_a_rule_pins_and_is_named() -> None:
    net = layers(lambda m, x: m.two(m.mid(uncovered(m.one(x)))))
    derivation = found(net, X)
    assert axes(derivation) == [(6, ["mid.bias/0", "mid.weight/0", "two.weight/1"])]
    assert [op.op for op in derivation.unknown_ops] == ["aten.segment_reduce.default"]
    assert derivation.unknown_ops[0].pinned_axes >= 1
    assert "no rule for aten.segment_reduce" in reason(derivation, "one.weight", 0)


def test_strict_refuses_and_says_where() -> None:
    inner = Net(lambda m, x: uncovered(x))
    net = Net(lambda m, x: m.inner(m.one(x)), one=nn.Linear(3, 6), inner=inner)
    trace = trace_model(net, ExampleInput((X,)))
    with pytest.raises(ModelError, match=r"segment_reduce.*'inner'"):
        derive(trace, strict=True)


def test_dead_code_does_not_constrain() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        hidden = m.one(x)
        uncovered(hidden)
        _ = hidden[:, :2].cumsum(1)
        width = hidden[:, 1:].shape[1]
        return m.two(hidden) * width

    net = Net(run, one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    derivation = found(net, X)
    assert axes(derivation) == [(6, ["one.bias/0", "one.weight/0", "two.weight/1"])]
    assert derivation.unknown_ops == ()


def test_what_the_model_returns_keeps_its_order() -> None:
    net = Net(lambda m, x: {"hidden": (h := m.one(x)), "out": [m.two(h)]}, one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    derivation = found(net, X)
    assert axes(derivation) == []
    assert reason(derivation, "one.weight", 0) == "model output"
    assert reason(derivation, "one.weight", 1) == "model input"


def test_constants_that_are_alike_everywhere_do_not_pin() -> None:
    net = layers(lambda m, x: m.two(m.one(x) * torch.ones(6) + torch.zeros(4, 6)))
    assert (6, ["one.bias/0", "one.weight/0", "two.weight/1"]) in axes(found(net, X))


def test_constants_that_differ_pin_along_the_axis_on_which_they_differ() -> None:
    scale = torch.arange(6.0)
    net = Net(lambda m, x: m.two(m.one(x) * scale), one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    derivation = found(net, X)
    assert axes(derivation) == []
    assert reason(derivation, "one.weight", 0) == "a constant varies along this axis"
    halves = torch.tensor([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    net = Net(lambda m, x: m.two(m.one(x) * halves), one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    assert all(size <= 3 for size, _ in axes(found(net, X)))


def test_numbers_drawn_in_the_pass_pin() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        torch.manual_seed(0)
        return m.two(m.one(x) + torch.randn(6))

    assert axes(found(Net(run, one=nn.Linear(3, 6), two=nn.Linear(6, 2)), X)) == []


def test_zeros_that_are_written_to_later_are_not_alike() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        ramp = torch.zeros(6)
        ramp[2:].add_(1.0)
        return m.two(m.one(x) * ramp)

    groups = axes(found(Net(run, one=nn.Linear(3, 6), two=nn.Linear(6, 2)), X))
    assert all(size <= 4 for size, _ in groups)


def test_what_is_never_read_is_pinned() -> None:
    net = Net(lambda m, x: m.two(m.one(x)), one=nn.Linear(3, 6), two=nn.Linear(6, 2), other=nn.Linear(6, 6))
    derivation = found(net, X)
    assert reason(derivation, "other.weight", 0) == "not read in this forward pass"


def test_layers_that_saw_no_rows_are_understood_all_the_same() -> None:
    """An expert that ran on no token says how its units lie: another input may bring it tokens."""

    def run(m: Net, x: Tensor) -> Tensor:
        first = m.one(x)
        none = first[x[:, 0] > 1e9]
        first.index_add_(0, torch.zeros(0, dtype=torch.int64), m.far(torch.relu(m.near(none))))
        return m.two(first)

    parts = {"one": (3, 6), "two": (6, 2), "near": (6, 5), "far": (5, 6)}
    net = Net(run, **{name: nn.Linear(*shape) for name, shape in parts.items()})
    assert sorted(axes(found(net, X))) == [
        (5, ["far.weight/1", "near.bias/0", "near.weight/0"]),
        (6, ["far.bias/0", "far.weight/0", "near.weight/1", "one.bias/0", "one.weight/0", "two.weight/1"]),
    ]


def test_pins_by_request() -> None:
    net = Net(lambda m, x: m.two(m.one(x)), one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    derivation = derive(trace_model(net, ExampleInput((X,))), pins=("one.*",))
    assert derivation.spec.groups == ()
    assert reason(derivation, "one.weight", 0) == "pinned by request"


def test_every_axis_is_in_a_group_or_pinned() -> None:
    net = Net(lambda m, x: m.two(m.one(x) * m.scale), one=nn.Linear(3, 6), scale=parameter(1, 6), two=nn.Linear(6, 2))
    derivation = found(net, X)
    told = {(site.key, site.axis) for group in derivation.spec.groups for site in group.sites}
    told |= {(pin.key, pin.axis) for pin in derivation.spec.pinned}
    wide = {(key, axis) for key, value in net.state_dict().items() for axis, size in enumerate(value.shape) if size > 1}
    assert told == wide


def test_branches_on_numbers_fall_back_to_a_real_run() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.two(m.one(x)) if float(m.one(x).sum()) > -1e9 else x[:, :2]

    trace = trace_model(Net(run, one=nn.Linear(3, 6), two=nn.Linear(6, 2)), ExampleInput((X,)))
    assert not trace.weightless
    assert len(derive(trace).spec.groups) == 1


def test_an_index_that_is_drawn_in_the_pass_pins() -> None:
    net = Net(lambda m, x: m.two(m.one(x)[:, torch.randperm(6)]), one=nn.Linear(3, 6), two=nn.Linear(6, 2))
    assert axes(found(net, X)) == []
