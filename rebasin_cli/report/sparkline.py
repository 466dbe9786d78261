"""A row of numbers as a row of blocks, for a glance at a curve in a terminal or a log."""

from __future__ import annotations

from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
PLAIN = "_.-~=*#@"
GAP = "·"


def sparkline(
    values: Sequence[float | None], *, low: float | None = None, high: float | None = None, plain: bool = False
) -> str:
    """One character a value, from the lowest (`low`, or the smallest value) to the highest; a dot where there is none.

    Args:
        plain: ASCII, for streams that cannot show blocks.
    """
    known = [value for value in values if value is not None]
    if not known:
        return GAP * len(values) if not plain else " " * len(values)
    blocks = PLAIN if plain else BLOCKS
    bottom = min(known) if low is None else low
    top = max(known) if high is None else high
    span = top - bottom
    cells = []
    for value in values:
        if value is None:
            cells.append(" " if plain else GAP)
            continue
        share = (value - bottom) / span if span > 0 else 0.0
        cells.append(blocks[min(len(blocks) - 1, max(0, round(share * (len(blocks) - 1))))])
    return "".join(cells)
