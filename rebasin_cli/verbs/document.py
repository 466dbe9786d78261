"""JSON documents: one envelope for every verb, finite numbers only.

{"schema": "rebasin.<verb>/1", "command": "<verb>", "status": "ok" | "error",
 "data": {…} | null, "warnings": [text], "error": null | {"slug", "exit_code", "message", "path", "hint"}}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from html import escape
from math import isfinite
from pathlib import Path
from typing import Any

from rebasin_cli.errors import RebasinError

LONGEST_LIST = 8
"""Lists with more entries are counted in a notebook, not shown."""


def envelope(
    verb: str, data: Any, *, warnings: Sequence[str] = (), error: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The document of one run: `data` is anything `plain` understands, `error` comes from `describe_error`.

    A result's own `warnings` are those of the run and stand beside the data.
    """
    content = plain(data)
    if isinstance(content, dict):
        content.pop("warnings", None)
    return {
        "schema": f"rebasin.{verb}/1",
        "command": verb,
        "status": "ok" if error is None else "error",
        "data": content,
        "warnings": list(warnings),
        "error": error,
    }


def describe_error(error: RebasinError) -> dict[str, Any]:
    """What a script can know of a failure."""
    return {
        "slug": error.slug,
        "exit_code": error.exit_code,
        "message": error.message,
        "path": error.path,
        "hint": error.hint,
    }


class Result:
    """Base of the verbs' results: a notebook shows one as a table of its data."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in _flat(plain(self))
        )
        return f"<table>{rows}</table>"


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Names and values of a document; of a long list its length."""
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else name)
    elif isinstance(data, list) and (len(data) > LONGEST_LIST or any(isinstance(item, (dict, list)) for item in data)):
        yield prefix, f"{len(data):,} entries"
    elif isinstance(data, list):
        yield prefix, ", ".join(map(str, data))
    elif data is not None:
        yield prefix, f"{data:.6g}" if isinstance(data, float) else str(data)


def dumps(document: Any) -> str:
    """One line of strict JSON, ASCII only: it survives any terminal, locale and parser."""
    return json.dumps(plain(document), allow_nan=False)


def pretty(document: Any) -> str:
    """The same document for a file that people read, ending in a newline."""
    return json.dumps(plain(document), allow_nan=False, indent=2, ensure_ascii=False) + "\n"


def plain(value: Any) -> Any:
    """Dataclasses, paths, mappings and sequences as JSON knows them; a number that is not finite becomes null.

    A result may say itself what its data are, by a method `to_json`.
    """
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "to_json"):
        return plain(value.to_json())
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
