"""The report of an alignment, found again: which files `interpolate` works on when none are named."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebasin_cli.errors import UsageError

SCHEMA = "rebasin.align/1"
LARGEST = 64 * 2**20


@dataclass(frozen=True, slots=True)
class AlignReport:
    """What a report says that a later verb needs: the files, and the model with its arguments and input."""

    path: Path
    a: Path
    b: Path
    out: Path
    model: str
    model_args: Mapping[str, Any]
    inputs: tuple[str, ...]


def newest_report(directory: Path) -> AlignReport:
    """The report in this directory that was written last; of equals the last by name.

    Raises:
        UsageError: there is none.
    """
    candidates = [path for path in sorted(directory.glob("*.json")) if path.is_file() and _looks_right(path)]
    for path in sorted(candidates, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        if _document(path) is not None:
            return read_report(path)
    raise UsageError(
        "no checkpoints were given, and the current directory holds no report of an alignment",
        hint="run 'rebasin align A B --model SPEC' here first, or name the checkpoints: rebasin interpolate A B …",
    )


def read_report(path: Path) -> AlignReport:
    """Read a report that `align` wrote.

    Raises:
        UsageError: it is none, it is that of a failed or a dry run, or a file it names is gone.
    """
    data = _document(path)
    if data is None:
        raise UsageError(f"{path}: not the report of an alignment that wrote its output")
    return AlignReport(
        path=path,
        a=_existing(path, str(data["a"])),
        b=_existing(path, str(data["b"])),
        out=_existing(path, str(data["out"])),
        model=str(data["model"]),
        model_args=dict(data.get("model_args") or {}),
        inputs=_inputs(str(data.get("input") or "")),
    )


def _looks_right(path: Path) -> bool:
    """Whether it is worth reading as a whole."""
    try:
        with path.open("rb") as stream:
            return SCHEMA.encode() in stream.read(4096) and path.stat().st_size <= LARGEST
    except OSError:
        return False


def _document(path: Path) -> Mapping[str, Any] | None:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA or document.get("status") != "ok":
        return None
    data = document.get("data")
    complete = isinstance(data, dict) and all(isinstance(data.get(name), str) for name in ("a", "b", "out", "model"))
    return data if complete and isinstance(data, dict) else None


def _existing(report: Path, name: str) -> Path:
    """The file as the report names it: from here, or from where the report lies."""
    for path in (Path(name), report.parent / name):
        if path.exists():
            return path
    raise UsageError(
        f"{name}: this file, which the report {report} names, is gone", hint="name the checkpoints instead"
    )


def _inputs(described: str) -> tuple[str, ...]:
    """The input in words, as `--input` reads it; nothing where it cannot be read back."""
    parts = tuple(part.strip() for part in described.split(", ") if part.strip())
    return parts if all(re.fullmatch(r"(\w+=)?\d+(x\d+)*(:\w+)?", part) for part in parts) else ()


def result_beside(report: Path) -> Path:
    """`<report's stem>-interpolation.json` beside the report."""
    return report.with_name(f"{report.stem}-interpolation.json")
