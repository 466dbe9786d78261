"""What `transfer` says at its end, by what the data showed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rebasin_cli.report.guidance import after_transfer


def advice(error: float = 0.01, **accuracies: float) -> str:
    scores = {
        name: SimpleNamespace(accuracy=value, accuracy_standard_error=error) for name, value in accuracies.items()
    }
    found = after_transfer(cast("Any", SimpleNamespace(scores=scores)))
    return "" if found is None else " ".join(found.lines)


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        ({}, "--data"),
        ({"new_base": 0.5, "naive": 0.7, "transferred": 0.6}, "--align none"),
        ({"new_base": 0.7, "naive": 0.5, "transferred": 0.6}, "--scale"),
    ],
)
def test_data_decide_what_is_advised(accuracies: dict[str, float], said: str) -> None:
    assert said in advice(**accuracies)


def test_nothing_is_advised_where_the_result_is_best() -> None:
    assert advice(new_base=0.5, naive=0.6, transferred=0.7) == ""


def test_differences_within_the_errors_advise_nothing() -> None:
    assert advice(0.04, new_base=0.5, naive=0.7, transferred=0.6) == ""
    assert advice(0.04, new_base=0.7, naive=0.5, transferred=0.6) == ""
