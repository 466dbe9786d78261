"""Whether a network classifies data no better than by chance: then these are not the data or labels that it learned."""

from __future__ import annotations

from collections.abc import Iterable
from math import log, sqrt
from typing import Protocol

ERRORS = 2
"""Standard errors that the accuracy must exceed that of guessing by."""
MOST = 0.8
"""Where a guess may reach this accuracy, there are too few samples to blame the labels."""
ADVICE = "check the labels, --class-order or --class-map, and --transform"


class Classified(Protocol):
    """What was measured of a network.

    `chance` is the accuracy of guessing at random, None where there are no classes; `most_frequent` that of always
    guessing the most frequent class, None where no class is.
    """

    @property
    def accuracy(self) -> float | None: ...
    @property
    def accuracy_standard_error(self) -> float | None: ...
    @property
    def chance(self) -> float | None: ...
    @property
    def most_frequent(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...
    @property
    def n(self) -> int: ...


def may_guess(found: Classified) -> bool:
    """Whether the accuracy may be that of guessing: it is not above it by `ERRORS` of its standard errors."""
    if found.accuracy is None or found.chance is None:
        return False
    return found.accuracy - ERRORS * (found.accuracy_standard_error or 0.0) <= best_guess(found)


def best_guess(found: Classified) -> float:
    """The accuracy of the better of two guesses: at random, or the most frequent class."""
    return max(found.chance or 0.0, found.most_frequent or 0.0)


def guess_in_words(found: Classified) -> str:
    """What a guess gives."""
    of_class = " for the most frequent class" if (found.most_frequent or 0.0) > (found.chance or 0.0) else ""
    return f"{best_guess(found):.1%}{of_class}"


def no_better_than_chance(who: str, found: Classified, *, cross_entropy: bool = True) -> str | None:
    """A sentence for the user, or None for a network that has learned something of these data.

    Args:
        who: the network, such as its file.
        cross_entropy: the loss is that, and not the user's.
    """
    accuracy, chance = found.accuracy, found.chance
    if accuracy is None or chance is None or found.n < 1 or chance >= 1:
        return None
    if chance + ERRORS * sqrt(chance * (1 - chance) / found.n) > MOST:
        return None
    if may_guess(found):
        return f"{who}: accuracy {accuracy:.1%} is no better than chance ({guess_in_words(found)}): {ADVICE}"
    guessed = -log(chance)
    if cross_entropy and found.loss is not None and found.loss > guessed and accuracy < 0.5:
        return (
            f"{who}: loss {found.loss:.3g} is worse than that of a guess ({guessed:.3g}), accuracy {accuracy:.1%}: "
            f"{ADVICE}"
        )
    return None


def guessing(names: Iterable[object], ends: Iterable[Classified]) -> list[str]:
    """Sentences on the networks that classify the data no better than by chance."""
    said = [no_better_than_chance(str(name), end) for name, end in zip(names, ends, strict=False)]
    return [text for text in said if text is not None]
