"""The contents of checkpoints as a report."""

from __future__ import annotations

from rebasin_cli.report.layout import Document, Part, document, facts, rows
from rebasin_cli.report.text import counted, size
from rebasin_cli.verbs.inspect import Inspection, InspectResult


def inspect_table(result: InspectResult, *, verbose: bool = False) -> Document:
    """One block for each file; with `verbose`, every tensor."""
    blocks = [part for entry in result.files for part in _blocks(entry, verbose)]
    return document(*blocks)


def _blocks(entry: Inspection, verbose: bool) -> list[Part]:
    dtypes = ", ".join(f"{count:,} {name}" for name, count in entry.dtypes.items())
    lines: list[tuple[str, object]] = [
        ("file", entry.path),
        ("format", f"{entry.kind}, {size(entry.file_bytes)} in {counted(entry.files, 'file')}"),
        ("tensors", f"{entry.tensors:,} with {entry.elements:,} elements ({dtypes})"),
        (
            "looks like",
            " or ".join(entry.looks_like) or "no model known by name; use --model path/to/file.py:function",
        ),
    ]
    if entry.wrapper:
        lines.insert(2, ("found under", entry.wrapper))
    lines += [("tied", " = ".join(group)) for group in entry.ties]
    lines += [(f"metadata {name}", value) for name, value in entry.metadata.items()]
    parts: list[Part] = [facts(lines)]
    if verbose:
        contents = [(line.key, line.dtype, "x".join(map(str, line.shape)) or "scalar") for line in entry.contents]
        parts.append(rows(("tensor", "dtype", "shape"), contents))
    return parts
