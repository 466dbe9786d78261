"""Guesses of the time left: right where gains shrink evenly, and bounded by what the search may spend."""

from __future__ import annotations

import pytest

from rebasin_cli.matching.polish import passes_left
from rebasin_cli.matching.portfolio import seconds_ahead
from rebasin_cli.matching.result import PassReport
from rebasin_cli.matching.search import search
from tests.benchmarks.matching_specs import mlp, random_tensors


@pytest.mark.parametrize(("ratio", "passes"), [(0.5, 12), (0.1, 7), (0.8, 20)])
def test_geometric_gains_end_when_it_is_said(ratio: float, passes: int) -> None:
    gains = [ratio**number for number in range(passes)]
    least = 0.999 * gains[-1]
    for done in range(2, passes - 1):
        assert passes_left(gains[:done], least) == passes - done + 1


def test_what_gains_nothing_is_over() -> None:
    assert passes_left([1.0, 0.0], 1e-6) == 0
    assert passes_left([1.0, 1e-9], 1e-6) == 1


def test_gains_that_do_not_shrink_are_still_expected_to_end() -> None:
    assert 1 < passes_left([1.0, 1.0, 2.0], 1e-6) < 1000


def test_a_search_is_bounded_by_its_work_and_by_its_runs() -> None:
    assert seconds_ahead(spent=1.0, allowed=4.0, elapsed=10.0, runs=[100.0], planned=5) == 30.0
    assert seconds_ahead(spent=1.0, allowed=4.0, elapsed=10.0, runs=[1.0, 3.0], planned=5) == 10.0
    assert seconds_ahead(spent=4.0, allowed=1.0, elapsed=10.0, runs=[1.0], planned=5) == 0.0


@pytest.mark.parametrize("limit", [None, 3600.0])
def test_every_pass_of_a_search_tells_what_is_left(limit: float | None) -> None:
    spec, shapes = mlp((8, 24, 20, 5))
    seen: list[PassReport] = []
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    search(spec, a, b, parameters=tuple(a), effort="standard", time_limit=limit, on_pass=seen.append)
    left = [report.left for report in seen if report.left is not None]
    assert len(left) == len(seen) > 2
    assert all(0 <= one < 3600 for one in left)
    assert max(left[:3]) > left[-1], "a search that goes on is expected to take longer than one at its end"
