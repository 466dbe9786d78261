"""Ainsworth, Hayase and Srinivasa, "Git Re-Basin" (2022), Algorithm 3 (MergeMany).

Repeat: for each network in a random order, align it to the mean of the others; until none moves.
"""

from __future__ import annotations

from collections.abc import Callable

from rebasin_cli.merging.joint import Joint, Search, settle
from rebasin_cli.permutation import Permutations


def merge_many(
    joint: Joint, search: Search, *, seed: int, told: Callable[[int, int], None] | None = None
) -> list[Permutations]:
    """The permutations of each network into a common order."""
    placed = joint.unmoved()
    settle(joint, placed, search, seed=seed, local=False, told=told)
    return placed
