"""The few shapes that tables have: facts in two columns, and rows under headings. Nothing in them is ever cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rebasin_cli.report.text import printable


def cell(value: object, style: str = "") -> Text:
    """Text shown as it is: nothing in it is markup, and it folds where it must rather than losing its end."""
    return value if isinstance(value, Text) else Text(printable(value), style=style, overflow="fold")


def facts(entries: Iterable[tuple[str, object]]) -> Table:
    """Names on the left, what is the case on the right."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=False, overflow="fold")
    table.add_column(overflow="fold")
    for name, value in entries:
        table.add_row(cell(name), cell(value))
    return table


def rows(headings: Sequence[str], lines: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()) -> Table:
    """Lines under headings; the columns whose indices are in `numbers` are set to the right."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in numbers else "left", overflow="fold", header_style="bold")
    for line in lines:
        table.add_row(*(cell(value) for value in line))
    return table


def stacked(*parts: RenderableType | None) -> Group:
    """One under the other, an empty line between; what is None is left out."""
    spaced: list[RenderableType] = []
    for part in parts:
        if part is not None:
            spaced += [Text(""), part] if spaced else [part]
    return Group(*spaced)
