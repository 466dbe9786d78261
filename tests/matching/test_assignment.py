"""Assignments are optimal, many at once or one by one, and faulty numbers never reach a solver."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebasin_cli.errors import NumericalError
from rebasin_cli.matching import assignment
from rebasin_cli.matching.assignment import assign, assign_many


def best_sum(matrix: np.ndarray) -> float:
    size = len(matrix)
    return max(sum(matrix[i, order[i]] for i in range(size)) for order in permutations(range(size)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 10**6))
def test_assignments_are_optimal(size: int, seed: int) -> None:
    matrices = np.random.default_rng(seed).normal(size=(3, size, size))
    values, perms = assign_many(matrices, "g")
    for matrix, value, perm in zip(matrices, values, perms, strict=True):
        one = assign(matrix, "g")
        assert sorted(one) == sorted(perm) == list(range(size))
        assert value == pytest.approx(best_sum(matrix), abs=1e-5)
        assert matrix[np.arange(size), one].sum() == pytest.approx(best_sum(matrix), abs=1e-5)


def test_a_wide_assignment_is_as_good_as_scipys() -> None:
    from scipy.optimize import linear_sum_assignment

    matrix = np.random.default_rng(0).normal(size=(300, 300))
    rows, columns = linear_sum_assignment(matrix, maximize=True)
    assert matrix[np.arange(300), assign(matrix, "g")].sum() == pytest.approx(matrix[rows, columns].sum(), rel=1e-6)


def test_where_nothing_tells_units_apart_they_stay() -> None:
    assert assign(np.zeros((5, 5)), "g").tolist() == [0, 1, 2, 3, 4]


def test_row_maxima_that_are_a_permutation_need_no_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(matrix: np.ndarray) -> np.ndarray:
        raise AssertionError("the solver ran")

    monkeypatch.setattr(assignment, "_solve", refuse)
    perm = np.random.default_rng(0).permutation(40)
    matrix = np.random.default_rng(1).uniform(size=(40, 40))
    matrix[np.arange(40), perm] += 2
    assert (assign(matrix, "g") == perm).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    matrix = np.zeros((6, 6))
    matrix[2, 3] = bad
    with pytest.raises(NumericalError, match="non-finite similarity in layer3"):
        assign(matrix, "layer3")
    with pytest.raises(NumericalError, match="non-finite similarity in layer3"):
        assign_many(matrix[None], "layer3")


def test_an_answer_that_is_no_permutation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "_solve", lambda matrix: np.zeros(len(matrix), dtype=np.int64))
    with pytest.raises(NumericalError, match="not a permutation"):
        assign(np.array([[1.0, 0.9], [1.0, 0.5]]), "g")
