"""Whether a network classifies data no better than by chance: then these are not the data or labels that it learned."""

from __future__ import annotations

from math import log, sqrt

ERRORS = 2
"""Standard errors above the accuracy of a guess that count as chance."""
MOST = 0.8
"""Where chance may reach this accuracy, there are too few samples to tell."""


def no_better_than_chance(who: str, *, accuracy: float | None, loss: float | None, n: int, classes: int) -> str | None:
    """A sentence for the user, or None for a network that has learned something of these data.

    Args:
        who: the network, such as its file.
        accuracy, loss: on `n` samples of `classes` classes; the loss is cross-entropy, None where it was not measured.
    """
    if accuracy is None or n < 1 or classes < 2:
        return None
    guess = 1 / classes
    bound = guess + ERRORS * sqrt(guess * (1 - guess) / n)
    if bound > MOST:
        return None
    advice = "check the labels, --class-order or --class-map, and --transform"
    if accuracy <= bound:
        return f"{who}: accuracy {accuracy:.1%} on {classes} classes is no better than chance: {advice}"
    if loss is not None and loss > log(classes) and accuracy < 0.5:
        return (
            f"{who}: loss {loss:.3g} is worse than that of a guess among {classes} classes ({log(classes):.3g}), "
            f"accuracy {accuracy:.1%}: {advice}"
        )
    return None
