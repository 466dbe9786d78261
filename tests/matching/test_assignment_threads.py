"""Groups solved at the same time: really at the same time, and with the result of one after the other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest
import torch

from rebasin_cli.matching import assignment, frank_wolfe, polish
from rebasin_cli.matching.assignment import MOST, at_a_time
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import search
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site
from tests.benchmarks.matching_specs import mlp, random_tensors

Shapes = dict[str, tuple[int, ...]]
DEEP = (9, 30, 28, 26, 24, 22, 20, 7)
ROOM = 1 << 26


def in_flight(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    users: tuple[ModuleType, ...] = (polish, frank_wolfe)
    for module in users:
        monkeypatch.setattr(module, "at_a_time", lambda device: most)


@pytest.mark.parametrize("run", [weight_matching, search])
def test_the_result_is_that_of_one_after_the_other(
    run: Callable[..., MatchResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, shapes = mlp(DEEP)
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    found = []
    for most in (1, MOST):
        in_flight(monkeypatch, most)
        found.append(run(spec, a, b, parameters=tuple(a), budget=ROOM))
    one, many = found
    assert one.per_pass == many.per_pass
    assert one.moved_units > 0
    assert all(torch.equal(one.permutations[name], many.permutations[name]) for name in one.permutations)


def meeting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The solver waits for a second one to come; the threads in which two met."""
    met: list[str] = []
    barrier = threading.Barrier(2, timeout=20)

    def solve(similarity: np.ndarray, what: str) -> np.ndarray:
        if len(met) < 2:
            barrier.wait()
            met.append(threading.current_thread().name)
        return plainly(similarity, what)

    plainly = assignment.assign
    monkeypatch.setattr("rebasin_cli.matching.nesting.assign", solve)
    return met


def two_apart() -> tuple[PermutationSpec, Shapes]:
    """Two groups that share no tensor, so that the second may begin before the first ends."""
    groups = [AxisGroup(name, 12, (Site(f"{name}.up", 0), Site(f"{name}.down", 1))) for name in ("one", "two")]
    return PermutationSpec(tuple(groups)), {site.key: (12, 12) for group in groups for site in group.sites}


def test_groups_apart_are_solved_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight(monkeypatch, 2)
    met = meeting(monkeypatch)
    spec, shapes = two_apart()
    a, b = random_tensors(shapes, 0), random_tensors(shapes, 1)
    weight_matching(spec, a, b, parameters=tuple(a), starts=("identity",), budget=ROOM)
    assert len(set(met)) == 2


def test_one_thread_for_products_is_one_group_at_a_time() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert at_a_time(torch.device("cpu")) == 1
        assert at_a_time(torch.device("cuda")) == 2
        torch.set_num_threads(3)
        assert at_a_time(torch.device("cpu")) == 3
    finally:
        torch.set_num_threads(threads)
