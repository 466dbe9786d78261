"""Comma-separated values: the first table of a report, or its facts where it has none."""

from __future__ import annotations

import csv
import io

from rebasin_cli.report.layout import Document, Facts, Rows

HELP = "comma-separated values, of the main table"


def render(document: Document) -> str:
    """RFC 4180, with newlines instead of carriage returns."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    table = next((part for part in document.parts if isinstance(part, Rows)), None)
    if table is not None:
        writer.writerows([table.exact_headings or table.headings, *(table.exact or table.lines)])
        return buffer.getvalue()
    writer.writerow(("name", "value"))
    for part in document.parts:
        if isinstance(part, Facts) and not part.for_terminal:
            writer.writerows(part.entries)
    return buffer.getvalue()
