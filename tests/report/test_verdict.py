"""Every sentence about a sweep, and the numbers on which it must not be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rebasin_cli.interpolation.sweep import Barrier, SweepPoint
from rebasin_cli.report.verdict import verdict
from tests.report.test_interpolate import result

SOME = Barrier(0.3, 0.1, 0.02, 0.01)
LESS = Barrier(0.1, 0.05, 0.01, 0.01)
NONE = Barrier(0.01, 0.0, 0.006, 0.01)


def row(*points: tuple[float, float | None, float]) -> tuple[SweepPoint, ...]:
    """(lam, loss, accuracy) each, of 100 samples and ten classes."""
    return tuple(
        SweepPoint(0, lam, loss, accuracy, None, None, 100, loss is not None, 0.01, 0.03, None, None, 0.1)
        for lam, loss, accuracy in points
    )


GOOD = row((0.0, 0.5, 0.8), (0.5, 0.6, 0.7), (1.0, 0.5, 0.8))
GUESSING = row((0.0, 2.3, 0.15), (0.5, 2.3, 0.1), (1.0, 2.3, 0.8))
ENDS_ONLY = row((0.0, 0.5, 0.8), (1.0, 0.5, 0.8))


def said(naive: Barrier, matched: Barrier | None = None, points: Any = GOOD, **changes: Any) -> str:
    barriers = {"naive": naive} if matched is None else {"naive": naive, "matched": matched}
    return verdict(result(curves=dict.fromkeys(barriers, points), barrier=barriers, **changes))


def test_no_barrier_needs_one_within_two_standard_errors_of_zero() -> None:
    assert said(NONE).startswith("No loss barrier on 100 samples: 0.010 ± 0.006, within two standard errors")
    assert "No loss barrier" not in said(replace(NONE, loss=0.013))
    assert said(replace(NONE, loss=0.013)).startswith("Barrier: the loss rises by 0.013 ± 0.006 above the line")


def test_no_barrier_needs_a_standard_error() -> None:
    found = said(Barrier(0.0, 0.0))
    assert "No loss barrier" not in found
    assert "standard error is unknown" in found


def test_no_barrier_needs_ends_that_do_not_guess() -> None:
    for matched in (None, NONE):
        found = said(NONE, matched, GUESSING)
        assert "o loss barrier" not in found
        assert "guessing gives 10.0 %" in found
        assert "15.0 % and 80.0 %" in found


def test_networks_that_always_give_the_most_frequent_class_are_called_guesses() -> None:
    points = row((0.0, 0.3, 0.9), (0.5, 0.3, 0.9), (1.0, 0.3, 0.905))
    points = tuple(replace(point, accuracy_standard_error=0.01, most_frequent=0.9) for point in points)
    found = said(NONE, NONE, points)
    assert "o loss barrier" not in found
    assert "guessing the most frequent class gives 90.0 %" in found
    better = tuple(replace(point, accuracy=0.95) for point in points)
    assert "o loss barrier" in said(NONE, NONE, better)


def test_folders_read_in_another_order_than_the_models_are_no_line_without_a_barrier() -> None:
    wrong = row((0.0, 17.5, 0.167), (0.5, 13.9, 0.167), (1.0, 18.8, 0.167))
    wrong = tuple(replace(point, accuracy_standard_error=0.02) for point in wrong)
    found = said(NONE, NONE, wrong)
    assert "o loss barrier" not in found
    assert "loss is 17.5 and 18.8, and that of a guess is 2.303" in found
    assert "--class-order" in found
    assert "No loss barrier" in said(NONE, NONE, wrong, loss="mine.py:loss")


def test_ends_without_classes_are_not_called_guesses() -> None:
    points = tuple(replace(point, accuracy=None, chance=None) for point in GOOD)
    assert "No loss barrier" in said(NONE, points=points)


def test_one_step_says_so() -> None:
    for matched in (None, Barrier(None, None)):
        assert "with one step, no network between" in said(Barrier(None, None), matched, ENDS_ONLY)


def test_what_is_not_finite_says_so() -> None:
    assert "missing or not finite" in said(Barrier(None, None), points=row((0, 1, 0.8), (0.5, None, 0.1), (1, 1, 0.8)))


def test_rounding_is_no_barrier() -> None:
    assert "No loss barrier" in said(Barrier(1e-8, 0.0, 1e-9, 0.0))


def test_the_alignment_lowers_only_what_differs_by_more_than_two_standard_errors() -> None:
    assert said(SOME, LESS) == "The alignment lowers the barrier from 0.30 ± 0.02 to 0.100 ± 0.010."
    assert "by less than two standard errors" in said(SOME, replace(SOME, loss=0.27))
    assert "does not lower the barrier: it was 0.100 ± 0.010 and is 0.30 ± 0.02" in said(LESS, SOME)


def test_no_barrier_after_alignment_names_the_one_before() -> None:
    found = said(SOME, NONE)
    assert found.startswith("After alignment there is no loss barrier on 100 samples")
    assert found.endswith("Before, it is 0.30 ± 0.02.")
    assert said(NONE, NONE).startswith("No loss barrier on 100 samples, before or after alignment")


def test_a_line_before_alignment_that_is_not_finite_is_not_compared() -> None:
    curves = {"naive": row((0, 1, 0.8), (0.5, None, 0.1), (1, 1, 0.8)), "matched": GOOD}
    found = verdict(result(curves=curves, barrier={"naive": Barrier(None, None), "matched": LESS}))
    assert found == "After alignment the barrier is 0.100 ± 0.010."


@pytest.mark.parametrize(("naive", "matched"), [(LESS, SOME), (SOME, LESS), (SOME, SOME)])
def test_statistics_that_do_not_fit_are_no_finding_about_the_alignment(naive: Barrier, matched: Barrier) -> None:
    found = said(naive, matched, running_statistics=3)
    assert "lower" not in found
    assert "changes" not in found
    assert "running statistics (3 layers)" in found
    assert "--recalibrate" in found
    treated = said(naive, matched, running_statistics=3, recalibration={"method": "BatchNorm", "data": "train"})
    assert "--recalibrate" not in treated
    assert "The alignment" in treated
    assert "--recalibrate" not in said(naive, matched)  # no layer has any
