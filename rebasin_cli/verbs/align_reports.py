"""Reading align reports: they name the files that `interpolate` works on when the user names none."""

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
    """The parts of a report that a later verb needs: the files, and the model with its arguments and input.

    `input_stated` says that the user stated the input, which otherwise was known or guessed.
    """

    path: Path
    a: Path
    b: Path
    out: Path
    model: str
    model_args: Mapping[str, Any]
    inputs: tuple[str, ...]
    input_stated: bool
    states: Mapping[Path, tuple[str | None, bool]]
    sha256: Mapping[Path, str]


def newest_report(directory: Path) -> AlignReport:
    """The newest report in this directory; of several with the same time, the last by name.

    Raises:
        UsageError: there is none.
    """
    candidates = [path for path in sorted(directory.glob("*.json")) if path.is_file() and _looks_right(path)]
    for path in sorted(candidates, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True):
        if _document(path) is not None:
            return read_report(path)
    raise UsageError(
        "no checkpoints were given, and the current directory has no align report",
        hint="run 'rebasin align A B --model SPEC' here first, or name the checkpoints: rebasin interpolate A B …",
    )


def read_report(path: Path) -> AlignReport:
    """Read a report written by `align`.

    Raises:
        UsageError: it is no such report, it is that of a failed or a dry run, or a file that it names is missing.
    """
    data = _document(path)
    if data is None:
        raise UsageError(f"{path}: not an align report, or that of a failed or a dry run")
    a, b, out = (_existing(path, str(data[name])) for name in ("a", "b", "out"))
    state, sha256 = data.get("state") or {}, data.get("sha256") or {}
    of_a, of_b = (_state(state.get(name)) for name in "ab")
    return AlignReport(
        path=path,
        a=a,
        b=b,
        out=out,
        model=str(data["model"]),
        model_args=dict(data.get("model_args") or {}),
        inputs=_inputs(str(data.get("input") or "")),
        input_stated=bool(data.get("inputs") or data.get("input_file")),
        states={a: of_a, b: of_b, out: of_b},
        sha256={file: str(sha256[name]) for name, file in (("a", a), ("b", b), ("out", out)) if sha256.get(name)},
    )


def _state(found: Any) -> tuple[str | None, bool]:
    """Which state dict of a file was read: its key, and whether the moving average was taken."""
    if not isinstance(found, dict):
        return None, False
    key = found.get("key")
    return (None if key is None else str(key)), bool(found.get("ema"))


def _looks_right(path: Path) -> bool:
    """Whether it can be an align report, from its size and its first bytes."""
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
    """The file that the report names, relative to the current directory or to that of the report."""
    for path in (Path(name), report.parent / name):
        if path.exists():
            return path
    raise UsageError(f"{name}: named by the report {report}, but missing", hint="name the checkpoints instead")


def _inputs(described: str) -> tuple[str, ...]:
    """The report's description of the input as values of `--input`; empty where `--input` cannot express it."""
    parts = tuple(part.strip() for part in described.split(", ") if part.strip())
    return parts if all(re.fullmatch(r"(\w+=)?\d+(x\d+)*(:\w+)?", part) for part in parts) else ()


def result_beside(report: Path) -> Path:
    """`<report's stem>-interpolation.json` beside the report."""
    return report.with_name(f"{report.stem}-interpolation.json")
