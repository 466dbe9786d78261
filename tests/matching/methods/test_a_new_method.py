"""A method that somebody adds: it finds permutations in its own way, and `result_of` makes the result."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rebasin_cli import align
from rebasin_cli.matching import methods
from rebasin_cli.matching.method import MatchTask, Method
from rebasin_cli.matching.outcome import result_of
from rebasin_cli.matching.result import MatchResult
from tests.cli.workshop import furnish, permuted, safetensors_bytes, state


def by_bias(task: MatchTask) -> MatchResult:
    """Pair units by the order of their biases."""
    found = {}
    for group in task.understood.spec.groups:
        key = next(site.key for site in group.sites if site.key in ("1.bias", "4.bias"))
        order_a, order_b = (task.pair.a[key].argsort(), task.pair.b[key].argsort())
        perm = torch.empty(group.size, dtype=torch.int64)
        perm[order_a] = order_b
        found[group.name] = perm
    return result_of(task, found)


def test_a_permuted_copy_is_put_back_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    furnish(tmp_path)
    moved = permuted(state(0), torch.randperm(8), torch.randperm(6))
    (tmp_path / "b.safetensors").write_bytes(safetensors_bytes(moved))
    added = Method(name="weight", help="By biases.", match=by_bias)
    monkeypatch.setattr(methods, "METHODS", (added,))
    found = align("a.safetensors", "b.safetensors", model="net.py:build", inputs=["2,1,4,4"])
    assert (found.method, found.start, found.converged) == ("weight", "weight", True)
    assert found.distance.after == 0
    assert found.cosine.after == pytest.approx(1)
    assert set(found.matched) == {group.name for group in found.groups}
