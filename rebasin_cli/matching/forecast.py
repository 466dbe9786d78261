"""How long a search will go on: a guess after every pass, for whoever waits.

The gains of a descent's passes shrink about geometrically, so the passes left are those after which the next gain would
not count. What a search does after a descent is bounded by the work that it may spend, and by its time limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log

_SHRINKING = 0.5
"""Of a pass's gain, what the next one gains, while there is only one to go by."""
_SLOWEST, _FASTEST = 0.9, 0.02


def passes_left(gains: Sequence[float], least: float) -> int:
    """Passes until one gains nothing that counts; that last one, which finds so, is among them.

    Args:
        gains: of the passes so far, the first one first.
        least: a gain that does not count any more.
    """
    if not gains or gains[-1] <= least or least <= 0:
        return 0 if gains and gains[-1] <= 0 else 1
    ratio = gains[-1] / gains[-2] if len(gains) > 1 and gains[-2] > 0 else _SHRINKING
    return max(1, ceil(log(least / gains[-1]) / log(min(max(ratio, _FASTEST), _SLOWEST))))


def seconds_ahead(spent: float, allowed: float, elapsed: float, runs: Sequence[float], planned: int) -> float:
    """Seconds that a search goes on after the descent that is under way.

    Args:
        spent, allowed: multiply-adds in products so far, and in all.
        elapsed: seconds so far.
        runs: seconds of every run that has ended, or of the first one as far as can be guessed.
        planned: runs to come at most.
    """
    return min(elapsed * max(0.0, allowed - spent) / spent, planned * sum(runs) / len(runs))
