"""Crisostomi et al., "C2M3: Cycle-Consistent Multi-Model Merging" (2024): every pair through one common order.

P_fg, which brings network g to network f, is factored as `P_f^-1 P_g` through a common order ("universe"), so that
the permutations along any cycle compose to the identity, exactly. The objective is the sum of the similarities of all
pairs. The paper maximises it by Frank-Wolfe; here it is annealed from several anchors (see `joint_annealing`). Further
points come from aligning all networks to one of them, and from MergeMany. From each of them descents to the sum of the
others go on until no network moves, and the best end wins. There are rounds of starts, with more sweeps in each; where
most ends are the best one already, the search is over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch

from rebasin_cli.data.ranks import Ranks
from rebasin_cli.matching.polish import Settings
from rebasin_cli.merging.joint import Joint, Search, settle
from rebasin_cli.merging.joint_annealing import anneal_jointly
from rebasin_cli.merging.merge_many import merge_many
from rebasin_cli.permutation import Permutations

SWEEPS = {"fast": (12,), "standard": (6, 12, 25), "thorough": (6, 12, 25, 50, 100)}
"""Sweeps of the annealings around one anchor, by effort. On five networks trained on digits the ends of short ones are
as good as those of long ones, and differ by anchor: many short ones find more than one long one."""
ANCHORS = {"fast": 1, "standard": 8, "thorough": 32}
"""Networks that are the anchor of annealings in turn, the reference first."""
SAME = 1e-9
"""Relative difference below which two values of the objective are one."""
STAR, MERGE_MANY = "star", "merge-many"
"""Starts beside the annealings: all aligned to the first anchor, and MergeMany."""


def cycle_consistent(
    joint: Joint,
    anchors: Sequence[int],
    search: Search,
    ranks: Ranks,
    *,
    seed: int,
    effort: str,
    time_limit: float | None,
    device: torch.device,
    told: Callable[[str], None] | None = None,
) -> list[Permutations]:
    """The permutations of each network into a common order, by the best of several starts.

    Args:
        search: a small one, because it is repeated often.
        anchors: the networks in the order in which they are anchors; descents hold the order of the first.
        ranks: the starts are divided among these processes.
        effort: `fast`, `standard` or `thorough`.
        time_limit: seconds, after which annealing stops.
    """
    began = time.monotonic()
    settings = Settings(deadline=None if time_limit is None else began + time_limit, began=began)
    say = told or (lambda words: None)

    def annealed(anchor: int, sweeps: int) -> list[Permutations]:
        return anneal_jointly(
            joint,
            anchor,
            settings,
            sweeps=sweeps,
            device=device,
            told=lambda sweep: say(f"annealing around network {anchor + 1}, sweep {sweep} of {sweeps}"),
        )

    def star() -> list[Permutations]:
        placed = joint.unmoved()
        for number in anchors[1:]:
            say(f"network {number + 1} to network {anchors[0] + 1}")
            placed[number] = search(joint.networks[anchors[0]], joint.networks[number], False).permutations
        return placed

    def run(start: tuple[int, int] | str) -> tuple[float, list[Permutations]]:
        if start == MERGE_MANY:
            placed = merge_many(joint, search, seed=seed)
        else:
            placed = star() if isinstance(start, str) else annealed(*start)
            settle(joint, placed, search, seed=None, local=True)
        return joint.value(placed), placed

    ends: list[tuple[float, list[Permutations]]] = []
    for sweeps, also in zip_longest(SWEEPS[effort], (STAR, MERGE_MANY)):
        starts: list[tuple[int, int] | str] = [] if also is None else [also]
        starts += [] if sweeps is None else [(anchor, sweeps) for anchor in anchors[: ANCHORS[effort]]]
        ends += ranks.divided(starts, run)
        if agree([value for value, _ in ends]):
            break
    return max(ends, key=lambda end: end[0])[1]


def agree(values: Sequence[float]) -> bool:
    """Whether most ends, and at least three, are the best one: then others would find nothing better."""
    best = max(values)
    reached = sum(value >= best * (1 - SAME) for value in values)
    return reached >= 3 and 2 * reached > len(values)
