"""The automatic choice: weight matching without data, with data the candidate whose midpoint has the lowest loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.matching.methods.test_learned import folder, learn  # noqa: F401


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_with_data_no_candidate_is_better(folder: Path, kind: str) -> None:  # noqa: F811
    found = learn(folder, kind, method="auto")
    by = found.criterion
    assert (found.method, by.name, found.passes) == ("auto", "midpoint loss", 0)
    assert found.converged
    assert by.weight_matching is not None
    assert by.after <= by.weight_matching
    assert by.after < by.before
    assert learn(folder, kind, learning_steps=10).criterion.after <= by.after


def test_without_data_it_is_weight_matching(folder: Path) -> None:  # noqa: F811
    found, weight = (learn(folder, data=None, method=name) for name in ("auto", "weight"))
    assert found.method == "auto"
    assert found.objective == weight.objective
    assert found.groups == weight.groups
