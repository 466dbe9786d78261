"""Tables for a terminal. Nothing in them is cut: a long value is folded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rebasin_cli.report.layout import Document, Facts, Part, Rows

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

HELP = "tables for people"
UNBOUNDED = 100_000
"""Columns where there is no terminal: nothing is wrapped."""


def render(document: Document) -> str:
    """The document without colors, at any width."""
    from rich.console import Console

    console = Console(width=UNBOUNDED, color_system=None, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(renderable(document))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def renderable(document: Document) -> Group:
    """The parts one under the other, an empty line between them."""
    from rich.console import Group
    from rich.text import Text

    spaced: list[RenderableType] = []
    for part in document.parts:
        spaced += [Text(""), _part(part)] if spaced else [_part(part)]
    return Group(*spaced)


def _part(part: Part) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    if isinstance(part, Facts):
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold", overflow="fold")
        table.add_column(overflow="fold")
        for name, value in part.entries:
            table.add_row(_cell(name), _cell(value))
        return table
    if isinstance(part, Rows):
        table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False)
        for index, heading in enumerate(part.headings):
            side = "right" if index in part.numbers else "left"
            table.add_column(heading, justify=side, overflow="fold", header_style="bold")  # type: ignore[arg-type]
        for line in part.lines:
            table.add_row(*map(_cell, line))
        return table
    return Text("\n").join([_cell(line) for line in part.lines])


def _cell(value: str) -> Text:
    """Shown as it is: nothing in it is markup."""
    from rich.text import Text

    return Text(value, overflow="fold")
