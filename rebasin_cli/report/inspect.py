"""What lies in checkpoints, in words."""

from __future__ import annotations

from rich.console import Group, RenderableType

from rebasin_cli.report.layout import facts, rows, stacked
from rebasin_cli.report.text import counted, size
from rebasin_cli.verbs.inspect import Inspection, InspectResult


def inspect_table(result: InspectResult, *, verbose: bool = False) -> Group:
    """One block for each file; with `verbose`, every tensor."""
    blocks = [part for entry in result.files for part in _blocks(entry, verbose)]
    return stacked(*blocks)


def _blocks(entry: Inspection, verbose: bool) -> list[RenderableType]:
    dtypes = ", ".join(f"{count:,} {name}" for name, count in entry.dtypes.items())
    lines: list[tuple[str, object]] = [
        ("file", entry.path),
        ("format", f"{entry.kind}, {size(entry.file_bytes)} in {counted(entry.files, 'file')}"),
        ("tensors", f"{entry.tensors:,} of {entry.elements:,} numbers ({dtypes})"),
        (
            "looks like",
            " or ".join(entry.looks_like) or "no named model; use --model path/to/file.py:callable",
        ),
    ]
    if entry.wrapper:
        lines.insert(2, ("found under", entry.wrapper))
    lines += [("tied", " = ".join(group)) for group in entry.ties]
    lines += [(f"metadata {name}", value) for name, value in entry.metadata.items()]
    parts: list[RenderableType] = [facts(lines)]
    if verbose:
        contents = [(line.key, line.dtype, "x".join(map(str, line.shape)) or "scalar") for line in entry.contents]
        parts.append(rows(("tensor", "dtype", "shape"), contents))
    return parts
