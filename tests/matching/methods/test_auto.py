"""The automatic choice: weight matching without data, with data the method whose midpoint is the best, as measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rebasin_cli.matching.choice import Attempt
from rebasin_cli.matching.method import MatchTask
from rebasin_cli.matching.methods import auto
from rebasin_cli.matching.outcome import result_of
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.permutation import apply, random
from rebasin_cli.report.align import align_table
from rebasin_cli.report.layout import Rows
from tests.interpolation.digits import digits
from tests.matching.methods.test_learned import folder, learn  # noqa: F401


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_the_method_with_the_best_midpoint_is_kept(folder: Path, kind: str) -> None:  # noqa: F811
    found = learn(folder, kind, method="auto", limit=300)
    by = found.criterion
    assert (found.method, by.name, found.data and found.data["learned_on"]) == (
        "auto",
        "midpoint loss",
        "cross-entropy",
    )
    assert [one.method for one in found.tried] == ["identity", "weight", "activation", "mixture", "learned"]
    (kept,) = (one for one in found.tried if one.kept)
    losses = {one.method: one.loss for one in found.tried}
    assert kept.loss == by.after == min(loss for loss in losses.values() if loss is not None)
    assert (by.before, by.weight_matching, found.start) == (losses["identity"], losses["weight"], kept.method)
    assert by.after < by.before


def test_what_was_tried_is_in_the_report_and_in_its_json(folder: Path) -> None:  # noqa: F811
    found = learn(folder, method="auto", out=folder / "auto.safetensors", dry_run=False, effort="fast")
    written = json.loads((folder / "auto.json").read_text())["data"]["tried"]
    assert [one["method"] for one in written] == ["identity", "weight", "activation", "mixture"]
    assert all(set(one) == {"method", "loss", "accuracy", "kept"} for one in written)
    assert sum(one["kept"] for one in written) == 1
    tables = [part for part in align_table(found).parts if isinstance(part, Rows)]
    assert [line[0] for line in tables[0].lines] == [one["method"] for one in written]
    assert [line[3] == "kept" for line in tables[0].lines] == [one["kept"] for one in written]


def test_the_samples_that_judge_are_held_back_from_the_methods(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The accuracy in the table is that of the midpoint on the samples that no method was given."""
    tasks: list[MatchTask] = []

    def find(task: MatchTask, _: object) -> MatchResult:
        tasks.append(task)
        return result_of(task, random(task.understood.spec, 3))

    monkeypatch.setattr(auto, "_attempts", lambda task, deadline: [Attempt("any", find, needed=True)])
    found = learn(folder, method="auto")
    pair, spec = tasks[0].pair, tasks[0].understood.spec
    x, y = (torch.from_numpy(values[:400]) for values in digits())
    used = {tuple(row.flatten().tolist()) for batch in tasks[0].batches() for row in batch.args[0]}
    held = [number for number in range(400) if tuple(x[number].flatten().tolist()) not in used]
    assert (len(used), len(held)) == (300, 100)
    b = apply(spec, random(spec, 3), {key: pair.b[key] for key in pair.b})
    net = pair.subject.factory.build()
    net.load_state_dict({key: (pair.a[key] + b[key]) / 2 for key in b})
    loss = torch.nn.functional.cross_entropy(net(x[held]), y[held])
    assert found.tried[0].loss == pytest.approx(float(loss.detach()), rel=1e-4)


def test_without_labels_the_outputs_of_both_networks_judge(folder: Path) -> None:  # noqa: F811
    x, _ = digits()
    np.savez(folder / "inputs.npz", x=x[:200])
    found = learn(folder, data="inputs.npz", method="auto", effort="fast")
    assert found.criterion.after < found.criterion.before
    assert found.data is not None
    assert "no labels" in found.data["learned_on"]


def test_few_samples_judge_and_are_used(folder: Path) -> None:  # noqa: F811
    found = learn(folder, method="auto", effort="fast", limit=12)
    assert any("too few" in warning for warning in found.warnings)
    assert found.criterion.after <= found.criterion.before


def test_without_time_weight_matching_is_what_there_is(folder: Path) -> None:  # noqa: F811
    found = learn(folder, method="auto", time_limit=0.0)
    assert [one.method for one in found.tried] == ["identity", "weight"]
    assert found.timed_out


def test_a_method_that_fails_is_left_out_and_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("derivative for aten::odd is not implemented")

    monkeypatch.setattr("rebasin_cli.matching.learning.learn.learn", fails)
    found = learn(folder, method="auto")
    assert [one.method for one in found.tried] == ["identity", "weight", "activation", "mixture"]
    assert any("method learned was left out" in warning and "aten::odd" in warning for warning in found.warnings)


def test_without_data_it_is_weight_matching(folder: Path) -> None:  # noqa: F811
    found, weight = (learn(folder, data=None, method=name) for name in ("auto", "weight"))
    assert found.method == "auto"
    assert found.objective == weight.objective
    assert found.groups == weight.groups
    assert found.tried == ()
