"""The table and the picture of a sweep: nothing cut, nothing interpreted, the same bytes each time."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rebasin_cli.errors import OutputError, UsageError
from rebasin_cli.interpolation.sweep import Barrier, SweepPoint, barrier, best
from rebasin_cli.report.interpolate import interpolate_table, verdict
from rebasin_cli.report.plot import check_plot, draw_curves
from rebasin_cli.verbs.interpolate_result import InterpolateResult


def curve(*values: tuple[float | None, float]) -> tuple[SweepPoint, ...]:
    last = len(values) - 1
    return tuple(
        SweepPoint(0, number / last, loss, accuracy, 0.9, None, 100, loss is not None)
        for number, (loss, accuracy) in enumerate(values)
    )


def result(**changes: Any) -> InterpolateResult:
    naive = curve((0.5, 0.8), (1.4, 0.4), (2.345678, 0.1), (1.6, 0.3), (0.52, 0.81))
    matched = curve((0.5, 0.8), (0.6, 0.75), (0.9, 0.65), (0.62, 0.74), (0.52, 0.81))
    curves = {"naive": naive, "matched": matched}
    made = InterpolateResult(
        a=Path("a.safetensors"),
        b=Path("b[/b].safetensors"),
        aligned=Path("b-aligned.safetensors"),
        checkpoints=(Path("a.safetensors"), Path("b[/b].safetensors")),
        report=None,
        model="net.py:net",
        model_args={},
        data="val: 100 images",
        mode="lerp",
        steps=4,
        loss="cross-entropy",
        metric="accuracy",
        recalibration=None,
        seed=0,
        amp=False,
        n=100,
        skipped=0,
        curves=curves,
        barrier={name: barrier(points) for name, points in curves.items()},
        best=best(curves),
        saved=(),
        sha256={},
        run={},
        progress={},
        out=Path("result.json"),
        warnings=(),
        resumed=False,
    )
    return replace(made, **changes)


def shown(found: InterpolateResult, width: int) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, markup=False, highlight=False).print(interpolate_table(found, verbose=True))
    return stream.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_number_is_cut(width: int) -> None:
    text = shown(result(), width)
    assert "…" not in text
    assert "b[/b]" in "".join(text.split())
    for words in ("2.346", "10.0 %", "▁"):
        assert words in text


def test_the_verdict_says_what_the_numbers_mean() -> None:
    assert "lowers the barrier from 1.836 to 0.39" in verdict(result())
    flat = {"naive": Barrier(1.8, 0.5), "matched": Barrier(0.001, 0.0)}
    assert "one basin" in verdict(result(barrier=flat))
    assert "does not lower" in verdict(result(barrier={"naive": Barrier(0.3, 0.1), "matched": Barrier(0.4, 0.1)}))
    assert "cannot be said" in verdict(result(barrier={"naive": Barrier(None, None)}))


def test_what_is_not_finite_is_said() -> None:
    row = curve((0.5, 0.8), (None, 0.1), (0.5, 0.8))
    assert "not finite" in shown(result(curves={"naive": row}, barrier={"naive": barrier(row)}), 100)


@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_a_picture_is_the_same_bytes_each_time(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("matplotlib")
    for name in ("one", "two"):
        draw_curves(result(), tmp_path / f"{name}.{kind}")
    one, two = ((tmp_path / f"{name}.{kind}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert len(one) > 5000


def test_the_svg_says_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw_curves(result(), tmp_path / "curve.svg")
    text = (tmp_path / "curve.svg").read_text()
    for words in ("naive", "matched", "accuracy (%)", "loss (cross-entropy)", "lam (0: A, 1: B)"):
        assert words in text


def test_a_picture_is_not_overwritten_and_its_kind_is_checked_first(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "curve.svg"
    path.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        draw_curves(result(), path)
    assert path.read_text() == "mine"
    with pytest.raises(UsageError, match="gif"):
        check_plot(tmp_path / "curve.gif")


def test_losses_line_up_and_ascii_streams_get_a_line_too() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(interpolate_table(result(), plain=True))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.isascii()
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith(("0.", "1."))]
    assert [row[0] for row in rows] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert [row[1] for row in rows] == ["0.500", "1.400", "2.346", "1.600", "0.520"]
