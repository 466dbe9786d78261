"""Words and numbers: nothing from a file moves a cursor, no share is flattered, no document holds NaN."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from rebasin_cli.errors import OutputError
from rebasin_cli.report.formats.table import renderable
from rebasin_cli.report.layout import document, facts, rows
from rebasin_cli.report.text import counted, printable, seconds, share, shell, size
from rebasin_cli.verbs.document import Result, describe_error, dumps, envelope, plain, pretty


@given(st.text())
def test_printable_text_is_one_harmless_line(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1


def test_bytes_of_a_file_name_that_are_no_text_are_shown() -> None:
    assert printable("a\udcff\x1b[31m\u202eb") == "a\\xff\\x1b[31m\\u202eb"
    printable("\udfff").encode()


@pytest.mark.parametrize(
    ("fraction", "words"), [(1.0, "100 %"), (0.99999, "99.9 %"), (0.9994, "99.9 %"), (0.5, "50.0 %"), (0.0, "0.0 %")]
)
def test_only_everything_is_a_hundred_per_cent(fraction: float, words: str) -> None:
    assert share(fraction) == words


def test_units_of_size_and_time() -> None:
    assert [size(n) for n in (0, 1023, 1536, 20 << 20, 3 << 40)] == ["0 B", "1023 B", "1.5 KiB", "20 MiB", "3.0 TiB"]
    assert [seconds(s) for s in (0.04, 59.9, 60, 3725)] == ["0.0 s", "59.9 s", "1 min 00 s", "1 h 02 min"]
    assert [counted(1, "pass", "passes"), counted(2000, "unit")] == ["1 pass", "2,000 units"]
    assert shell(["a b", Path("c'd"), 3]) == "'a b' 'c'\"'\"'d' 3"


@dataclass(frozen=True)
class Sample:
    path: Path
    numbers: tuple[float, ...]
    warnings: tuple[str, ...] = ("careful",)


def test_documents_are_strict_json() -> None:
    sample = Sample(Path("x"), (1.5, float("nan"), float("inf")))
    sent = envelope("align", sample, warnings=sample.warnings)
    expected = {"path": "x", "numbers": [1.5, None, None]}
    for text in (dumps(sent), pretty(sent)):
        read = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in a document"))
        assert read["data"] == expected
        assert read["warnings"] == ["careful"]
    with pytest.raises(TypeError):
        plain(object())


@dataclass(frozen=True, slots=True)
class Shown(Result):
    path: Path
    numbers: tuple[float, ...]
    nested: dict[str, float | None]


def test_a_notebook_shows_a_result_as_a_table() -> None:
    html = Shown(Path("<b>.pt"), (1.0, 2.0), {"loss": 0.123456789, "nothing": None})._repr_html_()
    assert "<tr><th>path</th><td>&lt;b&gt;.pt</td></tr>" in html
    assert "<tr><th>nested.loss</th><td>0.123457</td></tr>" in html
    assert "nothing" not in html
    assert "<td>100 entries</td>" in Shown(Path(), (0.0,) * 100, {})._repr_html_()


def test_an_error_is_described_completely() -> None:
    error = OutputError("x: exists", path="x", hint="--force", slug="exists")
    sent = envelope("align", None, error=describe_error(error))
    assert sent["status"] == "error"
    assert sent["error"] == {
        "slug": "exists", "exit_code": 6, "message": "x: exists", "path": "x", "hint": "--force"
    }  # fmt: skip


@pytest.mark.parametrize("width", [20, 40, 80])
def test_a_narrow_table_loses_nothing(width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=None, markup=False)
    table = rows(("name", "n"), [("[red]layer.with.a.long.name[/red]", "1234567")], numbers=(1,))
    console.print(renderable(document(table, facts([("path", "/a/long/path/to/some/file.safetensors")]))))
    joined = "".join(stream.getvalue().split())
    assert "1234567" in joined
    assert joined.replace("1234567", "").startswith("namen[red]layer.with.a.long.name[/red]")
    assert "…" not in joined
    letters = sorted("/a/long/path/to/some/file.safetensors")
    assert all(stream.getvalue().count(letter) >= letters.count(letter) for letter in letters)
