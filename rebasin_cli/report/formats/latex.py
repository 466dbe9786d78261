"""LaTeX tables (package booktabs)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rebasin_cli.report.layout import Document, Facts, Part, Rows

HELP = "LaTeX tables, with booktabs"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def render(document: Document) -> str:
    """One `tabular` for each table, or of the facts where there is none; all else as comments."""
    tables = any(isinstance(part, Rows) for part in document.parts)
    shown = [part for part in document.parts if not (isinstance(part, Facts) and part.for_terminal)]
    return "\n\n".join(_part(part, facts_as_comments=tables) for part in shown)


def _part(part: Part, *, facts_as_comments: bool) -> str:
    if isinstance(part, Rows):
        return _tabular(part.headings, part.printed or part.lines, part.numbers, len(part.headings))
    if isinstance(part, Facts) and not facts_as_comments:
        return _tabular((), part.entries, frozenset(), 2)
    lines = (f"{name}: {value}" for name, value in part.entries) if isinstance(part, Facts) else part.lines
    return "\n".join(f"% {line}" for line in lines)


def _tabular(headings: Sequence[str], lines: Sequence[Sequence[str]], numbers: frozenset[int], columns: int) -> str:
    shape = "".join("r" if index in numbers else "l" for index in range(columns))
    head = [f"{_line(headings)}", r"\midrule"] if headings else []
    body = [_line(line) for line in lines]
    return "\n".join([f"\\begin{{tabular}}{{{shape}}}", r"\toprule", *head, *body, r"\bottomrule", r"\end{tabular}"])


def _line(cells: Sequence[str]) -> str:
    return f"{' & '.join(map(_escaped, cells))} \\\\"


def _escaped(text: str) -> str:
    return re.sub(r"[\\~^&%$#_{}±]", lambda found: _SPECIAL[found[0]], text)
