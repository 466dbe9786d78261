"""`--lam`: which networks between checkpoints are wanted, where not a grid of them.

Plain numbers are points of the line; outside [0, 1] it is extrapolated. `PATTERN=NUMBER` sets the lam of the tensors
whose names match, as in `blocks.0.*=0.3`; then one plain number is that of all others, and the last pattern that
matches a tensor decides. Such a network does not lie on the line: it is called mixed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from rebasin_cli.errors import UsageError


@dataclass(frozen=True, slots=True)
class Lams:
    """The plain numbers, and the patterns with theirs, in the order in which they were given."""

    numbers: tuple[float, ...]
    patterns: tuple[tuple[str, float], ...] = ()

    @property
    def single(self) -> float | None:
        """The plain number of the only network that is asked for; None where there are several."""
        return self.numbers[0] if len(self.numbers) == 1 else None

    def by_key(self, keys: Iterable[str], ties: Mapping[str, str]) -> dict[str, float]:
        """lam by tensor name, of the names that a pattern matches; names of one tensor have one lam.

        Args:
            ties: further names of a tensor, with the first.

        Raises:
            UsageError: a pattern matches nothing.
        """
        names = tuple(keys)
        found: dict[str, float] = {}
        for pattern, number in self.patterns:
            matched = {ties.get(name, name) for name in names if fnmatchcase(name, pattern)}
            if not matched:
                raise UsageError(
                    f"--lam '{pattern}={number:g}': no tensor has a name that matches",
                    hint="'rebasin inspect' lists the names",
                )
            found |= {name: number for name in names if ties.get(name, name) in matched}
        return found


def parse_lams(texts: Sequence[object]) -> Lams | None:
    """The values of `--lam`; None without any.

    Raises:
        UsageError: a value is not a finite number, or patterns come with no plain number or with several.
    """
    if not texts:
        return None
    numbers: list[tuple[str, float]] = []
    patterns: list[tuple[str, float]] = []
    for text in map(str, texts):
        pattern, sign, number = text.rpartition("=")
        if sign and not pattern:
            raise UsageError(f"--lam {text}: the pattern before '=' is missing")
        (patterns if sign else numbers).append((pattern, _number(number, text)))
    plain = tuple(dict.fromkeys(number for _, number in numbers))
    if patterns and len(plain) != 1:
        given = "there is none" if not plain else f"there are {len(plain)}"
        raise UsageError(
            f"--lam with patterns needs one plain number, for all other tensors: {given}",
            hint="for instance --lam 0.5 --lam 'blocks.0.*=0.3'",
        )
    return Lams(plain, tuple(patterns))


def _number(text: str, option: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"--lam {option}: {text!r} is not a number")
    return number
