"""Which group gets which colour.

Groups that reach across blocks (residual streams) have a colour of their own; groups inside one block share a paler
palette, in turn, so that neighbours differ. All stand out from white and from black; grey is left for what is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

STRONG = ("#3b82d6", "#e07b2a", "#2f9e58", "#9a5fd0", "#d64550", "#1b9aaa", "#cf4fa0", "#9a8a1f")
PALE = ("#7d9cc9", "#c99a6b", "#7fb08f", "#b08fc9", "#c98484", "#6fb0b5")
PINNED = "#8a8f98"


def colours(touched: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Colour by group.

    Args:
        touched: for every group, the blocks of the nodes that it touches, in the order of the data.
    """
    if len(touched) <= len(STRONG):
        return dict(zip(touched, STRONG, strict=False))
    wide = sorted((name for name, blocks in touched.items() if len(set(blocks)) > 1), key=lambda n: -len(touched[n]))
    strong = {name: STRONG[place % len(STRONG)] for place, name in enumerate(wide)}
    local = [name for name in touched if name not in strong]
    pale = {name: PALE[place % len(PALE)] for place, name in enumerate(local)}
    return {name: strong.get(name) or pale[name] for name in touched}
