"""What a report consists of, before any output format: facts, rows under headings, and sentences. Plain data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rebasin_cli.report.text import printable


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with values, one pair a line; an empty name continues the one above."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Rows:
    """A table: headings, lines, and the indices of the columns that hold numbers."""

    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    numbers: frozenset[int]


@dataclass(frozen=True, slots=True)
class Lines:
    """Sentences or names, one a line."""

    lines: tuple[str, ...]


Part = Facts | Rows | Lines


@dataclass(frozen=True, slots=True)
class Document:
    """The parts of a report, in their order."""

    parts: tuple[Part, ...]


def facts(entries: Iterable[tuple[str, object]]) -> Facts:
    """Names and values; characters that could control a terminal are escaped."""
    return Facts(tuple((printable(name), printable(value)) for name, value in entries))


def rows(headings: Sequence[str], lines: Iterable[Sequence[object]], *, numbers: Sequence[int] = ()) -> Rows:
    """Lines under headings; the columns whose indices are in `numbers` are aligned to the right."""
    cells = tuple(tuple(printable(value) for value in line) for line in lines)
    return Rows(tuple(map(printable, headings)), cells, frozenset(numbers))


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
