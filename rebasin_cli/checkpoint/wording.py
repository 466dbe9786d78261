"""How names, lists and sizes from untrusted files are put into one-line messages."""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST_NAME = 200
_SHOWN = 3


def quoted(name: object) -> str:
    """A name from a file as data: quoted, control characters escaped, cut when absurdly long."""
    text = repr(str(name))
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…'"


def few(names: Iterable[object], *, shown: int = _SHOWN) -> str:
    """The first few names and how many more there are: `'a', 'b', 'c' and 12 more`."""
    every = [quoted(name) for name in names]
    rest = len(every) - shown
    return ", ".join(every[:shown]) + (f" and {rest:,} more" if rest > 0 else "")


def size(nbytes: int) -> str:
    """A number of bytes, exact, with digits grouped."""
    return f"{nbytes:,} bytes"


def one_line(text: object, *, longest: int = 300) -> str:
    """Somebody else's error text folded into one line."""
    folded = " ".join(str(text).split())
    return folded if len(folded) <= longest else folded[: longest - 1] + "…"
