"""Crisostomi et al., "C2M3: Cycle-Consistent Multi-Model Merging" (2024): every pair through one common order.

P_fg, which brings network g to network f, is factored as `P_f^-1 P_g` through a common order ("universe"), so that
the permutations along any cycle compose to the identity, exactly. The objective is the sum of the similarities of all
pairs. The paper maximises it by Frank-Wolfe; here it is annealed from several anchors (see `joint_annealing`).
Further points come from aligning all networks to one of them, and from MergeMany. From each of them descents to the
sum of the others go on until no network moves; the best end wins, never below that of MergeMany.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

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
        search: by descents.
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

    starts: list[tuple[int, int] | str] = [STAR, MERGE_MANY]
    starts += [(anchor, sweeps) for sweeps in SWEEPS[effort] for anchor in anchors[: ANCHORS[effort]]]
    ends = ranks.divided(starts, run)
    return max(ends, key=lambda end: end[0])[1]
