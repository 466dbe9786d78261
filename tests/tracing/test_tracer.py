"""The record of one forward pass: what it contains, and that the model is left unchanged."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import ModelError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.weightless import without_weights
from rebasin_cli.tracing.graph import SCATTER, Trace
from rebasin_cli.tracing.tracer import trace_model

X = ExampleInput((torch.ones(2, 3),))


class Wired(nn.Module):
    """Layers under names, wired by a function."""

    def __init__(self, run: Any, **parts: nn.Module) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def traced(run: Any, **parts: nn.Module) -> Trace:
    return trace_model(Wired(run, **parts), X)


def test_values_calls_and_state_are_data() -> None:
    trace = traced(lambda m, x: m.two(torch.relu(m.one(x))), one=nn.Linear(3, 4), two=nn.Linear(4, 2))
    assert trace.op_counts == {"aten.addmm.default": 2, "aten.relu.default": 1, "aten.t.default": 2}
    assert list(trace.state) == ["one.weight", "one.bias", "two.weight", "two.bias"]
    assert trace.trainable == set(trace.state)
    assert [trace.values[value].shape for value in trace.outputs] == [(2, 2)]
    asked = [call.scope for call in trace.calls if call.name.startswith("aten.")]
    assert asked == ["one", "one", "", "two", "two"]
    assert trace.weightless


def test_weights_need_not_exist() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(3, 10**5), nn.Linear(10**5, 10**5, bias=False))
    trace = trace_model(module, X)
    assert trace.weightless
    assert all(parameter.is_meta for parameter in module.parameters())
    assert trace.values[trace.outputs[0]].shape == (2, 10**5)


def test_the_model_is_left_as_it_was() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.cache: dict[int, Tensor] = {}
            self.mask: Tensor | None = None
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.cache[x.shape[0]] = self.layer(x)
            self.mask = torch.ones(3) * self.layer.weight
            self.count += 1
            self.fresh = x
            out: Tensor = self.layer(x) @ self.mask
            return out

    module = Caching().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    weight = module.layer.weight
    trace_model(module, X)
    assert module.cache == {}
    assert module.mask is None
    assert not hasattr(module, "fresh")
    assert module.training
    assert module.layer.weight is weight
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not module._forward_hooks
    assert not module._forward_pre_hooks


def test_it_is_left_as_it_was_after_a_failure_too() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(5, 2))
    weight = module[0].weight
    with pytest.raises(ModelError, match=r"failed in module '1'"):
        trace_model(module, X)
    assert module[0].weight is weight
    assert not module[0]._forward_hooks


def test_a_failure_is_told_once(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ModelError, match="failed"):
        trace_model(Wired(lambda m, x: m.one(x) * torch.ones(7), one=nn.Linear(3, 4)), X)
    assert capfd.readouterr().err == ""


def test_shared_tensors_are_one_value() -> None:
    parts = {"one": nn.Linear(3, 3), "two": nn.Linear(3, 3)}
    parts["two"].weight = parts["one"].weight
    trace = traced(lambda m, x: m.two(m.one(x)), **parts)
    assert trace.state["one.weight"] == trace.state["two.weight"]
    assert trace.aliases["two.weight"] == "one.weight"


def test_in_place_changes_make_new_values() -> None:
    def run(m: Wired, x: Tensor) -> Tensor:
        hidden = m.one(x)
        hidden[:, :1] += 1
        return hidden * 2

    trace = traced(run, one=nn.Linear(3, 4))
    names = [call.name for call in trace.calls]
    assert SCATTER in names
    written = next(call for call in trace.calls if call.name == SCATTER and call.arguments["view"] == "aten.slice")
    doubled = next(call for call in trace.calls if call.name == "aten.mul")
    assert all(len(call.results) == len(set(call.results)) for call in trace.calls)
    assert len({result for call in trace.calls for result in call.results}) == sum(len(c.results) for c in trace.calls)
    assert written.results[0] is not None
    assert any(written.results[0] == value or value > written.results[0] for value in doubled.inputs)


def test_an_assignment_to_data_is_seen() -> None:
    """No operation runs when `.data` is assigned, so the object stands for other numbers unnoticed."""

    def run(m: Any, x: Tensor) -> Tensor:
        hidden = m.one(x)
        hidden.data = m.mid(torch.relu(hidden)).data
        out: Tensor = m.two(hidden)
        return out

    trace = traced(run, one=nn.Linear(3, 4), mid=nn.Linear(4, 4), two=nn.Linear(4, 2))
    made = {call.results[0]: call for call in trace.calls if call.results}
    _, mid, last = (call for call in trace.calls if call.name == "aten.addmm")
    assert made[last.arguments["mat1"].value].inputs == [mid.results[0]]


def test_what_is_viewed_after_a_write_is_no_constant() -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        cache = torch.zeros(2, 2, 4)
        cache[:, 0] = m.one(x)
        return cache.view(4, 4)

    trace = traced(run, one=nn.Linear(3, 4))
    assert not set(trace.outputs) & set(trace.constants)
    assert any(call.name == "aten.addmm" for call in trace.live)


@pytest.mark.parametrize("compiled", [torch.jit.script, lambda m: torch.jit.trace(m, X.args[0])])
def test_torchscript_is_refused_by_name(compiled: Any) -> None:
    with pytest.raises(ModelError, match=r"^part is a TorchScript module"):
        traced(lambda m, x: m.part(x), part=compiled(nn.Linear(3, 4)))


def test_constants_keep_their_numbers_from_before_a_change() -> None:
    def run(m: Wired, x: Tensor) -> Tensor:
        ramp = torch.arange(4.0)
        early = m.one(x) * ramp
        ramp.zero_()
        return early + m.one(x) * ramp

    trace = traced(run, one=nn.Linear(3, 4))
    used = [trace.constants[v] for c in trace.calls if c.name == "aten.mul" for v in c.inputs if v in trace.constants]
    assert [numbers.tolist() for numbers in used] == [[0.0, 1.0, 2.0, 3.0], [0.0] * 4]


def test_calls_that_no_output_needs_are_not_live() -> None:
    def run(m: Wired, x: Tensor) -> Tensor:
        m.two(m.one(x))
        out: Tensor = m.one(x)
        return out

    trace = traced(run, one=nn.Linear(3, 3), two=nn.Linear(3, 3))
    assert [call.scope for call in trace.live] == ["one", "one"]


def test_modules_are_counted_and_paths_are_maximal_chains() -> None:
    def run(m: Wired, x: Tensor) -> Tensor:
        x = m.act(m.first(x))
        x = x + m.down(m.act(m.up(x)))
        out: Tensor = m.last(x)
        return out

    trace = traced(
        run,
        first=nn.Linear(3, 4), act=nn.ReLU(), up=nn.Linear(4, 5), down=nn.Linear(5, 4), last=nn.Linear(4, 2),
    )  # fmt: skip
    assert {module.name: module.calls for module in trace.modules if module.name} == {
        "first": 1, "act": 2, "up": 1, "down": 1, "last": 1,
    }  # fmt: skip
    assert trace.paths == (("first", "act"), ("up", "act", "down"), ("last",))


def test_randomness_in_the_pass_changes_nothing() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 2)).train()
    first, again = trace_model(module, X), trace_model(module, X)
    assert first.op_counts == again.op_counts
    assert first.values == again.values


def test_outputs_in_objects_are_found() -> None:
    def run(m: Wired, x: Tensor) -> dict[str, Any]:
        return {"logits": m.one(x), "states": (m.two(x), [m.one(x)])}

    assert len(traced(run, one=nn.Linear(3, 4), two=nn.Linear(3, 2)).outputs) == 3


def test_a_pass_that_needs_numbers_gets_real_weights_or_says_so() -> None:
    def run(m: Wired, x: Tensor) -> Tensor:
        out: Tensor = m.one(x)
        return out if bool(out.sum() > -1e9) else x

    module = Wired(run, one=nn.Linear(3, 4))
    assert not trace_model(module, X).weightless
    with pytest.raises(ModelError, match="depends on the values of its weights"):
        trace_model(without_weights(Wired(run, one=nn.Linear(3, 4))), X)
    built = trace_model(without_weights(Wired(run, one=nn.Linear(3, 4))), X, with_numbers=lambda: module)
    assert not built.weightless
