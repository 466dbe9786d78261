"""Output formats of a report: one file each, found by its module name, which is what `--format` takes.

A format's module has `HELP`, a phrase for `rebasin help`, and `render(document) -> str`. Formats are imported when they
are used, so that their names cost nothing.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pkgutil import iter_modules

from rebasin_cli.report.layout import Document


@cache
def names() -> tuple[str, ...]:
    """The names of the formats that documents are rendered in."""
    return tuple(sorted(module.name for module in iter_modules(__path__)))


def help_of(name: str) -> str:
    """What the format is for, in a phrase."""
    return str(import_module(f"{__name__}.{name}").HELP)


def render(document: Document, name: str) -> str:
    """The document as text, ending in a newline."""
    text: str = import_module(f"{__name__}.{name}").render(document)
    return text if text.endswith("\n") else f"{text}\n"
