"""Markdown, as code hosts and notebooks show it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rebasin_cli.report.layout import Document, Facts, Part, Rows

HELP = "Markdown"


def render(document: Document) -> str:
    """Tables with pipes; sentences as paragraphs."""
    return "\n\n".join(_part(part) for part in document.parts if not (isinstance(part, Facts) and part.for_terminal))


def _part(part: Part) -> str:
    if isinstance(part, Facts):
        return _table(("", ""), part.entries, frozenset())
    if isinstance(part, Rows):
        return _table(part.headings, part.printed or part.lines, part.numbers)
    return "\n\n".join(map(_escaped, part.lines))


def _table(headings: Sequence[str], lines: Sequence[Sequence[str]], numbers: frozenset[int]) -> str:
    rule = ["---:" if index in numbers else "---" for index in range(len(headings))]
    cells = [[_escaped(cell) for cell in line] for line in (headings, *lines)]
    written = [f"| {' | '.join(line)} |" for line in (cells[0], rule, *cells[1:])]
    return "\n".join(written)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)
