"""The registry of starts: every file in this folder that defines `START`, ordered by rank."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from rebasin_cli.errors import UsageError
from rebasin_cli.matching.start import Start

__all__ = ["STARTS", "Start", "find_start", "starts_of"]

STARTS: tuple[Start, ...] = tuple(
    sorted(
        (import_module(f"{__name__}.{found.name}").START for found in iter_modules(__path__)),
        key=lambda start: (start.rank, start.name),
    )
)


def find_start(name: str) -> Start:
    """The start with this name.

    Raises:
        UsageError: there is none.
    """
    for start in STARTS:
        if start.name == name:
            return start
    raise UsageError(f"unknown start {name!r}", hint=f"starts are: {', '.join(start.name for start in STARTS)}")


def starts_of(effort: str) -> tuple[str, ...]:
    """The names of the starts that an effort includes, by rank."""
    return tuple(start.name for start in STARTS if effort in start.efforts)
