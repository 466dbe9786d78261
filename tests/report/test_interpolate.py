"""The table and the picture of a sweep: nothing cut, nothing interpreted, the same bytes each time."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rebasin_cli.errors import OutputError, UsageError
from rebasin_cli.interpolation.sweep import Barrier, Best, SweepPoint, barrier, best
from rebasin_cli.report.formats.table import renderable
from rebasin_cli.report.interpolate import interpolate_table, verdict
from rebasin_cli.report.plot import INK, SIZE, STYLES, check_plot, draw_curves, picture
from rebasin_cli.verbs.interpolate import InterpolateResult


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
    report = renderable(interpolate_table(found, verbose=True))
    Console(file=stream, width=width, markup=False, highlight=False).print(report)
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
    flat = {"naive": Barrier(1.8, 0.5), "matched": Barrier(0.001, 0.0, 0.002, 0.01)}
    assert "After alignment there is no loss barrier on 100 samples: 0.001 ± 0.002" in verdict(result(barrier=flat))
    assert "does not lower" in verdict(result(barrier={"naive": Barrier(0.3, 0.1), "matched": Barrier(0.4, 0.1)}))
    assert "unknown" in verdict(result(barrier={"naive": Barrier(None, None)}))


@pytest.mark.parametrize(
    ("best", "words"),
    [
        (Best("naive", 0, 0.0, 0.5, 0.8), "a.safetensors: loss 0.5"),
        (Best("naive", 0, 1.0, 0.5, 0.8), "b[/b].safetensors: loss 0.5"),
        (Best("matched", 0, 1.0, 0.5, 0.8), "b-aligned.safetensors: loss 0.5"),
        (Best("matched", 0, 0.25, 0.4, 0.9), "lam 0.25 after alignment: loss 0.4, accuracy 90.0 %"),
    ],
)
def test_the_best_network_is_named(best: Best, words: str) -> None:
    assert words in shown(result(best=best), 100)


def test_segments_are_named_by_their_checkpoints() -> None:
    text = shown(result(**several()), 160)
    assert text.count("a.safetensors -> b.safetensors  ") == 5
    assert text.count("c.safetensors -> d.safetensors  ") == 5
    same = {**several(), "checkpoints": tuple(Path(letter) / "model.safetensors" for letter in "abcd")}
    assert "a/model.safetensors -> b/model.safetensors  " in shown(result(**same), 160)


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
    for words in (
        "before alignment: barrier 1.836",
        "after alignment: barrier",
        "accuracy (%)",
        "loss (cross-entropy)",
        "lam (0: A, 1: B)",
    ):
        assert words in text


def bare(points: tuple[SweepPoint, ...]) -> tuple[SweepPoint, ...]:
    return tuple(replace(point, accuracy=None) for point in points)


def several() -> dict[str, Any]:
    """Four checkpoints in a row."""
    rows = {
        name: tuple(replace(point, segment=segment) for segment in range(3) for point in points)
        for name, points in result().curves.items()
    }
    return {"curves": rows, "checkpoints": tuple(Path(f"{letter}.safetensors") for letter in "abcd")}


PICTURES: dict[str, dict[str, Any]] = {
    "two curves": {},
    "one curve": {"curves": {"naive": result().curves["naive"]}},
    "several checkpoints": several(),
    "large losses": {"curves": {name: curve((1e5, 0.8), (3.21e6, 0.1), (2e5, 0.8)) for name in ("naive", "matched")}},
    "a long name": {
        "curves": {name: bare(points) for name, points in result().curves.items()},
        "loss": "metrics/language.py:negative_log_likelihood_of_tokens",
    },
}


def shown_texts(figure: Any) -> list[Any]:
    """Legend, labels of axes, and those of ticks that lie within their axis; matplotlib makes some beyond it."""
    found = list(figure.legends[0].get_texts())
    for axes in figure.axes:
        for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            found += [axis.label, *(label for place, label in ticks if low <= place <= high)]
    return found


@pytest.mark.parametrize("size", [(5.0, 2.8), SIZE, (12.0, 6.0)])
@pytest.mark.parametrize("changes", PICTURES.values(), ids=PICTURES)
def test_no_text_of_a_picture_is_cut_or_covered(changes: dict[str, Any], size: tuple[float, float]) -> None:
    pytest.importorskip("matplotlib")
    figure = picture(result(**changes), size)
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown_texts(figure)]
    assert len(boxes) > 8
    for words, box in boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1, words
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1, words
    for number, (words, box) in enumerate(boxes):
        assert not [other for other, its in boxes[number + 1 :] if box.overlaps(its)], words


@pytest.mark.parametrize("ground", [0.0, 1.0])
def test_every_colour_stands_out_from_white_and_from_black(ground: float) -> None:
    """Contrast as WCAG 2.2 defines it: 4.5 for text, 3 for lines."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(colour: str) -> float:
        low, high = sorted((luminance(colour), ground))
        return (high + 0.05) / (low + 0.05)

    assert contrast(INK) >= 4.5
    assert all(contrast(str(style["color"])) >= 3.0 for style in STYLES.values())


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
    console.print(renderable(interpolate_table(result(), plain=True)))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert shown.isascii()
    rows = [line.split() for line in shown.splitlines() if line.strip().startswith(("0.", "1."))]
    assert [row[0] for row in rows] == ["0.00", "0.25", "0.50", "0.75", "1.00"]
    assert [row[1] for row in rows] == ["0.500", "1.400", "2.346", "1.600", "0.520"]
