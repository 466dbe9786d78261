"""What a report consists of, before any output format: facts, rows under headings, and sentences. Plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rebasin_cli.report.text import printable


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with values, one pair a line; an empty name continues the one above.

    Attributes:
        for_terminal: a drawing in characters, which other formats leave out.
    """

    entries: tuple[tuple[str, str], ...]
    for_terminal: bool = False


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: headings, lines, and the indices of the columns that hold numbers.

    Attributes:
        exact: the lines for programs: numbers that are not rounded and have no unit.
        exact_headings: those of the exact lines; empty where they are the same.
        printed: the lines for pages and papers, with errors; empty where they are the same.
    """

    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    numbers: frozenset[int]
    exact: tuple[tuple[str, ...], ...] = ()
    exact_headings: tuple[str, ...] = ()
    printed: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Lines:
    """Sentences or names, one a line."""

    lines: tuple[str, ...]


Part = Facts | Rows | Lines


@dataclass(frozen=True, slots=True)
class Document:
    """The parts of a report, in their order."""

    parts: tuple[Part, ...]


def facts(entries: Iterable[tuple[str, object]], *, for_terminal: bool = False) -> Facts:
    """Names and values; characters that could control a terminal are escaped."""
    return Facts(tuple((printable(name), printable(value)) for name, value in entries), for_terminal)


def rows(
    headings: Sequence[str],
    lines: Iterable[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    exact: Iterable[Sequence[object]] = (),
    exact_headings: Sequence[str] = (),
    printed: Iterable[Sequence[object]] = (),
) -> Rows:
    """Lines under headings; the columns whose indices are in `numbers` are aligned to the right."""
    cells, full, paper = (
        tuple(tuple(printable(value) for value in line) for line in found) for found in (lines, exact, printed)
    )
    names, full_names = (tuple(map(printable, found)) for found in (headings, exact_headings))
    return Rows(names, cells, frozenset(numbers), full, full_names, paper)


def text(*lines: object) -> Lines:
    """Sentences, one a line."""
    return Lines(tuple(printable(line) for line in lines))


def document(*parts: Part | Document | None) -> Document:
    """The parts in their order; those of a document one by one, None left out, as is what is empty."""
    found: list[Part] = []
    for part in parts:
        if isinstance(part, Document):
            found += part.parts
        elif part is not None and not (isinstance(part, Facts) and not part.entries):
            found.append(part)
    return Document(tuple(found))
