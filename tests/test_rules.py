"""The public module for rule authors: the example in its docstring runs, is sound, and frees what it says."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli import rules
from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.symmetry.user_rules import user_rules
from rebasin_cli.tracing.tracer import trace_model


@torch.library.custom_op("mylib::gated", mutates_args=())
def gated(x: Tensor, gate: Tensor, window: int) -> Tensor:
    out: Tensor = (x * gate).unfold(1, window, window).mean(-1)
    return out.contiguous()


@gated.register_fake
def _(x: Tensor, gate: Tensor, window: int) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] // window, x.shape[2])


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 12), nn.Linear(12, 3)
        self.gate = nn.Parameter(torch.randn(12))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(gated(self.first(x), self.gate, 2))
        return out


def build() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


EXAMPLE = ExampleInput((torch.randn(2, 6, 5),))


def documented() -> str:
    """The example in the module's docstring."""
    assert rules.__doc__ is not None
    lines = rules.__doc__.splitlines()
    first = next(place for place, line in enumerate(lines) if line.startswith("    from rebasin_cli.rules"))
    return textwrap.dedent("\n".join(lines[first:]))


def test_the_documented_example_frees_the_features(tmp_path: Path) -> None:
    trace = trace_model(build(), EXAMPLE)
    assert derive(trace).spec.groups == ()
    file = tmp_path / "mine.py"
    file.write_text(documented())
    with user_rules([file]) as found:
        derivation = derive(trace)
    assert found.unused == ()
    assert [group.size for group in derivation.spec.groups] == [12]
    assert {site.key for site in derivation.spec.groups[0].sites} == {
        "first.weight", "first.bias", "gate", "last.weight"
    }  # fmt: skip
    assert verify_by_execution(build, EXAMPLE, derivation.spec).ok


@pytest.mark.parametrize("name", rules.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    assert rules.__doc__ is not None
    assert f"{name}(" in rules.__doc__ or f"`{name}`" in rules.__doc__ or f"@{name}" in rules.__doc__
    assert inspect.getdoc(getattr(rules, name))
