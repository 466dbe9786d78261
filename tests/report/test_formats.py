"""Output formats: the same report for a terminal, a spreadsheet, a page and a paper."""

from __future__ import annotations

import csv
import io
from importlib import import_module

import pytest

from rebasin_cli.report import formats
from rebasin_cli.report.layout import Document, Facts, Rows, document, facts, rows, text

REPORT = document(
    facts([("file_name", "a|b_1%.pt"), ("odd", "x\x1b[2J")]),
    rows(("lam", "loss"), [("0.0", 1.5), ("0.5", "2,5")], numbers=(0, 1)),
    text("One sentence."),
)


def test_every_format_is_described_and_renders_everything() -> None:
    assert {"table", "csv", "md", "latex"} <= set(formats.names())
    for name in formats.names():
        assert import_module(f"rebasin_cli.report.formats.{name}").HELP
        rendered = formats.render(REPORT, name)
        assert rendered.endswith("\n")
        assert "\x1b" not in rendered
        assert "1.5" in rendered


def test_csv_is_the_main_table_and_reads_back() -> None:
    assert list(csv.reader(io.StringIO(formats.render(REPORT, "csv")))) == [
        ["lam", "loss"],
        ["0.0", "1.5"],
        ["0.5", "2,5"],
    ]
    without = Document(tuple(part for part in REPORT.parts if isinstance(part, Facts)))
    assert list(csv.reader(io.StringIO(formats.render(without, "csv"))))[:2] == [
        ["name", "value"],
        ["file_name", "a|b_1%.pt"],
    ]


def test_markdown_escapes_what_it_would_interpret() -> None:
    rendered = formats.render(REPORT, "md")
    assert "| file\\_name | a\\|b\\_1%.pt |" in rendered
    assert "| ---: | ---: |" in rendered
    assert rendered.endswith("One sentence.\n")


def test_latex_escapes_what_it_would_interpret() -> None:
    rendered = formats.render(REPORT, "latex")
    assert r"% file_name: a|b_1%.pt" in rendered
    assert r"\begin{tabular}{rr}" in rendered
    assert "% One sentence." in rendered


def test_a_terminal_table_aligns_numbers_to_the_right() -> None:
    assert formats.render(document(REPORT.parts[1]), "table") == "lam  loss\n0.0   1.5\n0.5   2,5\n"


def test_empty_parts_are_left_out() -> None:
    assert document(None, facts([]), document(text("a"))).parts == (text("a"),)
    assert isinstance(REPORT.parts[1], Rows)


@pytest.mark.parametrize("name", ["table", "csv", "md", "latex"])
def test_rendering_is_deterministic(name: str) -> None:
    assert formats.render(REPORT, name) == formats.render(REPORT, name)
