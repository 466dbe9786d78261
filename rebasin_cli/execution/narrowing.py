"""Which groups of a derived spec break its verification, so that only these are given up and not the whole model.

A rule that is wrong for one operation gives a wrong group, or a group that holds at the traced size only. Groups are
tried by halves: with everything known to hold, a half that does not break the check is kept whole, and of one that does
its halves are tried in turn. So k wrong groups among n cost about 2 k log2(n) checks, and what is kept in the end holds
together, because every check is of all that was kept so far.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

from rebasin_cli.spec import AxisGroup, PermutationSpec, PinnedAxis

MOST_CHECKS = 200
"""Verifications that are spent on finding them; a spec that needs more is refused as a whole."""


class TooManyChecks(Exception):
    """More groups break the check than can be found at a reasonable cost."""


def breaking_groups(spec: PermutationSpec, holds: Callable[[PermutationSpec], bool]) -> tuple[str, ...]:
    """Names of the groups without which the rest of the spec holds.

    Args:
        spec: one that does not hold.
        holds: whether a part of it does; asked at most `MOST_CHECKS` times.

    Raises:
        TooManyChecks: they were not found in so many.
    """
    names = [group.name for group in spec.groups]
    asked = 0

    def does_hold(kept: Collection[str]) -> bool:
        nonlocal asked
        asked += 1
        if asked > MOST_CHECKS:
            raise TooManyChecks
        return holds(without_groups(spec, set(names) - set(kept), ""))

    def found_in(part: Sequence[str], kept: list[str]) -> list[str]:
        """The breaking groups of a part that, added to what is kept, breaks the check; the others are added to it."""
        if len(part) == 1:
            return list(part)
        broken: list[str] = []
        for half in (part[: len(part) // 2], part[len(part) // 2 :]):
            if does_hold([*kept, *half]):
                kept += half
            else:
                broken += found_in(half, kept)
        return broken

    return tuple(found_in(names, []))


def without_groups(spec: PermutationSpec, names: Collection[str], reason: str) -> PermutationSpec:
    """The spec without these groups; what lay in their blocks lies one level up.

    Args:
        reason: why their axes keep their order, where no other group moves them.
    """
    held = {group.name: group for group in spec.groups if group.name in names}
    kept = tuple(_lifted(group, held) for group in spec.groups if group.name not in held)
    moved = {(site.key, site.axis) for group in kept for site in group.sites}
    axes = dict.fromkeys((site.key, site.axis) for group in held.values() for site in group.sites)
    pinned = tuple(PinnedAxis(key, axis, reason) for key, axis in axes if (key, axis) not in moved)
    return PermutationSpec(kept, (*spec.pinned, *pinned))


def _lifted(group: AxisGroup, held: Mapping[str, AxisGroup]) -> AxisGroup:
    parent = group.parent
    while parent is not None and parent.group in held:
        parent = held[parent.group].parent
    return replace(group, parent=parent)
