"""`--rules`: rules for the user's own operations, and what is said when such a file is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rebasin_cli.symmetry.registry import RULES
from tests.cli.conftest import Runner
from tests.cli.test_faults_bytes import expect_refusal

NET = """
import torch
from torch import nn


@torch.library.custom_op("ruletest::soft", mutates_args=())
def soft(x: torch.Tensor, by: float) -> torch.Tensor:
    return x.sign() * (x.abs() - by).clamp(min=0)


@soft.register_fake
def _(x, by):
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 12)
        self.last = nn.Linear(12, 3)

    def forward(self, x):
        return self.last(soft(self.first(x), 0.1))
"""
RULE = """
from rebasin_cli.rules import elementwise, rule



@rule("{name}")
def soft(op):
    {body}
"""
GOOD = 'return elementwise(op.relations, [op.layout("x")], op.result_shape)'
MODEL = ["--model", "own.py:Net", "--input", "2,5"]


@pytest.fixture
def own(place: Path) -> Path:
    (place / "own.py").write_text(NET)
    (place / "rules.py").write_text(RULE.format(name="ruletest.soft", body=GOOD))
    return place


def test_a_rule_frees_what_an_unknown_operation_pins(run: Runner, own: Path) -> None:
    pinned = json.loads(run("trace", *MODEL, "--json").out)
    assert pinned["data"]["units"] == 0
    assert "ruletest.soft" in pinned["warnings"][0]
    freed = json.loads(run("trace", *MODEL, "--json", "--rules", "rules.py", "--strict").out)
    assert freed["data"]["units"] == 12
    assert freed["data"]["verified"]["max_relative_error"] < 1e-9
    assert freed["warnings"] == []
    assert "ruletest.soft" not in RULES, "one model's rules must not outlive its run"


def test_align_takes_rules_too(run: Runner, own: Path) -> None:
    torch.manual_seed(0)
    order = torch.randperm(12)
    a = {
        "first.weight": torch.randn(12, 5), "first.bias": torch.randn(12),
        "last.weight": torch.randn(3, 12), "last.bias": torch.randn(3),
    }  # fmt: skip
    b = {**a, "first.weight": a["first.weight"][order], "first.bias": a["first.bias"][order]}
    b["last.weight"] = a["last.weight"][:, order]
    torch.save(a, own / "a.pt")
    torch.save(b, own / "b.pt")
    done = run("align", "a.pt", "b.pt", *MODEL, "--rules", "rules.py", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["data"]["distance"]["after"] == 0.0
    expect_refusal(run("align", "a.pt", "b.pt", *MODEL, "--strict", "--force"), 4, r"ruletest\.soft.*--rules")


def test_a_rule_that_claims_too_much_is_caught_by_execution(run: Runner, own: Path) -> None:
    (own / "own.py").write_text(NET.replace("x.sign() *", "torch.arange(x.shape[-1]) * x.sign() *"))
    expect_refusal(run("trace", *MODEL, "--rules", "rules.py"), 7, r"changes the function.*rule")


@pytest.mark.parametrize(
    ("name", "body", "words"),
    [
        ("ruletest.soft", "return op.layout('y')", r"rules\.py:8: KeyError.*ruletest\.soft"),
        ("ruletest.soft", "return None", r"rules\.py:6: .*gave NoneType"),
        ("ruletest.soft", "return []", r"rules\.py:6: .*0 layouts for 1 result"),
        ("ruletest::soft", GOOD, r"rules\.py:6: .*'ruletest::soft'.*write 'ruletest\.soft'"),
        ("ruletest.soft", "return (", r"rules\.py:8: SyntaxError"),
    ],
)
def test_a_wrong_rule_is_one_line_with_its_place(run: Runner, own: Path, name: str, body: str, words: str) -> None:
    (own / "rules.py").write_text(RULE.format(name=name, body=body))
    expect_refusal(run("trace", *MODEL, "--rules", "rules.py"), 4, words)


def test_a_file_that_is_absent_or_registers_nothing_is_refused(run: Runner, own: Path) -> None:
    expect_refusal(run("trace", *MODEL, "--rules", "absent.py"), 2, r"absent\.py: no such file")
    expect_refusal(run("trace", *MODEL, "--rules", "own.py"), 4, r"own\.py: registers no rule")


def test_a_rule_that_nobody_asks_for_is_said(run: Runner, own: Path) -> None:
    (own / "rules.py").write_text(RULE.format(name="ruletest.sotf", body=GOOD))
    warnings = json.loads(run("trace", *MODEL, "--rules", "rules.py", "--json").out)["warnings"]
    assert any("never calls ruletest.sotf" in sentence for sentence in warnings)
