"""What tables and the demonstration say beside the verdict: nothing that was not measured."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rebasin_cli.interpolation.sweep import Barrier, Ends, SweepPoint
from rebasin_cli.report.demo import opening
from rebasin_cli.report.formats.table import renderable
from rebasin_cli.report.interpolate import interpolate_table
from rebasin_cli.report.layout import Document
from rebasin_cli.report.text import with_error
from tests.report.test_interpolate import result


def shown(document: Document) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160, markup=False, highlight=False).print(renderable(document))
    return stream.getvalue()


def table(**changes: Any) -> str:
    return shown(interpolate_table(result(**changes)))


def test_statistics_are_spoken_of_only_where_a_layer_has_any() -> None:
    assert "statistics" not in table()
    assert "interpolated like the weights" in table(running_statistics=2)
    treated = table(running_statistics=2, recalibration={"method": "running statistics", "data": "train.npz"})
    assert "estimated on train.npz" in treated
    assert "interpolated like the weights" not in treated


def test_ends_are_shown_both_ways_only_where_they_were_treated() -> None:
    points = (result().curves["naive"][0], result().curves["naive"][-1])
    loaded = {"naive": points, "matched": points}
    assert "ends as" not in table(ends=Ends(loaded, None))
    better = SweepPoint(0, 0.0, 0.25, 0.95, None, None, 100, True)
    both = table(ends=Ends(loaded, {"naive": (better, points[1]), "matched": (better, points[1])}))
    assert "ends as loaded before alignment   loss 0.5, accuracy 80.0 %; loss 0.52, accuracy 81.0 %" in both
    assert "ends as treated before alignment  loss 0.25, accuracy 95.0 %; loss 0.52, accuracy 81.0 %" in both


def test_errors_over_batches_are_said_to_be_that() -> None:
    assert "over batches" not in table()
    row = tuple(SweepPoint(0, lam, 1.0, None, None, None, 9, True, batch_means=True) for lam in (0.0, 0.5, 1.0))
    found = table(curves={"naive": row}, barrier={"naive": Barrier(0.0, None, 0.1, None)})
    assert "over batches: the loss gives no values of single samples" in found


def test_the_best_network_is_named_with_its_measure_and_curve() -> None:
    assert "best by accuracy" in table(best_by="accuracy")
    assert "best by loss" in table()


def test_nothing_is_said_of_values_where_nothing_was_evaluated() -> None:
    found = table(data=None, curves={}, barrier={}, best=None, out=None, saved=(Path("average.pt"),), lam=("0.5",))
    assert "Nothing was evaluated" in found
    assert "average.pt" in found
    for word in ("barrier ", "loss", "accuracy", "best"):
        assert word not in found


def test_the_demonstration_promises_nothing_before_it_has_measured() -> None:
    text = shown(opening(Path("demo"), (0.91, 0.92)))
    assert "91.0 % and 92.0 %" in text
    for word in ("poor", "nearly", "good", "different orders"):
        assert word not in text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.0432, 0.00632, "0.043 ± 0.006"),
        (0.0432, 0.00132, "0.0432 ± 0.0013"),
        (12.34, 10.2, "12 ± 10"),
        (1.836, None, "1.836"),
        (0.0, 0.0, "0 ± 0"),
        (None, None, "-"),
        (0.5, 0.0096, "0.500 ± 0.010"),
        (1e-12, 3e-13, "1e-12 ± 3e-13"),
    ],
)
def test_a_number_has_as_many_figures_as_its_error_allows(value: float | None, error: float | None, text: str) -> None:
    assert with_error(value, error) == text
