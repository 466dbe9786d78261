"""Numbers and names as text: sizes have units, shares are percentages, names from files are escaped."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence


def printable(value: object) -> str:
    """Text from outside with every control, surrogate and direction-changing character escaped, on one line."""
    return "".join(character if character.isprintable() else _escape(character) for character in str(value))


def _escape(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def size(count: int | None) -> str:
    """Bytes with a binary unit: 102 MiB."""
    if count is None:
        return "unknown"
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024.0:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 10 else f"{amount:.1f} {unit}"
        amount /= 1024.0
    return f"{amount:.1f} TiB"


def share(fraction: float | None) -> str:
    """A fraction as per cent, never rounded up to 100 %."""
    if fraction is None:
        return "unknown"
    if 0.9995 <= fraction < 1.0:
        return "99.9 %"
    return f"{100 * fraction:.1f} %" if fraction < 1.0 else "100 %"


def number(value: float | None) -> str:
    """Four significant figures."""
    return "-" if value is None else f"{value:.4g}"


def with_error(value: float | None, error: float | None, scale: float = 1.0) -> str:
    """A number with its standard error, both to the first figure of the error, or to two where that is a 1."""
    if value is None or error is None or not error:
        return number(None if value is None else scale * value) + ("" if error is None or value is None else " ± 0")
    deviation = scale * error
    places = -math.floor(math.log10(deviation))
    if f"{deviation:.1e}".startswith("1"):
        places += 1
    if places > 8:
        return f"{number(scale * value)} ± {deviation:.1g}"
    places = max(0, places)
    return f"{scale * value:.{places}f} ± {deviation:.{places}f}"


def counted(count: int, singular: str, plural: str | None = None) -> str:
    """The count with its noun: 1 group, 37 groups, 16,384 units."""
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def seconds(value: float) -> str:
    if value < 60.0:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def shell(words: Sequence[object]) -> str:
    """A command line that a shell reads back as these words."""
    import shlex

    return " ".join(shlex.quote(os.fspath(word) if isinstance(word, os.PathLike) else str(word)) for word in words)
