"""`generated`, the source of inputs without data: how it is named, and what is told of the inputs that were made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rebasin_cli.errors import UsageError, did_you_mean

WORD = "generated"
KINDS = {
    "inverted": "inputs moved towards a class that all networks give",
    "leaves": "random images of overlapping ellipses (dead leaves)",
    "noise": "random inputs; images with a 1/f spectrum",
    "text": "text sampled from the networks",
}
AUTOMATIC = ""
"""The kind of plain `generated`: text for a language model, else inverted; noise for integers that are no text."""
COUNT = 512
"""Inputs where `--limit` does not say how many."""


@dataclass(frozen=True, slots=True)
class GeneratedFacts:
    """What is told of generated inputs.

    Attributes:
        kind: one of `KINDS`.
        count: how many were made.
        agreement: the share of them, or of their tokens, to which the networks give one class; None where the outputs
            do not score classes.
        classes: how many classes the networks give where they agree; None as for `agreement`, and for text.
        seconds: that making them took; with inputs from the cache, when they were made.
    """

    kind: str
    count: int
    agreement: float | None
    classes: int | None
    seconds: float

    def describe(self) -> str:
        """For reports, after the name of the data."""
        unit = "sequences sampled from the networks" if self.kind == "text" else "inputs that the networks make"
        if self.kind in ("noise", "leaves"):
            unit = "random inputs"
        said = f"{self.count} {unit}, no data ({self.kind})"
        if self.agreement is not None:
            of = " of the next tokens" if self.kind == "text" else ""
            said += f"; the networks agree on {100 * self.agreement:.0f} %{of}"
        if self.classes is not None:
            said += f", {self.classes} {'class' if self.classes == 1 else 'classes'}"
        return said


def generated_kind(data: str | None) -> str | None:
    """The kind of generated inputs that this value of `--data` names: `AUTOMATIC` or one of `KINDS`; None for data.

    Raises:
        UsageError: there is no such kind.
    """
    if data is None:
        return None
    word, colon, kind = data.partition(":")
    if word != WORD:
        return None
    if not colon:
        return AUTOMATIC
    if kind not in KINDS:
        raise UsageError(
            f"{data}: no kind of generated inputs has this name{did_you_mean(kind, KINDS)}",
            hint=f"one of {', '.join(f'{WORD}:{name}' for name in KINDS)}",
        )
    return kind


def check_no_file(data: str | None) -> None:
    """Refuse plain `generated` where a file or folder has this name; before outputs are written, which may have it too.

    Raises:
        UsageError: naming both.
    """
    if data == WORD and Path(data).exists():
        raise UsageError(
            f"{data}: means inputs without data, and here is also a file or folder of this name",
            hint=f"give ./{data} for the latter, {WORD}:inverted for the former",
        )


def is_generated(data: str | None) -> bool:
    """Whether this value of `--data` or its like names inputs without data."""
    return generated_kind(data) is not None
