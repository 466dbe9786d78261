"""Text at the width of the terminal: paragraphs, and names with explanations beside them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from typing import TypedDict

NARROWEST, WIDEST, INDENT = 40, 100, 28


class _Unbroken(TypedDict):
    break_long_words: bool
    break_on_hyphens: bool


UNBROKEN: _Unbroken = {"break_long_words": False, "break_on_hyphens": False}
"""Options, paths and commands stay whole."""


def width() -> int:
    """Columns that help uses."""
    return max(NARROWEST, min(WIDEST, shutil.get_terminal_size((80, 24)).columns))


def wrapped(text: str, columns: int) -> str:
    """Paragraphs, separated by empty lines, at a width."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(part.split()), columns, **UNBROKEN) for part in paragraphs)


def rows(entries: Iterable[tuple[str, str]], columns: int, *, indent: int = INDENT) -> list[str]:
    """Lines with names on the left and explanations beside them; below, where a name is too long."""
    lines = []
    for name, text in entries:
        body = textwrap.wrap(text, max(20, columns - indent), **UNBROKEN) or [""]
        head = f"  {name}"
        if len(head) + 2 <= indent:
            lines.append(f"{head:<{indent}}{body[0]}")
            body = body[1:]
        else:
            lines.append(head)
        lines += [" " * indent + line for line in body]
    return [line.rstrip() for line in lines]
