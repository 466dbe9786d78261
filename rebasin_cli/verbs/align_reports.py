"""Reading align reports: they name the files that `interpolate` works on when the user names none."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rebasin_cli.errors import UsageError
from rebasin_cli.verbs.output_paths import report_path

SCHEMA = "rebasin.align/1"
LARGEST = 64 * 2**20


@dataclass(frozen=True, slots=True)
class AlignReport:
    """The parts of a report that a later verb needs: the files, and the model with its arguments and input."""

    path: Path
    a: Path
    b: Path
    out: Path
    model: str
    model_args: Mapping[str, Any]
    inputs: tuple[str, ...]
    input_file: Path | None
    input_stated: bool
    """The user stated the input, which otherwise was known or guessed."""
    method: str | None
    states: Mapping[Path, tuple[str | None, bool]]
    rounded: bool
    """The maps of the alignment were rounded to the file's types, so that the outputs agree within that rounding."""
    sha256: Mapping[Path, str]
    code: Mapping[Path, str]
    """SHA-256 of the Python files that the alignment depended on."""


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
    places = data.get("places") or {}
    a, b, out = (_existing(path, str(data[name]), places.get(name)) for name in ("a", "b", "out"))
    state, sha256 = data.get("state") or {}, data.get("sha256") or {}
    input_file = data.get("input_file")
    of_a, of_b = (_state(state.get(name)) for name in "ab")
    return AlignReport(
        path=path,
        a=a,
        b=b,
        out=out,
        model=model_from_here(path, str(data["model"]), places.get("model")),
        model_args=dict(data.get("model_args") or {}),
        inputs=() if input_file else _stated(data.get("inputs")) or _inputs(str(data.get("input") or "")),
        input_file=_existing(path, str(input_file), places.get("input_file")) if input_file else None,
        input_stated=bool(data.get("inputs") or data.get("input_file")),
        method=None if data.get("method") is None else str(data["method"]),
        states={a: of_a, b: of_b, out: of_b},
        rounded=(data.get("symmetries") or {}).get("rounding_error") is not None,
        sha256={file: str(sha256[name]) for name, file in (("a", a), ("b", b), ("out", out)) if sha256.get(name)},
        code={
            _existing(path, name, entry.get("place")): str(entry.get("sha256"))
            for name, entry in (data.get("code") or {}).items()
        },
    )


def report_of(out: Path) -> AlignReport | None:
    """The report of the alignment that wrote this file, where it lies beside the file as `align` puts it."""
    path = report_path(out)
    if not path.is_file() or not _looks_right(path):
        return None
    try:
        found = read_report(path)
    except UsageError:
        return None
    return found if found.out.exists() and found.out.samefile(out) else None


def states_of(checkpoints: Sequence[Path], key: str | None, ema: bool) -> dict[Path, tuple[str | None, bool]]:
    """Which state dict of each file is read, as (key, ema).

    Where the report of an alignment lies beside one of the files, those of its files are read that were aligned. What
    the user says holds for all others, and for these too where it names a state that the report does not.
    """
    known: dict[Path, tuple[str | None, bool]] = {}
    for report in filter(None, map(report_of, checkpoints)):
        for file, state in report.states.items():
            known |= {path: state for path in checkpoints if path.exists() and path.samefile(file)}
    said = key is not None or ema
    if said and (key, ema) not in known.values():
        known = {}
    return {path: known.get(path, (key, ema)) for path in checkpoints}


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


def _existing(report: Path, name: str, place: object = None) -> Path:
    """The file that the report names: where it lies from the report, or relative to the current directory.

    Args:
        place: its path relative to the report's directory.
    """
    beside = None if place is None else Path(os.path.normpath(report.parent / str(place)))
    if beside is not None and beside.exists():
        return Path(name) if Path(name).exists() and Path(name).samefile(beside) else beside
    for path in (Path(name), report.parent / name):
        if path.exists():
            return path
    raise UsageError(f"{name}: named by the report {report}, but missing", hint="name the checkpoints instead")


def model_from_here(report: Path, spec: str, place: object) -> str:
    """The model spec, with its file or directory as it is found from here.

    Args:
        report: the file that names the model.
        place: the path of the model's file or directory, relative to the report's directory.
    """
    if place is None:
        return spec
    before, sign, after = spec.partition(":") if _in_directory(spec) else spec.rpartition(":")
    if not sign:
        return spec
    try:
        found = _existing(report, after if _in_directory(spec) else before, place)
    except UsageError:
        return spec  # reported where the model is built
    return f"{before}:{found}" if _in_directory(spec) else f"{found}:{after}"


def places(report: Path, **files: Path | None) -> dict[str, str]:
    """The files' paths relative to the report's directory: they hold wherever the whole is moved to."""
    start = os.path.abspath(report.parent)
    return {name: os.path.relpath(os.path.abspath(path), start) for name, path in files.items() if path is not None}


def code_of(report: Path, files: Iterable[Path]) -> dict[str, dict[str, str]]:
    """SHA-256 and place of Python files, by the names that the user gave them."""
    return {
        str(path): {"place": places(report, file=path)["file"], "sha256": sha256_of(path)}
        for path in files
        if path.is_file()
    }


def sha256_of(path: Path) -> str:
    """Of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def python_file(spec: str | None) -> Path | None:
    """The file of a spec such as `net.py:build`; None for specs of other kinds."""
    file, sign, _ = (spec or "").rpartition(":")
    return Path(file) if sign and file.endswith(".py") and Path(file).is_file() else None


def _in_directory(spec: str) -> bool:
    return spec.partition(":")[0] in ("transformers", "diffusers")


def model_path(spec: str | None) -> Path | None:
    """The Python file or the directory that a model spec names; None for other specs, and where it is absent."""
    if spec is None or not _in_directory(spec):
        return python_file(spec)
    directory = Path(spec.partition(":")[2])
    return directory if directory.exists() else None


def _stated(inputs: object) -> tuple[str, ...]:
    """The values of `--input` that the user gave."""
    return tuple(map(str, inputs)) if isinstance(inputs, list) else ()


def _inputs(described: str) -> tuple[str, ...]:
    """The report's description of the input as values of `--input`; empty where `--input` cannot express it."""
    parts = tuple(part.strip() for part in described.split(", ") if part.strip())
    return parts if all(re.fullmatch(r"(\w+=)?\d+(x\d+)*(:\w+)?", part) for part in parts) else ()


def result_beside(report: Path) -> Path:
    """`<report's stem>-interpolation.json` beside the report."""
    return report.with_name(f"{report.stem}-interpolation.json")
